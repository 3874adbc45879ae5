"""Checks of the family vlm."""

from __future__ import annotations

from typing import Any

import torch

import tokensieve as ts
from benchmarks.systems.bed import INSIDE, SEED, CheckContext, Outcome, beats, check
from tokensieve.core.plan import applied


@check(380)
def visionzip(bed: CheckContext) -> Outcome:
    """At 64 of 576: above dominant-only, random and average pooling."""
    n = {
        "visionzip": bed.right("visionzip", 64),
        "dominant only": bed.right("visionzip", 64, contextual=0.0),
        "random": bed.right("random", 64),
        "pool": bed.right("pool", 64),
    }
    return beats(n, "visionzip", ("dominant only", "random", "pool")), n


@check(57)
def fastervlm(bed: CheckContext) -> Outcome:
    """At 5%: above language-model text attention and random; share of kept tokens on the object for both rankings."""
    n = {
        "fastervlm": bed.right("fastervlm", 29),
        "fastv": bed.right("fastv", 29, **INSIDE),
        "random": bed.right("random", 29),
        "on the object: cls attention": bed.on_object("fastervlm", 29),
        "on the object: text attention": bed.on_object("fastv", 29, **INSIDE),
    }
    return beats(n, "fastervlm", ("fastv", "random")), n


@check(6)
def vtc_cls(bed: CheckContext) -> Outcome:
    """At 64: the ensemble of layers at least equals the last layer alone, and exceeds text attention and random."""
    n = {
        "vtc-cls": bed.right("vtc-cls", 64),
        "last layer": bed.right("fastervlm", 64, encoder_layer=-1),
        "fastv": bed.right("fastv", 64, **INSIDE),
        "random": bed.right("random", 64),
    }
    return beats(n, "vtc-cls", ("fastv", "random"), ("last layer",)), n


@check(27)
def hiprune(bed: CheckContext) -> Outcome:
    """At 11%: above deep-layer attention top-k and random; the same code on an encoder without CLS."""
    n: dict[str, Any] = {
        "hiprune": bed.right("hiprune", 63),
        "deep layer": bed.right("fastervlm", 63, encoder_layer=-1),
        "random": bed.right("random", 63),
    }
    x = torch.randn(2, 576, 32, generator=torch.Generator().manual_seed(SEED))
    received = {i: x[..., i].softmax(-1) for i in range(-24, 0)}
    kept = ts.reduce(x, "hiprune", 63, received_attention=received, grid=(24, 24))
    n["without CLS keeps"] = kept.counts.tolist()
    return beats(n, "hiprune", ("deep layer", "random")) and kept.counts.tolist() == [63, 63], n


@check(67)
def divprune(bed: CheckContext) -> Outcome:
    """At 10%: smallest distance between kept tokens and accuracy above CLS top-k and random."""
    n = {name: bed.right(name, 58) for name in ("divprune", "fastervlm", "random")}
    near = {f"min distance: {name}": _closest(bed, name) for name in ("divprune", "fastervlm", "random")}
    far = near["min distance: divprune"] > max(near["min distance: fastervlm"], near["min distance: random"])
    return far and beats(n, "divprune", ("fastervlm", "random")), n | near


@torch.no_grad()
def _closest(bed: CheckContext, name: str) -> float:
    """Mean over images of the smallest cosine distance between two kept tokens, at the handoff."""
    values = []
    for item, kept in bed.kept(name, 58, count=20):
        unit = torch.nn.functional.normalize(bed.features(item)[kept], dim=-1)
        distance = 1 - unit @ unit.T
        values.append(float(distance[~torch.eye(len(kept), dtype=torch.bool)].min()))
    return round(sum(values) / len(values), 5)


@check(279)
def dart(bed: CheckContext) -> Outcome:
    """576 to 64: above random and attention-ranked pruning, at the same layer; under fused attention."""
    n: dict[str, Any] = {
        "dart": bed.right("dart", 64, **INSIDE),
        "random": bed.right("random", 64, site="prefill", **INSIDE),
        "fastv": bed.right("fastv", 64, **INSIDE),
        "attention": bed.model.config.text_config._attn_implementation,
    }
    return beats(n, "dart", ("random", "fastv")) and n["attention"] == "sdpa", n


@check(270)
def sparsevlm(bed: CheckContext) -> Outcome:
    """576 to 192, 128, 64 behind the last stage: above last-token pruning to each, and to each one's mean over the layers; above
    the no-recycling ablation at 64."""
    counts = (192, 128, 64)
    n = {f"sparsevlm {k}": bed.right("sparsevlm", k) for k in counts}
    n |= {f"fastv {k}": bed.right("fastv", k, **INSIDE) for k in counts}
    means = {k: ts.cost(bed.model, applied("sparsevlm", k)).mean for k in counts}
    n |= {f"mean {k}": round(mean, 1) for k, mean in means.items()}
    n |= {f"fastv, mean {k}": bed.right("fastv", ts.Keep(average=means[k]), **INSIDE) for k in counts}
    n["no recycling 64"] = bed.right("sparsevlm", 64, recycled=0.0)
    above = all(n[f"sparsevlm {k}"] > max(n[f"fastv {k}"], n[f"fastv, mean {k}"]) for k in counts)
    return above and n["sparsevlm 64"] > n["no recycling 64"], n


@check(323)
def gap(bed: CheckContext) -> Outcome:
    """Location questions, half kept at random: original ids recover at least half of what renumbering loses."""
    n = {
        "full": bed.right("uniform", 1.0, kind="location"),
        "original": bed.right("random", 0.5, kind="location"),
        "compact": bed.right("random", 0.5, kind="location", positions="compact"),
    }
    lost = n["full"] - n["compact"]
    n["lost by renumbering"] = round(lost, 4)
    return lost > 0.02 and n["original"] - n["compact"] >= lost / 2, n


@check(357)
def ficoco(bed: CheckContext) -> Outcome:
    """Vision and language variants above ToMe and FastV at equal tokens."""
    n = {
        "vision": bed.right("ficoco", 64),
        "tome": bed.right("tome", 64),
        "language": bed.right("ficoco-l", 64, **INSIDE),
        "fastv": bed.right("fastv", 64, **INSIDE),
    }
    return n["vision"] > n["tome"] and n["language"] > n["fastv"], n
