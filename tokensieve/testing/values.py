"""Values: methods are values, and what they return can be repeated, saved, undone and differentiated."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import tempfile
from pathlib import Path

import torch

from tokensieve.catalog import table
from tokensieve.core import method_registry
from tokensieve.core.reduction import Reduction
from tokensieve.core.stage import SITES
from tokensieve.testing.trial import B, N, Trial, expect, same


def check_methods_are_values(trial: Trial) -> None:
    """Frozen, hashable, equal after copying, pickling and being made anew from their options."""
    made = trial.made
    for how, other in (
        ("pickled", pickle.loads(pickle.dumps(made))),
        ("copied", copy.deepcopy(made)),
        ("made anew from its options", trial.cls(**dataclasses.asdict(made))),
    ):
        expect(other == made and hash(other) == hash(made), f"a method {how} to equal itself")
        expect(other.adaptive == made.adaptive, f"a method {how} to be adaptive={made.adaptive} still")
    try:
        made.name = "other"  # type: ignore[misc]
    except dataclasses.FrozenInstanceError:
        pass
    else:
        expect(False, "a frozen dataclass; its name could be set")


def check_card(trial: Trial) -> None:
    """A docstring whose first sentence sums it up, and sites that exist."""
    cls = trial.cls
    summary = (inspect.getdoc(cls) or "").split("\n\n")[0]
    expect(summary.endswith("."), f"a docstring whose first paragraph is a sentence; it is {summary!r}")
    expect(cls.site in cls.sites, f"site={cls.site!r} among sites={cls.sites}")
    expect(set(cls.sites) <= set(SITES), f"sites among {', '.join(SITES)}; got {cls.sites}")
    if cls.name:
        card, known = method_registry.method_card(cls.name), {s.id for s in table.systems()}
        expect(set(card.systems) <= known, f"ids of the table of systems; got {card.systems}")
        if card.family not in ("baseline", "user"):
            expect("arXiv" in (cls.__doc__ or ""), "a docstring that names its source (arXiv ...)")


def check_a_seed_repeats(trial: Trial) -> None:
    x, given = trial.draw()
    a, b = (trial.run(x, 9, given, seed=3) for _ in range(2))
    same(a, b, "the same for the same seed")
    expect(torch.equal(a.apply(x), b.apply(x)), "the same tokens for the same seed, bit for bit")


def check_gradients_flow(trial: Trial) -> None:
    """To every kept token, to none that was dropped, and all of them finite."""
    x, given = trial.draw()
    x.requires_grad_()
    r = trial.run(x, 9, given)
    r.apply(x).square().sum().backward()
    grad = x.grad
    assert grad is not None
    expect(grad.isfinite().all(), "finite gradients")
    held = torch.zeros(B, N, dtype=torch.bool).scatter_(1, r.kept, True)
    expect((grad.abs().sum(2)[held] > 0).all(), "a gradient at every kept token")
    expect((grad[r.owner < 0] == 0).all(), "no gradient at dropped tokens")


def check_restore(trial: Trial) -> None:
    """Back to N tokens: each takes its slot's value, dropped ones zero or what fills them."""
    x, given = trial.draw()
    r = trial.run(x, 9, given)
    y = r.apply(x)
    back, last = r.restore(y), r.restore(y, fill=x)
    expect(back.shape == x.shape, f"tokens of shape {tuple(x.shape)}; got {tuple(back.shape)}")
    expect((back[r.owner < 0] == 0).all(), "zeros where tokens were dropped")
    expect(torch.equal(last[r.owner < 0], x[r.owner < 0]), "what fills dropped tokens")
    if r.expansion is not None:
        expect(torch.allclose(r.expansion.share.sum(2)[r.owner >= 0], torch.ones(())), "shares of slots that sum to 1")
    elif r.matrix is None:
        again = r.apply(back) if r.drops else r.take(back)
        expect(torch.equal(again[r.mask], y[r.mask]), "the reduced tokens again from those restored")


def check_saved_and_loaded(trial: Trial) -> None:
    x, given = trial.draw()
    r = trial.run(x, 9, given)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.safetensors"
        r.save(path)
        back = Reduction.load(path)
    equal = (torch.equal(getattr(back, k), getattr(r, k)) for k in ("kept", "mask", "owner"))
    expect(back.n == r.n and all(equal), "the same tokens from a saved reduction")
    expect(torch.equal(back.apply(x), r.apply(x)), "the same values from a saved reduction")
