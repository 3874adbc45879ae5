"""Checks of methods that choose tokens for what they do not share: diversity, coverage, graphs, clusters."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch.nn.functional import normalize

import tokensieve as ts
from benchmarks.systems.bed import SEED, CheckContext, Outcome, beats, check
from tokensieve.core.signals import Signals
from tokensieve.parts.merge import cluster


@check(138)
def mmtok(bed: CheckContext) -> Outcome:
    """64 and 16 of 576: not below text-only or image-only coverage, above random; greedy above 1 - 1/e of the best."""
    n: dict[str, Any] = {}
    for keep in (64, 16):
        n[f"mmtok {keep}"] = bed.right("mmtok", keep)
        n[f"text only {keep}"] = bed.right("mmtok", keep, alpha=0.0)
        n[f"image only {keep}"] = bed.right("mmtok", keep, alpha=1e6)
        n[f"random {keep}"] = bed.right("random", keep)
    draw = torch.Generator().manual_seed(SEED)
    s = Signals(torch.randn(1, 12, 8, generator=draw), text=torch.randn(1, 4, 8, generator=draw))
    method = ts.get_method("mmtok")
    every = [torch.tensor([[i in some for i in range(12)]]) for some in combinations(range(12), 3)]
    best = max(float(method.objective(s, chosen)) for chosen in every)  # type: ignore[attr-defined]
    ours = torch.zeros(1, 12, dtype=torch.bool).scatter_(1, method(s, 3).kept, True)
    n["greedy over the best"] = round(float(method.objective(s, ours)) / best, 4)  # type: ignore[attr-defined]
    shown = all(
        n[f"mmtok {k}"] >= max(n[f"text only {k}"], n[f"image only {k}"]) and n[f"mmtok {k}"] > n[f"random {k}"]
        for k in (64, 16)
    )
    return shown and n["greedy over the best"] > 0.632, n


@check(30)
def todre(bed: CheckContext) -> Outcome:
    """At 10%: covering radius below CLS top-k; above random and CLS top-k; late removal costs under a point."""
    site = {"site": "handoff"}
    n = {
        "todre": bed.right("todre", 58, **site),
        "random": bed.right("random", 58),
        "fastervlm": bed.right("fastervlm", 58),
        "with late removal": bed.right("todre", 58),
        "radius: todre": _radius(bed, "todre", **site),
        "radius: fastervlm": _radius(bed, "fastervlm"),
    }
    near = n["radius: todre"] < n["radius: fastervlm"] and n["todre"] - n["with late removal"] < 0.01
    return near and beats(n, "todre", ("random", "fastervlm")), n


@torch.no_grad()
def _radius(bed: CheckContext, name: str, **options: Any) -> float:
    """Mean over images of the largest cosine distance of a token to the nearest kept one, in front of the model."""
    values = []
    for item, kept in bed.kept(name, 58, count=20, **options):
        unit = normalize(bed.features(item), dim=-1)
        values.append(float((1 - unit @ unit[kept].T).amin(1).max()))
    return round(sum(values) / len(values), 4)


@check(303)
def greedyprune(bed: CheckContext) -> Outcome:
    """At 32: no lower than attention top-k and max-min diversity; the greedy objective against brute force on 12 tokens."""
    n: dict[str, Any] = {
        "greedyprune": bed.right("greedyprune", 32, layers=1),
        "attention top-k": bed.right("fastv", 32, layers=1),
        "max-min": bed.right("divprune", 32, site="prefill", layers=1),
    }
    draw = torch.Generator().manual_seed(SEED)
    s = Signals(torch.randn(1, 12, 4, generator=draw), text=torch.randn(1, 4, 4, generator=draw))
    method = ts.get_method("greedyprune", cosine_threshold=0.5, penalty=0.3)
    ours = torch.zeros(1, 12, dtype=torch.bool).scatter_(1, method(s, 4).kept, True)
    every = [torch.tensor([[i in some for i in range(12)]]) for some in combinations(range(12), 4)]
    n["objective: greedy"] = round(float(method.objective(s, ours)), 4)  # type: ignore[attr-defined]
    n["objective: best"] = round(max(float(method.objective(s, c)) for c in every), 4)  # type: ignore[attr-defined]
    return beats(n, "greedyprune", (), ("attention top-k", "max-min")), n


@check(339)
def g_prune(bed: CheckContext) -> Outcome:
    """At 64: above random and CLS top-k; the kept tokens touch more of 32 k-means clusters than CLS top-k's."""
    n = {name: bed.right(name, 64) for name in ("g-prune", "random", "fastervlm")}
    n |= {f"clusters: {name}": _touched(bed, name) for name in ("g-prune", "fastervlm")}
    wide = n["clusters: g-prune"] > n["clusters: fastervlm"]
    return wide and beats(n, "g-prune", ("random", "fastervlm")), n


@torch.no_grad()
def _touched(bed: CheckContext, name: str) -> float:
    """Of 32 k-means clusters of an image's tokens, how many hold a kept one, mean over images."""
    counts = []
    for item, kept in bed.kept(name, 64, count=20):
        x = bed.features(item)[None]
        every = torch.ones(1, x.shape[1], dtype=torch.bool)
        _, target = cluster.means(x, torch.tensor([32]), every, 10)
        counts.append(len(set(target[0][kept].tolist())))
    return round(sum(counts) / len(counts), 2)


@check(391)
def cluster_aggregation(bed: CheckContext) -> Outcome:
    """At 64: cluster means no lower than attention top-k, encoder-level merging and random."""
    n = {name: bed.right(name, 64) for name in ("cluster-aggregation", "fastervlm", "tome", "random")}
    return beats(n, "cluster-aggregation", (), ("fastervlm", "tome", "random")), n
