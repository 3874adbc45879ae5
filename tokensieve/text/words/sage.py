"""Vocabularies trimmed by what their tokens say of their neighbours.

Source: Yehezkel and Pinter, Incorporating Context into Subword Vocabularies (SaGe, arXiv 2210.07095). A large vocabulary is
trimmed: tokens go whose loss in a skip-gram model grows least when each of their places is cut into what is left. Deviations: a
token's places as context, and the neighbours that its parts become of each other, are not counted; the vectors are trained anew
every round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tokensieve.text.words.segment import Pieces, greedy_prefix

Cut = Callable[[str, Pieces], list[str]]


def neighbours(rows: Sequence[Sequence[int]], window: int = 5) -> Tensor:
    """(3, N): each token beside each of its neighbours within a window of both sides, and how often."""
    pairs = []
    for row in rows:
        ids = torch.tensor(row, dtype=torch.long)
        for d in range(1, min(window, len(row) - 1) + 1):
            pairs += [torch.stack([ids[d:], ids[:-d]]), torch.stack([ids[:-d], ids[d:]])]
    if not pairs:
        raise ValueError("no row holds two tokens; give longer text")
    found, counts = torch.unique(torch.cat(pairs, 1), dim=1, return_counts=True)
    return torch.cat([found, counts[None]])


def skip_gram(
    pairs: Tensor, size: int, width: int = 32, steps: int = 600, negatives: int = 5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Vectors (size, width) of tokens and of neighbours, by skip-grams with negative samples, drawn by frequency to the 3/4.

    Args:
        pairs: of :func:`neighbours`; steps: batches of 2,048 pairs, drawn as often as they occur.
    """
    generator = torch.Generator().manual_seed(seed)
    own = torch.nn.Parameter(torch.randn(size, width, generator=generator) / width)
    other = torch.nn.Parameter(torch.randn(size, width, generator=generator) / width)
    often = torch.zeros(size).index_add_(0, pairs[1], pairs[2].float()) ** 0.75
    ends = pairs[2].double().cumsum(0)
    optimizer = torch.optim.Adam([own, other], lr=0.02)
    for _ in range(steps):
        drawn = torch.rand(2048, generator=generator, dtype=torch.float64) * ends[-1]
        token, near = pairs[:2, torch.searchsorted(ends, drawn, right=True).clamp(max=len(ends) - 1)]
        far = torch.multinomial(often, 2048 * negatives, replacement=True, generator=generator).view(2048, negatives)
        x = own[token]
        loss = F.softplus(-(x * other[near]).sum(-1)).mean()
        loss = loss + F.softplus((x[:, None] * other[far]).sum(-1)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return own.detach(), other.detach()


def context_losses(pairs: Tensor, own: Tensor, other: Tensor, parts: Sequence[Sequence[int]]) -> Tensor:
    """(size,) how much the loss grows when each token is cut into parts at all its places; the mean loss is that of pairs.

    Args:
        parts: of each token, itself where it is not cut.
    """
    token, near, count = pairs
    out = -count * F.softplus(-(own[token] * other[near]).sum(-1))
    for k in range(max(map(len, parts))):
        has = torch.tensor([len(p) > k for p in parts])[token]
        part = torch.tensor([p[k] if len(p) > k else 0 for p in parts])[token]
        out = out + has * count * F.softplus(-(own[part] * other[near]).sum(-1))
    return torch.zeros(len(own)).index_add_(0, token, out)


def trimmed(
    lines: Sequence[Sequence[str]],
    vocabulary: Sequence[str],
    size: int,
    rounds: int = 4,
    cut: Cut = greedy_prefix,
    window: int = 5,
    steps: int = 600,
    seed: int = 0,
) -> list[str]:
    """A vocabulary of so many tokens out of a large one; single characters stay.

    Args:
        lines: of words, spelled as the vocabulary spells them.
        rounds: in which equal numbers of tokens go, vectors and losses made anew in each.
        cut: how words are cut by a vocabulary; window, steps: of :func:`neighbours` and :func:`skip_gram`.

    Raises:
        ValueError: ``size`` is below the single characters or above the vocabulary, or a word cannot be cut.
    """
    kept = list(dict.fromkeys(vocabulary))
    fixed = sum(len(t) == 1 for t in kept)
    if not fixed <= size <= len(kept) or rounds < 1:
        raise ValueError(
            f"size is {size} and rounds {rounds}; size must lie between the {fixed} single characters and the {len(kept)} "
            "tokens, and rounds be at least 1"
        )
    each = math.ceil((len(kept) - size) / rounds)
    while len(kept) > size:
        ids = {t: i for i, t in enumerate(kept)}
        pieces = Pieces(dict.fromkeys(kept, 0.0), dict.fromkeys(kept, 0.0))
        known: dict[str, list[int]] = {}
        for word in {w for line in lines for w in line}:
            known[word] = [ids[p] for p in cut(word, pieces)]
        pairs = neighbours([[i for w in line for i in known[w]] for line in lines], window)
        own, other = skip_gram(pairs, len(kept), steps=steps, seed=seed)
        parts = [[ids[p] for p in cut(t, _without(t, pieces))] if len(t) > 1 else [ids[t]] for t in kept]
        lost = context_losses(pairs, own, other, parts).tolist()
        going = sorted((t for t in kept if len(t) > 1), key=lambda t: (lost[ids[t]], len(t), t))
        gone = set(going[: min(each, len(kept) - size)])
        kept = [t for t in kept if t not in gone]
    return kept


def _without(token: str, pieces: Pieces) -> Pieces:
    """A vocabulary without one of its tokens, to cut that token by: no longer piece can stand in it."""
    inside = {token[a:b] for a in range(len(token)) for b in range(a + 1, len(token) + 1)} - {token}
    left = {p: 0.0 for p in inside if p in pieces.inner}
    return Pieces(left, left)
