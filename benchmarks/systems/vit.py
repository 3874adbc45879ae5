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
