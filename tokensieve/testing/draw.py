"""Draw: random tokens and full sets of signals, as a method's needs ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.needs import Need
from tokensieve.core.signal_table import TABLE, Signal, signal

HEADS, TEXT = 2, 7
EXTRAS = ("frame", "crop", "head")
"""Signals that methods read where they are given, without naming them as needs."""


def features(batch: int, n: int, dim: int = 16, seed: int = 0) -> Tensor:
    """``(B, N, D)``, normally distributed."""
    return torch.randn(batch, n, dim, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Asks:
    """In the place of a method: what it would need."""

    needs: Sequence[Need]


def signals(method: Method | Asks, batch: int, n: int, dim: int = 16, seed: int = 1) -> dict[str, Any]:
    """Every signal that a method names among its needs, random, as `tokensieve.reduce` takes them."""
    draw = torch.Generator().manual_seed(seed)
    wanted = {need.name for need in method.needs} - {"features"}
    out: dict[str, Any] = {}
    for name in dict.fromkeys([*TABLE, *sorted(wanted)]):
        row = signal(name)
        if row.axis is None and row.text_axis is None:
            continue
        # Those that nobody asks for are drawn too, so that one need more changes no other's numbers.
        made = torch.randn(shape(row, batch, n, dim), generator=draw)
        if name in wanted:
            out[name] = _valued(made, row.values)
    if "word" in out:
        out["word"] = _words(batch, n, seed)
    if "visual" in out:
        # Most tokens of the first row, few of the last.
        out["visual"] = out["visual"] + torch.linspace(1, -1.5, batch)[:, None]
    if "text_attention" in out:
        # Text looks at itself too, in the first row at little else.
        out["text_attention"] = out["text_attention"] * torch.linspace(0.05, 1, batch)[:, None, None, None]
    return out


def shape(row: Signal, batch: int, n: int, dim: int = 16) -> tuple[int, ...]:
    """The first of a signal's shapes, in numbers."""
    sizes = {"B": batch, "N": n, "T": TEXT, "Q": TEXT, "W": TEXT, "heads": HEADS, "D": dim, "F": 3 * dim}
    return tuple(sizes.get(word, 4) if not word.isdecimal() else int(word) for word in row.shapes[0])


def axis(name: str) -> int:
    """The axis of a signal's tokens, of text tokens where it holds no others."""
    row = signal(name)
    return row.axis or row.text_axis or 1


def of_text(name: str) -> bool:
    """Whether a signal holds text tokens and no others."""
    row = signal(name)
    return row.axis is None and row.text_axis is not None


def _valued(x: Tensor, values: str) -> Tensor:
    """Normal numbers as values of a kind."""
    match values:
        case "share":
            return (2 * x).softmax(-1)
        case "number":
            return (3 * x).round().abs()
        case "part":
            return (x > 0).long()
        case "bool":
            return x > 0
    return x


def extras(name: str, batch: int, n: int) -> dict[str, Tensor]:
    """What goes with one of ``EXTRAS``: tokens laid out in frames, in a thumbnail and crops of it, or in heads.

    Frames and crops run one after the other, and the last token of each of them, a line end, belongs to none.
    """
    place = torch.arange(n)
    part = place * 4 // n
    if name == "head":
        return {"head": (place % 2).repeat(batch, 1)}
    ends = torch.cat([part[1:] != part[:-1], torch.ones(1, dtype=torch.bool)]) & (place > n // 2)
    out = {name: torch.where(ends, -1, part).repeat(batch, 1)}
    if name == "crop":
        rank = place - (part * n + 3) // 4
        side = max(int((n // 4) ** 0.5), 1)
        within = torch.stack([(rank // side + 0.5) / side, (rank % side + 0.5) / side], -1).clamp(max=1)
        # Crops 1, 2 and 3 lie side by side in the picture that the thumbnail, 0, shows all of.
        column = torch.where(part > 0, (part - 1 + within[:, 1]) / 3, within[:, 1])
        out["spot"] = torch.stack([within[:, 0], column], -1).repeat(batch, 1, 1)
    return out


def clip(x: Tensor, frame: Tensor) -> Tensor:
    """Tokens of which those at one place of all frames are much alike, in some places more than in others."""
    place = torch.zeros_like(frame)
    for number in frame.unique().tolist():
        place += (frame == number) * ((frame == number).long().cumsum(1) - 1)
    scene = x.gather(1, place[..., None].expand_as(x))
    return scene + (place % 3 + 1)[..., None] * 0.3 * x


def _words(batch: int, n: int, seed: int) -> Tensor:
    """Words of two tokens that come again, and tokens of none; others for another seed."""
    place = torch.arange(n)
    return torch.where(place % 7 == 6, -1, (place + seed % 2) // 2 % (10 + seed % 3)).repeat(batch, 1)


def rows(given: dict[str, Any], index: Any) -> dict[str, Any]:
    """The signals of some rows of the batch."""
    return {k: v[index] if isinstance(v, Tensor) else v for k, v in given.items()}


def tokens(given: dict[str, Any], index: Tensor) -> dict[str, Any]:
    """The signals of some tokens."""
    return {
        k: v if not isinstance(v, Tensor) or of_text(k) else v.index_select(axis(k), index) for k, v in given.items()
    }
