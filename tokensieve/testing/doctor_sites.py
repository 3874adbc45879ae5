"""Trials: a sieve at one site of a model; whether it changes nothing where nothing leaves, shortens what it should, and goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

import tokensieve
from tokensieve.parts import budget
from tokensieve.sites.model.decoder import decoder, full_layers
from tokensieve.sites.model.structure import crossing, find
from tokensieve.sites.sieve import Sieve, sieve
from tokensieve.testing.doctor_models import NEW, Checked

KEEP = 0.5
"""The budget that has to shorten."""
WINDOW = 8
"""Of the method that evicts: prompts may be short."""
LAYER = 2
"""The layer in front of which tokens leave at site='prefill'."""
WHOLE, SHORT, GONE = "keep=1.0 is the plain model", "a budget shortens every layer", "detaching restores the model"
FAILED = "Do not use site={site!r} on this model here, and report it with the output of `tokensieve doctor --json`."
REFUSED = "The sieve does not run at site={site!r} of this model; the reason says what else does."


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        model: the name of the model that was checked.
        site: where the sieve stood.
        check: what was checked, in words.
        status: "ok", "failed", or "refused", where the sieve says that it does not run on this model.
        detail: what was found, or the exception's type and message.
        advice: what to do; empty where all is right.
    """

    model: str
    site: str
    check: str
    status: str
    detail: str
    advice: str


class Wrong(AssertionError):
    """What a check found, in words."""


Expected = Callable[[Checked, Sieve], list[int]]
"""From a model and the sieve that ran, the tokens that each layer has to hold, as :class:`Run` counts them."""


@dataclass(frozen=True)
class SiteTrial:
    """A sieve at one site of a model; ``options`` are those of its stage and method."""

    of: Checked
    site: str
    method: str
    expected: Expected
    options: Mapping[str, Any] = field(default_factory=dict)

    def sieve(self, keep: float) -> Sieve:
        return sieve(self.of.model, self.method, keep=keep, site=self.site, **self.options)

    def findings(self) -> Iterator[Finding]:
        """The three checks; an exception in one is its finding and does not end the others, a refusal does."""
        with suppress(Exception):  # once before anything is looked at; if it fails, it does so again in each check
            _ = self.of.plain
        before = traces(self.of.model)
        for what, check in ((WHOLE, self._whole), (SHORT, self._short), (GONE, partial(self._gone, before))):
            try:
                status, detail = "ok", check()
            except Wrong as error:
                status, detail = "failed", str(error)
            except Exception as error:  # whatever a model or a release raises
                refused = isinstance(error, ValueError) and not self.of.own and _said_here(error)
                status, detail = "refused" if refused else "failed", f"{type(error).__name__}: {error}"
            advice = {"ok": "", "failed": FAILED, "refused": REFUSED}[status].format(site=self.site)
            yield Finding(self.of.name, self.site, what, status, detail, advice)
            if status == "refused":
                return

    def _whole(self) -> str:
        whole = self.sieve(1.0)  # first: what it refuses need not run at all
        plain = self.of.plain
        with whole:
            return _same(plain.tensors, self.of.run().tensors)

    def _short(self) -> str:
        plain = self.of.plain
        with self.sieve(KEEP) as s:
            run = self.of.run()
        for a, b in zip(plain.tensors, run.tensors, strict=True):
            if a.shape != b.shape:
                raise Wrong(f"an output is not as long as the plain model's{_by(a, b)}")
        got = run.tokens
        expected = self.expected(self.of, s)
        wrong = [i for i, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b]
        if wrong:
            i = wrong[0]
            raise Wrong(f"layer {i} holds {got[i]} tokens, and not {expected[i]} (without a sieve {plain.tokens[i]})")
        if got == plain.tokens:
            raise Wrong(f"every layer holds what it does without a sieve: {_listed(got)}")
        return f"{_listed(plain.tokens)} -> {_listed(got)}"

    def _gone(self, before: dict[str, Any]) -> str:
        """Behind the sieves of the other checks, however those ended."""
        after = traces(self.of.model)
        changed = [name or type(self.of.model).__name__ for name in before if before[name] != after[name]]
        if changed:
            raise Wrong(
                f"{len(changed)} modules are not what they were, {changed[0]} the first: hooks or taps are left"
            )
        return _same(self.of.plain.tensors, self.of.run().tensors)


def trials(of: Checked) -> Iterator[SiteTrial]:
    """The sites that models of its kind have."""
    if of.kind == "encoder":
        yield SiteTrial(of, "encoder", "tome", _blocks)
        return
    if of.kind == "denoiser":
        yield SiteTrial(of, "diffusion", "tome", _entered)
        return
    if of.kind == "visual" and _crosses(of.model):
        yield SiteTrial(of, "cross", "trimmed-llama", _crossed)
    elif of.kind == "visual":
        # Ours have all that a method may read; of others, not every encoder and layer has attention that can be read.
        handoff, prefill = ("visionzip", "fastv") if of.own else ("divprune", "divprune")
        yield SiteTrial(of, "handoff", handoff, _visual(0))
        yield SiteTrial(of, "prefill", prefill, _visual(LAYER), {"layers": LAYER})
        yield SiteTrial(of, "encoder", "tome", _visual(0))
    yield SiteTrial(of, "cache", "snapkv", _evicted, {"window": WINDOW})


