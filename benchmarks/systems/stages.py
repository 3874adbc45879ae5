"""Checks of systems of several stages. Their budget is the mean over the language model's layers."""

from __future__ import annotations

from typing import Any

from benchmarks.systems.bed import Bed, Outcome, beats, check
from tokensieve.parts.budget import Keep

MEAN = {"layers": 1}


@check(287)
def star(bed: Bed) -> Outcome:
    """At 0.3 of the tokens on average: above encoder-only and above LM-only pruning of the same average."""
    n = {
        "star": bed.right("star", 0.3),
        "encoder only": bed.right("star", 0.3, site="handoff"),
        "lm only": bed.right("fastv", Keep(average=0.3), **MEAN),
    }
    return beats(n, "star", ("encoder only", "lm only")), n


@check(90)
def vscan(bed: Bed) -> Outcome:
    """At 11%: both scans beat either alone; pruning at a middle layer beats an early one at equal tokens."""
    here = {"site": "handoff"}
    n = {
        "both scans": bed.right("vscan", 64, **here),
        "global only": bed.right("vscan", 64, **here, local=0.0),
        "local only": bed.right("vscan", 64, **here, local=1.0),
        "middle layer": bed.right("fastv", 64, layers=2),
        "early layer": bed.right("fastv", 64, layers=1),
        "as a system": bed.right("vscan", 64),
    }
    return beats(n, "both scans", ("global only", "local only")) and n["middle layer"] > n["early layer"], n


@check(150)
def visiondrop(bed: Bed) -> Outcome:
    """At a mean of 200 of 576 (64 is less than the first of four layers holds): above last-text-token pruning."""
    n = {
        "visiondrop": bed.right("visiondrop", 200),
        "fastv": bed.right("fastv", Keep(average=200), **MEAN),
        "random": bed.right("random", 200),
    }
    return beats(n, "visiondrop", ("fastv",)), n


@check(305)
def flowcut(bed: Bed) -> Outcome:
    """64 of 576: above last-layer CLS top-k (agreement of neighbouring layers is not measured)."""
    n: dict[str, Any] = {
        "flowcut": bed.right("flowcut", 64),
        "last layer": bed.right("fastervlm", 64, encoder_layer=-1),
        "random": bed.right("random", 64),
    }
    return False, n


@check(10)
def aim(bed: Bed) -> Outcome:
    """At 0.3 of the tokens on average: above merging alone and above one-shot text-attention pruning."""
    n = {
        "aim": bed.right("aim", 0.3),
        "merging alone": bed.right("aim", 0.3, site="handoff"),
        "fastv": bed.right("fastv", Keep(average=0.3), **MEAN),
    }
    return beats(n, "aim", ("merging alone", "fastv")), n


@check(66)
def vflowopt(bed: Bed) -> Outcome:
    """At 10%: as a system above its first stage alone and above random (recycling is not ablated, options not tuned)."""
    n = {
        "vflowopt": bed.right("vflowopt", 58),
        "handoff only": bed.right("vflowopt", 58, site="handoff"),
        "random": bed.right("random", 58),
    }
    return beats(n, "vflowopt", ("random", "handoff only")), n


@check(53)
def mustdrop(bed: Bed) -> Outcome:
    """At 0.3 of the tokens on average: above any single stage at equal token-layers. The cache stage is not part of this."""
    n = {
        "mustdrop": bed.right("mustdrop", 0.3),
        "merging alone": bed.right("mustdrop", 0.3, site="handoff"),
        "filter alone": bed.right("fastv", Keep(average=0.3), **MEAN),
    }
    return beats(n, "mustdrop", ("merging alone", "filter alone")), n
