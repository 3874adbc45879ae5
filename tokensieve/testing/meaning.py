"""Meaning: a method does what it says. What it ranks by decides, what it reads matters, and options change something."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from tokensieve.core.method import CacheMethod, FocusMethod, Method
from tokensieve.core.needs import Keys, Need
from tokensieve.core.plan import stages_of
from tokensieve.core.signals import Signals
from tokensieve.parts import score
from tokensieve.testing import draw, settings
from tokensieve.testing.draw import EXTRAS
from tokensieve.testing.trial import B, H, N, Trial, W, differ, expect, reads

SIDE, ROWS = 12, 8
"""Kept and dropped tokens are compared over 8 rows of 144, of which half stay: enough for means to be clear."""
DRAWS = 4
TRIED = (9, 18)
"""Budgets, and how many draws, in which a signal or an option must change something."""


def _given(name: str) -> Callable[[Signals], Tensor]:
    return lambda s: getattr(s, name).flatten(1, -2).mean(1) if getattr(s, name).dim() > 2 else getattr(s, name)


def _text(s: Signals) -> Tensor:
    assert s.text is not None
    return cosine_similarity(s.features, score.mean_row(s.text, score.valid_text(s, s.text))[:, None], dim=-1)


def _neurons(s: Signals) -> Tensor:
    assert s.neurons is not None
    assert s.text_neurons is not None
    often = (s.text_neurons > 0).to(s.neurons).mean(1)
    return ((s.neurons > 0) * often[:, None]).sum(2)


def _unlike(s: Signals) -> Tensor:
    unit = normalize(s.metric(Keys()), dim=-1)
    return -(unit * unit.mean(1, keepdim=True)).sum(2)


MEASURES: dict[str, Callable[[Signals], Tensor]] = {
    **{
        name: _given(name)
        for name in (
            "cls_attention",
            "received_attention",
            "cls_similarity",
            "pagerank",
            "last_attention",
            "text_attention",
            "window_attention",
            "accumulated_attention",
            "expected_logits",
            "probe_attention",
            "relevance",
            "ranking",
            "entropy",
            "idf",
            "shift",
            "surprisal",
            "foreground",
            "prior",
        )
    },
    "stop": lambda s: -_given("stop")(s),
    "text": _text,
    "neurons": _neurons,
    "early": lambda s: -torch.arange(s.n, dtype=s.features.dtype).expand(s.batch, -1),
    "late": lambda s: torch.arange(s.n, dtype=s.features.dtype).expand(s.batch, -1),
    "long": lambda s: s.features.norm(dim=-1),
    "unlike": _unlike,
}
"""What kept tokens have more of than dropped ones, by the need that a method ranks by, or as it says itself (``favours``)."""


def check_score_is_a_map(trial: Trial) -> None:
    x, given = trial.draw()
    made = trial.made.score(Signals.of(x, grid=(H, W), **given))
    if made is not None:
        expect(made.shape == (B, N), f"scores of shape {(B, N)}; got {tuple(made.shape)}")
        expect(made.isfinite().all(), "finite scores")


def check_kept_outrank_dropped(trial: Trial) -> None:
    """On average, by the declared score and by what it ranks by, beside what is safe; unless it is ``unranked``."""
    if trial.cls.unranked:
        return
    if trial.cls.favours is None and trial.made.score(_signals(trial)) is not None:
        measured = [n.name for n in trial.made.needs if n.name in MEASURES]
        expect(
            measured, f"favours=(...) to say what a high score means ({', '.join(MEASURES)}), or a reason in unranked"
        )
    _outranks(trial, trial.made.needs)


def check_kept_outrank_dropped_under_options(trial: Trial) -> None:
    """The same for every choice that an option offers by name."""
    for f in dataclasses.fields(trial.cls):
        span = f.metadata.get("range")
        for choice in getattr(span, "choices", ()) if isinstance(getattr(trial.made, f.name), str) else ():
            if choice != getattr(trial.made, f.name) and not trial.cls.unranked:
                other = Trial(trial.cls, {**trial.options, f.name: choice}, trial.extras)
                _outranks(other, other.made.needs)


def check_kept_outrank_dropped_by_stand_ins(trial: Trial) -> None:
    """The same where a stand-in is given in the place of a need."""
    if trial.cls.unranked or trial.cls.favours is not None:
        return
    for i, need in enumerate(trial.made.needs):
        for other in need.instead:
            rest = [n for j, n in enumerate(trial.made.needs) if j != i and n.name != need.name]
            present = {other, *(n.name for n in rest)}
            if other in MEASURES and next(w for w in need.instead if w in present) == other:
                _outranks(trial, [dataclasses.replace(need, name=other), *rest])


def check_needs_matter(trial: Trial) -> None:
    """Every signal among the needs changes the result when it changes; the features do where there are none."""
    inert = trial.cls.inert
    for need in trial.made.needs or [Need("features")]:
        if need.name not in inert:
            expect(
                _acts(trial, need),
                f"{_called(need, trial.made.needs)} to change the result when it changes (or a reason in inert)",
            )


def check_options_matter(trial: Trial) -> None:
    """Every option changes the result, or what the method declares of itself; or it has a reason in ``inert``."""
    inert = trial.cls.inert
    for f in dataclasses.fields(trial.cls):
        if f.name in inert:
            continue
        tried = settings.others(f, getattr(trial.made, f.name))
        changed = any(_changes(trial, f.name, value) for value in tried)
        expect(changed, f"option {f.name} to change something at one of {tried} (or a reason in inert)")


def _signals(trial: Trial) -> Signals:
    x, given = trial.draw()
    return Signals.of(x, grid=(H, W), **given)


def _outranks(trial: Trial, needs: Sequence[Need]) -> None:
    x, given = draw.features(ROWS, SIDE * SIDE, seed=40), draw.signals(draw.Asks(needs), ROWS, SIDE * SIDE, seed=41)
    for name in trial.extras:
        given.update(draw.extras(name, ROWS, SIDE * SIDE))
    given = _layered(trial, given, 40)
    s = Signals.of(x, grid=(SIDE, SIDE), **given)
    rank = trial.made.score(s)
    if rank is None:
        return
    r = trial.run(x, SIDE * SIDE // 2, given, grid=(SIDE, SIDE))
    if r.m < SIDE * SIDE // 2:  # it has no use for as many, and might drop none
        r = trial.run(x, max(r.m // 2, 1), given, grid=(SIDE, SIDE))
    kept = torch.zeros_like(s.valid).scatter_(1, r.kept, True) & ~trial.made.always_keep(s, r.counts)
    # What was merged is not lost, where anything is.
    dropped = r.owner < 0 if bool((r.owner < 0).any()) else torch.ones_like(kept).scatter_(1, r.kept, False)
    merged = (r.owner >= 0) & torch.ones_like(kept).scatter_(1, r.kept, False)
    if merged.any() and (r.owner < 0).any():
        gap = _mean(rank, merged) - _mean(rank, r.owner < 0)
        expect(gap > 0, f"merged tokens to have more score than dropped ones on average; the difference is {gap:.3g}")
    for name, value in _values(trial, s, rank, needs):
        gap = _mean(value, kept) - _mean(value, dropped)
        expect(gap > 0, f"kept tokens to have more {name} than dropped ones on average; the difference is {gap:.3g}")


def _values(trial: Trial, s: Signals, rank: Tensor, needs: Sequence[Need]) -> Iterator[tuple[str, Tensor]]:
    """By what kept and dropped tokens are compared, ``(B, N)``."""
    yield "score", rank
    if trial.cls.favours is None:
        for need in needs:
            if need.name in MEASURES:
                yield _called(need, needs), MEASURES[need.name](_at(s, need))
    for name in trial.cls.favours or ():
        named = [n for n in needs if n.name == name]
        yield name, MEASURES[name](_at(s, named[-1]) if named else s)


def _called(need: Need, needs: Sequence[Need]) -> str:
    several = sum(n.name == need.name for n in needs) > 1
    return f"{need.name} at layer {need.layers[0]}" if several and need.layers else need.name


def _layered(trial: Trial, given: dict[str, Any], seed: int, only: Need | None = None) -> dict[str, Any]:
    """Signals of which needs name several layers, with a tensor for each; drawn anew for the layers of the need ``only``."""
    out = dict(given)
    for need in trial.made.needs:
        layers = {layer for n in trial.made.needs if n.name == need.name for layer in n.layers}
        if len(layers) > 1 and need.name in given:
            anew = {layer: only is not None and only.name == need.name and layer in only.layers for layer in layers}
            out[need.name] = {
                i: _draw(trial, given[need.name], need.name, seed=seed + 7 * (i % 97) + 1000 * anew[i])
                for i in sorted(layers)
            }
    return out


def _draw(trial: Trial, like: Tensor, name: str, seed: int) -> Tensor:
    batch, n, dim = like.shape[0], like.shape[draw.axis(name)], like.shape[-1]
    return draw.signals(trial.made, batch, n, 16 if draw.axis(name) == -1 else dim, seed)[name]


def _at(s: Signals, need: Need) -> Signals:
    """With one tensor, the mean over the need's layers, in the place of one for each layer."""
    value = getattr(s, need.name)
    if not isinstance(value, Mapping):
        return s
    return s.over(**{need.name: torch.stack([value[i] for i in need.layers]).mean(0)})