def traces(model: nn.Module) -> dict[str, Any]:
    """Of each module: its hooks, what is kept on it, and its attention implementation."""
    return {
        name: (
            tuple(len(v) for k, v in vars(module).items() if k.endswith("_hooks") and v is not None),
            sorted(vars(module)),
            getattr(getattr(module, "config", None), "_attn_implementation", None),
        )
        for name, module in model.named_modules()
    }


# ---- what each layer has to hold ------------------------------------------------------------------------------------


def _visual(first: int) -> Expected:
    """Caches of layers from ``first`` on lack the visual tokens that left."""

    def expected(of: Checked, s: Sieve) -> list[int]:
        trace, language = s.last, find(of.model).language
        if trace is None or trace.places is None or language is None:
            raise Wrong("the sieve saw no visual tokens")
        lengths = of.inputs["attention_mask"].sum(1).tolist()
        for row, there, kept in zip(trace.rows, trace.places >= 0, trace.stages[-1].reduction.counts, strict=True):
            asked = int(budget.counts(KEEP, there[None]))
            if int(kept) != asked:
                raise Wrong(f"of a picture's {int(there.sum())} tokens {int(kept)} were kept, and not {asked}")
            lengths[row] -= int(there.sum()) - asked
        short = max(lengths) + NEW - 1
        own = [a is not None and language.sources[i] == i for i, a in enumerate(language.attentions)]
        return [short if i >= first and own[i] else n for i, n in enumerate(of.plain.tokens)]

    return expected


def _crossed(of: Checked, s: Sieve) -> list[int]:
    """Layers behind the first that attends to images hold the keys of those that were kept."""
    _, _, layers = crossing(of.model)
    if s.last is None:
        raise Wrong("the sieve saw no images")
    kept = torch.zeros(len(of.inputs["input_ids"]), dtype=torch.long)
    kept.index_add_(0, torch.tensor(s.last.rows), s.last.stages[-1].reduction.counts.cpu())
    return [int(kept.max()) if i in layers[1:] else n for i, n in enumerate(of.plain.tokens)]


def _evicted(of: Checked, s: Sieve) -> list[int]:
    """Layers that see every token hold what was kept of the prompt and what came since."""
    kept = int(budget.counts(KEEP, of.inputs["attention_mask"].bool()).max())
    full = full_layers(decoder(of.model))
    return [kept + NEW - 1 if i in full else n for i, n in enumerate(of.plain.tokens)]


def _blocks(of: Checked, s: Sieve) -> list[int]:
    """Every block meets fewer tokens than the one before, in equal steps."""
    depth = len(of.plain.tokens)
    n = s.last.stages[0].reduction.n if s.last is not None else of.plain.tokens[0]
    stay = of.plain.tokens[0] - n  # what has a role in a text, and never leaves
    keep = int(budget.counts(KEEP, torch.ones(1, n, dtype=torch.bool)))
    kept = s.last.stages[0].reduction.counts.tolist() if s.last is not None else []
    if set(kept) != {keep}:
        raise Wrong(f"{kept} of {n} tokens leave the encoder, and not {keep} of each picture")
    return [stay + left for left in (n, *budget.steps(n, keep, depth)[:-1])]


def _entered(of: Checked, s: Sieve) -> list[int]:
    """Every self-attention meets its share of the tokens."""
    return [int(budget.counts(KEEP, torch.ones(1, n, dtype=torch.bool))) for n in of.plain.tokens]


# ---- in words -------------------------------------------------------------------------------------------------------


def _same(plain: tuple[torch.Tensor, ...], got: tuple[torch.Tensor, ...]) -> str:
    """Say that two outputs are equal bit for bit, NaN included."""
    for i, (a, b) in enumerate(zip(plain, got, strict=True)):
        if a.shape != b.shape or not torch.equal(a.nan_to_num(), b.nan_to_num()):
            raise Wrong(f"output {i} of {len(plain)} differs from the plain model's{_by(a, b)}")
    return f"{len(plain)} outputs are equal bit for bit"


def _by(a: torch.Tensor, b: torch.Tensor) -> str:
    if a.shape != b.shape:
        return f": shape {tuple(b.shape)} for {tuple(a.shape)}"
    return f" by up to {float((a.double() - b.double()).abs().max()):.2g}"


def _listed(tokens: tuple[int, ...]) -> str:
    """Runs of equal counts once, with their number."""
    runs: list[list[int]] = []
    for n in tokens:
        if runs and runs[-1][0] == n:
            runs[-1][1] += 1
        else:
            runs.append([n, 1])
    return ", ".join(f"{n} x {times}" if times > 1 else str(n) for n, times in runs)


def _crosses(model: Any) -> bool:
    try:
        crossing(model)
    except ValueError:
        return False
    return True


def _said_here(error: BaseException) -> bool:
    """Whether this library raised it, and not what it calls."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(tokensieve.__name__)
