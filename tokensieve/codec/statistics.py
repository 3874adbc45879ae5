"""Statistics of code sequences, as corpora of a language have them: Zipf, innovation, static codes, compression."""

from __future__ import annotations

import lzma
import math

import torch
from torch import Tensor


def zipf_slope(codes: Tensor, most: int = 1000) -> float:
    """Slope of log frequency over log rank of the ``most`` most frequent codes; -1 in Zipf's law, 0 where all are used alike.

    NaN where fewer than two codes occur. Every code weighs alike (ordinary least squares), as in arXiv 2411.05001.

    Args:
        codes: int64 of any shape; negative ones are no tokens.
    """
    seen = codes[codes >= 0].unique(return_counts=True)[1].sort(descending=True).values[:most].double()
    if len(seen) < 2:
        return math.nan
    x, y = torch.arange(1, len(seen) + 1, dtype=torch.float64).log(), seen.log()
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum())


def innovation(codes: Tensor, points: int = 20) -> list[tuple[int, int]]:
    """How many tokens were read, and how many different codes were among them, at growing lengths."""
    flat = codes[codes >= 0].tolist()
    ends = {max(1, round(len(flat) * i / points)) for i in range(1, points + 1)} if flat else set()
    seen, out = set(), []
    for i, code in enumerate(flat, 1):
        seen.add(code)
        if i in ends:
            out.append((i, len(seen)))
    return out


def entropy(codes: Tensor) -> float:
    """Of the codes' frequencies, bits a token."""
    seen = codes[codes >= 0].unique(return_counts=True)[1].double()
    share = seen / seen.sum()
    return abs(float(-(share * share.log2()).sum())) if len(seen) else 0.0


def static_bits(train: Tensor, test: Tensor, codes: int) -> Tensor:
    """``(n,)``: bits of each row of ``test`` by an ideal static code.

    Lengths come from frequencies in ``train``, to each of which a half is added (Krichevsky and Trofimov): codes come that it has
    not seen.

    Args:
        train, test: ``(n, N)`` int64 below ``codes``.
    """
    seen = torch.bincount(train.flatten(), minlength=codes).double() + 0.5
    length = -(seen / seen.sum()).log2()
    return length[test].sum(1)


def compression(codes: Tensor) -> float:
    """How many times smaller LZMA makes the sequence of codes, 4 bytes each."""
    raw = codes[codes >= 0].to(torch.int32).numpy().tobytes()
    return len(raw) / len(lzma.compress(raw)) if raw else math.nan


def ngram_perplexity(train: Tensor, test: Tensor, codes: int, order: int = 2) -> float:
    """Perplexity of ``test`` rows ``(n, N)`` under n-grams of ``train`` with Witten and Bell's interpolation down to uniform."""
    counts: list[dict[tuple[int, ...], dict[int, int]]] = [{} for _ in range(order)]
    for row in train.tolist():
        for i, code in enumerate(row):
            for n in range(min(order, i + 1)):
                follow = counts[n].setdefault(tuple(row[i - n : i]), {})
                follow[code] = follow.get(code, 0) + 1
    total, seen = 0.0, 0
    for row in test.tolist():
        for i, code in enumerate(row):
            p = 1 / codes
            for n in range(min(order, i + 1)):
                after = counts[n].get(tuple(row[i - n : i]))
                if after:
                    held, kinds = sum(after.values()), len(after)
                    p = (after.get(code, 0) + kinds * p) / (held + kinds)
            total -= math.log(p)
            seen += 1
    return math.exp(total / seen)
