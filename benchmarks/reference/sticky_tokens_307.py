"""Sticky tokens: a scan of an encoder's vocabulary for tokens that pull the similarity of texts toward its mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

Embed = Callable[[list[list[int]]], Tensor]
Pair = tuple[Sequence[int], Sequence[int]]
TOGETHER = 512
"""Texts embedded at once."""


@dataclass(frozen=True)
class Sticky:
    """What repeated insertion of a token did to the similarity of pairs.

    Attributes:
        token: its id.
        score: by how much it moved pairs toward the mean, of how far they were: 1 is onto it, below 0 is away.
        spread: the standard deviation of similarities afterwards.
        within: the share of verification pairs left no farther than ``tolerance`` from the mean; None outside the shortlist.
        sticky: whether that is at least ``share`` of them.
    """

    token: int
    score: float
    spread: float
    within: float | None = None
    sticky: bool = False


@torch.no_grad()
def scan(
    embed: Embed,
    pairs: Sequence[Pair],
    tokens: Sequence[int],
    *,
    times: int = 8,
    scored: int = 5,
    shortlist: float = 0.02,
    tolerance: float = 0.1,
    share: float = 0.9,
    seed: int = 0,
) -> list[Sticky]:
    """Rank tokens by how they pull pairs of texts toward the mean similarity, and verify the best of them.

    Source: arXiv 2507.18171, in its four stages: pairs more alike than the mean are left out; tokens are the caller's
    choice (such as those that decode); a token is inserted ``times`` times into one text of ``scored`` pairs, in front,
    behind and at random places; the shortlist is verified on all other pairs. Deviations: cosines alone, where the code
    adds two more distances and weighs the places; the mean is that of all pairs given.

    Args:
        embed: from sequences of ids, without markers, to vectors ``(n, d)``.
        pairs: two texts each, as ids; the first ``scored`` of those below the mean score, the rest verify.

    Returns:
        a report per token, the stickiest first.

    Raises:
        ValueError: too few pairs below the mean, or an argument out of range.
    """
    if times < 1 or scored < 1 or not 0 < shortlist <= 1:
        raise ValueError(
            f"times={times}, scored={scored}, shortlist={shortlist}; the first two must be at least 1, and 0 < shortlist <= 1"
        )
    sides = [
        normalize(torch.cat([embed([list(t) for t in part]) for part in _parts([p[i] for p in pairs])]), dim=-1)
        for i in (0, 1)
    ]
    before = (sides[0] * sides[1]).sum(1)
    mean = before.mean()
    below = (before < mean).nonzero()[:, 0].tolist()
    if len(below) <= scored:
        raise ValueError(
            f"{len(below)} pairs are less alike than the mean; scored={scored} needs more, and some to verify"
        )
    draw = torch.Generator().manual_seed(seed)

    def after(token: int, rows: list[int]) -> Tensor:
        """``(rows, 3)``: similarities with the token in front, behind and scattered."""
        texts = [made for i in rows for made in inserted(pairs[i][1], token, times, draw)]
        found = torch.cat([embed(part) for part in _parts(texts)])
        return (normalize(found, dim=-1).view(len(rows), 3, -1) * sides[0][rows][:, None]).sum(2)

    far = (before - mean).abs()
    out = []
    for token in tokens:
        moved = after(token, below[:scored])
        score = 1 - (moved - mean).abs().mean() / far[below[:scored]].mean()
        out.append(Sticky(int(token), float(score), float(moved.std())))
    out.sort(key=lambda found: -found.score)
    listed = max(round(shortlist * len(out)), 1)
    for i, one in enumerate(out[:listed]):
        within = float(((after(one.token, below[scored:]) - mean).abs() <= tolerance).float().mean())
        out[i] = Sticky(one.token, one.score, one.spread, within, within >= share)
    return out


def inserted(text: Sequence[int], token: int, times: int, draw: torch.Generator) -> list[list[int]]:
    """The text with a token so often in front of it, behind it, and at places drawn."""
    scattered = list(text)
    for _ in range(times):
        scattered.insert(int(torch.randint(len(scattered) + 1, (1,), generator=draw)), token)
    return [[token] * times + list(text), list(text) + [token] * times, scattered]


def _parts(texts: Sequence[Sequence[int]]) -> list[list[list[int]]]:
    return [[list(t) for t in texts[i : i + TOGETHER]] for i in range(0, len(texts), TOGETHER)]
