"""Usage: how much of a codebook is used, of each component and of all together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Usage:
    """What codes say of their codebook.

    Attributes:
        tokens: how many tokens were counted.
        distinct: how many different codes they have.
        entropy: of the codes' frequencies, bits.
        perplexity: ``2 ** entropy``: as many codes, used equally often, have this entropy.
        dead: share of all codes that no token has; of 2^40 codes nearly all, always.
        parts: the same of each component; empty for a component itself.
    """

    tokens: int
    distinct: int
    entropy: float
    perplexity: float
    dead: float
    parts: tuple[Usage, ...] = ()


def usage(indices: Tensor, levels: Sequence[int]) -> Usage:
    """The usage of indices ``(..., C)`` int64; tokens whose indices are -1 are passed over.

    Args:
        levels: codes of each of the C components.
    """
    rows = indices.reshape(-1, indices.shape[-1])
    rows = rows[(rows >= 0).all(1)]
    parts = tuple(_one(rows[:, [i]], levels[i]) for i in range(len(levels)))
    whole = _one(rows, math.prod(levels))
    return Usage(whole.tokens, whole.distinct, whole.entropy, whole.perplexity, whole.dead, parts)


def _one(rows: Tensor, codes: int) -> Usage:
    if not len(rows):
        return Usage(0, 0, 0.0, 0.0, 1.0)
    seen = torch.unique(rows, dim=0, return_counts=True)[1] if rows.shape[1] > 1 else rows.flatten().bincount()
    share = seen[seen > 0].double() / len(rows)
    entropy = abs(float(-(share * share.log2()).sum()))
    return Usage(len(rows), len(share), entropy, 2**entropy, 1 - len(share) / codes)