def _mean(value: Tensor, candidates: Tensor) -> float:
    return float(torch.where(candidates, value, 0.0).sum() / candidates.sum().clamp(min=1))


def _acts(trial: Trial, need: Need) -> bool:
    for seed, laid in product(range(DRAWS), _layouts(trial)):
        x, given = laid.draw(seed=seed)
        y, changed = laid.draw(seed=seed + 51)
        one, other = _layered(laid, given, seed), _layered(laid, given, seed, need)
        if need.name in given and isinstance(given[need.name], Tensor) and not isinstance(other[need.name], Mapping):
            other[need.name] = changed[need.name]
        y = y if need.name == "features" else x
        if any(differ(laid.run(x, keep, one), laid.run(y, keep, other)) for keep in TRIED):
            return True
    return False


def _layouts(trial: Trial) -> list[Trial]:
    """With the needs alone, and laid out in whatever else the method reads."""
    extras = [name for name in EXTRAS if reads(trial.cls, tuple(trial.options.items()), name)]
    return [trial, *(Trial(trial.cls, trial.options, (name,)) for name in extras)]


def _changes(trial: Trial, option: str, value: Any) -> bool:
    try:
        other = Trial(trial.cls, {**trial.options, option: value})
        made = other.made
    except ValueError:  # out of its range
        return False
    if _says(trial.made) != _says(made):
        return True
    for seed, laid in product(range(DRAWS), _layouts(trial)):
        x, given = laid.draw(seed=seed)
        given = {**other.draw(seed=seed)[1], **given}
        if any(differ(laid.run(x, keep, given), other.run(x, keep, given)) for keep in TRIED):
            return True
    return False


def _says(made: Method) -> Mapping[str, Any]:
    """What a method declares of itself to the sites."""
    return {
        "needs": made.needs,
        "stages": [(type(stage.method), stage.keep, stage.layers) for stage in stages_of(made, 0.25)],
        "attributes": [made.adaptive, made.layer, made.sites],
        "off": made.focus(Signals(features=torch.ones(1, 9, 4), grid=(3, 3)), 9).off
        if isinstance(made, FocusMethod) and not made.needs
        else (),
        "cache": _cached(made) if isinstance(made, CacheMethod) else (),
    }


def _cached(made: CacheMethod) -> Sequence[Any]:
    keep, seen = torch.tensor([40, 60]), torch.tensor([100, 90])
    return [
        *(getattr(made, k) for k in ("min_kept", "bits", "query_block_size", "unit")),
        made.layer_roles(16) if made.sparse_decode else (),
        *(made.of_layer(keep, seen, layer, 8).tolist() for layer in range(8)),
    ]
