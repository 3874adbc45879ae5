"""Checks of the family vit."""

from __future__ import annotations

from typing import Any

import torch

import tokensieve as ts
from benchmarks.systems.bed import SEED, CheckContext, Outcome, beats, check


@check(62)
def token_transforming(bed: CheckContext) -> Outcome:
    """Digits ViT, no training, 40% fewer FLOPs: above bipartite merging and top-k pruning."""
    keep = 24  # equal steps from 64 to 24 over 6 layers: a mean of 40.7 of 64 tokens and CLS, about 0.6 of the FLOPs
    n = {
        "token-transforming": bed.vit_right("token-transforming", keep),
        "tome": bed.vit_right("tome", keep),
        "top-k": bed.vit_right("fastervlm", keep),
        "full": bed.vit_right("uniform", 64),
    }
    return beats(n, "token-transforming", ("tome", "top-k")), n


@check(345)
def atc(bed: CheckContext) -> Outcome:
    """Digits ViT, no training, a quarter kept: above ToMe and top-k; the cluster count exact for every M."""
    n: dict[str, Any] = {
        "atc": bed.vit_right("atc", 0.25),
        "tome": bed.vit_right("tome", 0.25),
        "top-k": bed.vit_right("fastervlm", 0.25),
    }
    x = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(SEED))
    made = [ts.reduce(x, "atc", m) for m in range(1, 65)]
    n["exact for every M"] = all(int(r.counts[0]) == m and bool((r.owner >= 0).all()) for m, r in enumerate(made, 1))
    return beats(n, "atc", ("tome", "top-k")) and n["exact for every M"], n


@check(110)
def zero_tprune(bed: CheckContext) -> Outcome:
    """Digits ViT, no training, equal steps to 40 of 64 tokens: above random, class-token attention and importance alone."""
    keep = 28
    n = {
        "zero-tprune": bed.vit_right("zero-tprune", keep),
        "importance alone": bed.vit_right("zero-tprune", keep, similar=0.0),
        "top-k": bed.vit_right("fastervlm", keep),
        "random": bed.vit_right("random", keep),
    }
    return beats(n, "zero-tprune", ("importance alone", "top-k", "random")), n


@check(275)
def token_pooling(bed: CheckContext) -> Outcome:
    """Digits ViT, 64 to 16 tokens: nearest-centre error and accuracy better than grid pooling and top-k."""
    x = torch.randn(8, 64, 32, generator=torch.Generator().manual_seed(SEED)).cumsum(1)
    error = {
        name: round(float(torch.cdist(x, ts.reduce(x, name, 16, **how).apply(x)).amin(2).square().mean()), 4)
        for name, how in {"token-pooling": {}, "pool": {"grid": (8, 8)}, "uniform": {"grid": (8, 8)}}.items()
    }
    n: dict[str, Any] = {
        "token-pooling": bed.vit_right("token-pooling", 16),
        "pool": bed.vit_right("pool", 16),
        "top-k": bed.vit_right("fastervlm", 16),
        **{f"error of {name}": value for name, value in error.items()},
    }
    least = min(error, key=error.__getitem__) == "token-pooling"
    return beats(n, "token-pooling", ("pool", "top-k")) and least, n
