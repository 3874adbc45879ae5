"""Checks of methods that choose in front of the language model, by attention, crops and likeness to the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import spearmanr

import tokensieve as ts
from benchmarks.systems.bed import SEED, CheckContext, Outcome, beats, check
from tokensieve.core.method import Method
from tokensieve.core.needs import CLSAttention, Need
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import budget, score, select
from tokensieve.parts.score import crops
from tokensieve.testbed.onevision import TOKENS

KINDS = ("identity", "colour", "location", "reading")


@dataclass(frozen=True)
class EqualShare(Method):
    """What crops are compared with: each keeps the same, by its own CLS attention.

    ``thumbnail`` is the thumbnail's share of the budget (None: that of its size); ``drawn``: tokens are drawn, not ranked.
    """

    thumbnail: float | None = None
    drawn: bool = False

    @property
    def needs(self) -> tuple[Need, ...]:
        return (CLSAttention(),)

    def reduce(self, s: Signals, keep: torch.Tensor) -> Reduction:
        group, number = crops.of(s)
        held = select.group_sizes(group, s.valid, number)
        weight = held.double()
        weight[:, -1] = 0
        if self.thumbnail is not None:
            rest = held[:, 1:-1].sum(1).double()
            weight[:, 0] = rest * self.thumbnail / (1 - self.thumbnail)
        rank = score.attention(s, self.needs[0])
        rank = select.drawn(rank, s.noise()) if self.drawn else rank
        return Reduction.keep(select.top_of_each(rank, budget.allot(keep, weight, held), group, s.valid))


@check(0)
def globalcom2(bed: CheckContext) -> Outcome:
    """Questions about one thing of a large picture, 25% of the tokens: above equal shares with CLS top-k, and above random."""
    keep = TOKENS["anyres"] // 4
    n = {
        "globalcom2": bed.several.right("anyres", "globalcom2", keep, KINDS),
        "equal shares": bed.several.right("anyres", EqualShare(), keep, KINDS),
        "random": bed.several.right("anyres", "random", keep, KINDS),
        "all tokens": bed.several.right("anyres", "uniform", 1.0, KINDS),
    }
    return beats(n, "globalcom2", ("equal shares", "random")), n


@check(52)
def hired(bed: CheckContext) -> Outcome:
    """Questions about one thing of a large picture, 20% of the tokens: above an equal split with the same top-k; exact total."""
    keep = TOKENS["anyres"] // 5
    n = {
        "hired": bed.several.right("anyres", "hired", keep, KINDS),
        "equal split": bed.several.right("anyres", EqualShare(thumbnail=0.5), keep, KINDS),
        "all tokens": bed.several.right("anyres", "uniform", 1.0, KINDS),
        "kept": bed.several.kept(bed.several.items["anyres"][0], "hired", keep),
    }
    return n["hired"] > n["equal split"] and n["kept"] == keep, n


@check(8)
def token_correlation(bed: CheckContext) -> Outcome:
    """A page of four crops from blank to dense: kept count against glyph cells, Spearman above 0.8; words above equal draws."""
    draw = torch.Generator().manual_seed(SEED)
    group = torch.arange(5).repeat_interleave(144)
    dense = torch.tensor([0.5, 0.0, 0.25, 0.6, 0.95])
    glyph = torch.rand(len(group), generator=draw) < dense[group]
    page = torch.where(glyph[:, None], torch.randn(len(group), 32, generator=draw), torch.ones(32))[None]
    spot = torch.rand(1, len(group), 2, generator=draw)
    flat = torch.full((1, len(group)), 1 / len(group))
    given = {"crop": group[None], "spot": spot, "keys": page, "cls_attention": flat}
    kept = ts.reduce(page, "token-correlation", 180, **given).kept[0]
    counts = torch.bincount(group[kept], minlength=5)[1:]
    glyphs = torch.bincount(group, weights=glyph.float(), minlength=5)[1:]
    keep = TOKENS["anyres"] // 5
    n = {
        "spearman": round(float(spearmanr(counts, glyphs).statistic), 3),
        "words": bed.several.right("anyres", "token-correlation", keep, ("reading",)),
        "words, equal draws": bed.several.right("anyres", EqualShare(drawn=True), keep, ("reading",)),
        "words, all tokens": bed.several.right("anyres", "uniform", 1.0, ("reading",)),
    }
    return n["spearman"] > 0.8 and n["words"] > n["words, equal draws"], n


@check(50)
def fopru(bed: CheckContext) -> Outcome:
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
def cls_inflection(bed: CheckContext) -> Outcome:
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
def simignore(bed: CheckContext) -> Outcome:
    """192 of 576: above random."""
    n = {"simignore": bed.right("simignore", 192), "random": bed.right("random", 192)}
    return beats(n, "simignore", ("random",)), n


@check(373)
def trim(bed: CheckContext) -> Outcome:
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
