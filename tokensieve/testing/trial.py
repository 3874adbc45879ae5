"""Trial: a method under check, with its options and its random signals, and what two results must have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.needs import Need
from tokensieve.core.reduce import reduce
from tokensieve.core.reduction import Reduction
from tokensieve.testing import draw

B, H, W = 3, 6, 6
N = H * W
"""The contract's size: rows, and tokens of each on a grid."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A method with options, and what beside its needs it is given.

    Attributes:
        cls: the method.
        options: options other than its defaults.
        extras: which of ``draw.EXTRAS`` are given.
        stand_in: a signal that is given in the place of each need that it can stand in for; "" for none.
    """

    cls: type[Method]
    options: Mapping[str, Any]
    extras: tuple[str, ...] = ()
    stand_in: str = ""

    @cached_property
    def made(self) -> Method:
        return self.cls(**self.options)

    @property
    def asks(self) -> list[Need]:
        """What is given: the needs, or their stand-in."""
        other = self.stand_in
        return [replace(n, name=other) if other in n.instead else n for n in self.made.needs]

    def draw(self, batch: int = B, n: int = N, dim: int = 16, seed: int = 0) -> tuple[Tensor, dict[str, Any]]:
        """Features ``(B, N, D)`` and signals by name; frames of a clip resemble each other."""
        given = draw.signals(draw.Asks(self.asks), batch, n, dim, seed + 1)
        for name in self.extras:
            given.update(draw.extras(name, batch, n))
        x = draw.features(batch, n, dim, seed)
        return (draw.clip(x, given["frame"]) if "frame" in given else x), given

    def run(self, x: Tensor, keep: Any, given: Mapping[str, Any], grid: Any = None, **more: Any) -> Reduction:
        """`tokensieve.reduce` with this method; on the contract's grid where there is no other and the tokens fill it."""
        grid = (H, W) if grid is None and x.shape[1] == N else grid
        return reduce(x, self.made, keep, grid=grid or None, **given, **more)


def expect(condition: Any, what: str) -> None:
    """Raises AssertionError: what was expected did not come true."""
    if not condition:
        raise AssertionError(f"expected {what}")


def same(a: Reduction, b: Reduction, what: str = "the same reduction") -> None:
    """Equal but for padding slots, and for rounding in weights."""
    m = max(int(a.counts.max()), int(b.counts.max()))
    expect(torch.equal(a.counts, b.counts), f"{what}: {a.counts.tolist()} and {b.counts.tolist()} tokens are kept")
    held = [(r.kept[:, :m] * r.mask[:, :m]) for r in (a, b)]
    expect(torch.equal(*held), f"{what}: other tokens are kept, {held[0].tolist()} and {held[1].tolist()}")
    expect(torch.equal(a.owner, b.owner), f"{what}: tokens go to other slots")
    expect(close(a.dense()[:, :m], b.dense()[:, :m]), f"{what}: weights differ by more than rounding")


def differ(a: Reduction, b: Reduction) -> bool:
    """Whether two reductions of the same tokens keep other tokens or mix them otherwise."""
    if a.kept.shape != b.kept.shape or not torch.equal(a.kept, b.kept) or not torch.equal(a.owner, b.owner):
        return True
    if a.expansion and b.expansion and not close(a.expansion.share, b.expansion.share):
        return True
    return not close(a.dense(), b.dense())


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, in single precision."""
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=1.3e-6, atol=1e-5))


def slots(r: Reduction) -> None:
    """Kept tokens ascend, padding slots come last, owners are slots in use, and kept tokens own themselves."""
    expect(r.kept.shape == r.mask.shape, "kept and mask of one shape")
    expect(r.m == int(r.counts.max()), "as many slots as the longest row uses")
    for kept, mask, owner, count in zip(r.kept, r.mask, r.owner, r.counts.tolist(), strict=True):
        expect(mask[:count].all() and not mask[count:].any(), "padding slots behind all others")
        used = kept[:count]
        expect((used[1:] > used[:-1]).all(), f"kept tokens in ascending order; got {used.tolist()}")
        expect(((used >= 0) & (used < r.n)).all(), f"kept tokens from 0 to {r.n - 1}; got {used.tolist()}")
        expect(((owner >= -1) & (owner < count)).all(), "every token to belong to a slot in use, or to none (-1)")
        if r.matrix is None:
            expect(torch.equal(owner[used], torch.arange(count)), "every kept token to belong to its own slot")


def reads(cls: type[Method], options: tuple[tuple[str, Any], ...], extra: str) -> bool:
    """Whether one of ``draw.EXTRAS`` changes what a method keeps, or how it mixes."""
    key: Any = cls
    return reduces(cls) and _reads(key, options, extra)


def reduces(cls: type[Method]) -> bool:
    """Whether a method removes tokens anywhere; one that runs at ``site="focus"`` alone only hides them."""
    return set(cls.sites) != {"focus"}


@lru_cache(maxsize=1024)
def _reads(cls: Any, options: tuple[tuple[str, Any], ...], extra: str) -> bool:
    plain, more = Trial(cls, dict(options)), Trial(cls, dict(options), (extra,))
    if extra == "head" and getattr(plain.made, "unit", "") != "entry":
        return False
    x, given = plain.draw(seed=3)
    _, laid = more.draw(seed=3)
    return any(differ(plain.run(x, keep, given), more.run(x, keep, laid)) for keep in (9, 18))
