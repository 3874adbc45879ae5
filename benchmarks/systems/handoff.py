"""Checks of methods that choose in front of the language model, by attention, crops and likeness to the text."""

from __future__ import annotations

from typing import Any

import torch
from scipy.stats import spearmanr

import tokensieve as ts
from benchmarks.systems.bed import SEED, Bed, Outcome, beats, check


def cropped(side: int = 12) -> tuple[torch.Tensor, dict[str, Any]]:
    """A thumbnail and four crops of ``side`` x ``side`` tokens, random but for attention: the last crop holds the object."""
    draw = torch.Generator().manual_seed(SEED)
    steps = (torch.arange(side) + 0.5) / side
    whole = torch.cartesian_prod(steps, steps)
    corners = torch.tensor([[0.0, 0.0], [0.0, 0.5], [0.5, 0.0], [0.5, 0.5]])
    spot = torch.cat([whole, *(whole / 2 + corner for corner in corners)])
    crop = torch.arange(5).repeat_interleave(side * side)
    heat = torch.exp(-((spot - 0.75).square().sum(1)) / 0.02) + 0.1 * torch.rand(len(spot), generator=draw)
    attention = torch.cat([part / part.sum() for part in heat.split(side * side)])
    x = torch.randn(1, len(spot), 32, generator=draw)
    return x, {"crop": crop[None], "spot": spot[None], "cls_attention": {-2: attention[None], 0: attention[None]}}


def per_crop(name: str, keep: int) -> list[int]:
    x, given = cropped()
    kept = ts.reduce(x, name, keep, **given).kept[0]
    return torch.bincount(given["crop"][0][kept], minlength=5).tolist()


@check(0)
def globalcom2(bed: Bed) -> Outcome:
    """Synthetic thumbnail and crops (no anyres model here): the total is exact, the crop with the object gets most."""
    counts = per_crop("globalcom2", 180)
    return False, {"kept per crop of 180": counts, "object's crop first": counts[4] == max(counts[1:])}


@check(52)
def hired(bed: Bed) -> Outcome:
    """Synthetic thumbnail and crops (no anyres model here): the total is exact, the crop with the object gets most."""
    counts = per_crop("hired", 144)
    return False, {"kept per crop of 144": counts, "object's crop first": counts[4] == max(counts[1:])}


@check(8)
def token_correlation(bed: Bed) -> Outcome:
    """Synthetic page of four crops from blank to dense: kept count against cells with glyphs, Spearman above 0.8."""
    draw = torch.Generator().manual_seed(SEED)
    x, given = cropped()
    dense = torch.tensor([0.5, 0.0, 0.25, 0.6, 0.95])
    glyph = torch.rand(x.shape[1], generator=draw) < dense[given["crop"][0]]
    page = torch.where(glyph[:, None], torch.randn(x.shape[1], 32, generator=draw), torch.ones(32))
    kept = ts.reduce(page[None], "token-correlation", 180, **given, keys=page[None]).kept[0]
    counts = torch.bincount(given["crop"][0][kept], minlength=5)[1:]
    glyphs = torch.bincount(given["crop"][0], weights=glyph.float(), minlength=5)[1:]
    rank = round(float(spearmanr(counts, glyphs).statistic), 3)
    return False, {"spearman": rank, "kept per crop": counts.tolist(), "glyph cells": glyphs.int().tolist()}


@check(50)
def fopru(bed: Bed) -> Outcome:
    """At 25%: ranking above random; whole rows above ranking on questions about written words; kept indices ascend."""
    n: dict[str, Any] = {
        "rank": bed.right("fopru", 144),
        "random": bed.right("random", 144),
        "rank, reading": bed.right("fopru", 144, kind="reading"),
        "rows, reading": bed.right("fopru", 144, kind="reading", mode="row"),
    }
    n["ascending"] = all(bool((kept.diff() > 0).all()) for _, kept in bed.kept("fopru", 144, count=10, mode="row"))
    return n["rank"] > n["random"] and n["rows, reading"] > n["rank, reading"] and n["ascending"], n


@check(316)
def cls_inflection(bed: Bed) -> Outcome:
    """Mean kept share below 30%; the count follows the number of things (Spearman above 0.3); above a fixed budget."""
    site = {"site": "handoff"}
    counts, things = zip(*bed.counts("cls-inflection", 575, **site), strict=True)
    mean = bed.left("cls-inflection", 575, **site)
    n = {
        "kept share": round(mean / 576, 3),
        "spearman": round(float(spearmanr(counts, things).statistic), 3),
        "by inflection": bed.right("cls-inflection", 575, **site),
        "fixed at the same mean": bed.right("fastervlm", max(round(mean), 1)),
    }
    return n["kept share"] < 0.3 and n["spearman"] > 0.3 and n["by inflection"] > n["fixed at the same mean"], n


@check(322)
def simignore(bed: Bed) -> Outcome:
    """192 of 576: above random."""
    n = {"simignore": bed.right("simignore", 192), "random": bed.right("random", 192)}
    return beats(n, "simignore", ("random",)), n


@check(373)
def trim(bed: Bed) -> Outcome:
    """Kept share below 30%; above random of the same mean size on the same prompts, and above the same without the appended
    token."""
    mean = bed.left("trim", 575)
    n = {
        "kept share": round(mean / 576, 3),
        "trim": bed.right("trim", 575),
        "random": bed.right("random", max(round(mean), 1)),
        "nothing appended": bed.right("trim", 575, appended=False),
    }
    return n["kept share"] < 0.3 and beats(n, "trim", ("random", "nothing appended")), n
