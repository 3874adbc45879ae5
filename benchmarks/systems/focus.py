"""Checks of systems that change what a layer computes, and of tokens that come back between layers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

import tokensieve as ts
from benchmarks.systems.bed import INSIDE, SEED, CheckContext, Outcome, beats, check
from benchmarks.systems.inside import calibration
from tokensieve import testbed
from tokensieve.core.focus import Focus
from tokensieve.core.plan import Plan, plan
from tokensieve.core.stage import Stage
from tokensieve.methods.focus.yopo import YOPO
from tokensieve.methods.multistage.lvlm_csp import Scatter
from tokensieve.methods.prefill.corematching import CoreMatching
from tokensieve.parts.budget import flops
from tokensieve.planner import heads

TEXT = 12


def visual(bed: CheckContext, made: Plan) -> float:
    """Prefill FLOPs beyond those of the text alone, as a share of the full ones; what is hidden is not counted."""
    cost, language = ts.cost(bed.model, made, text=TEXT), bed.model.config.text_config
    text = language.num_hidden_layers * flops.of_layer(language, TEXT)
    return round((cost.seen_flops - text) / (cost.full_flops - text), 4)


def skipping(layers: tuple[int, ...], depth: int) -> list[Stage]:
    """One visual token in these layers, all of them in the others."""
    out, gone = [], False
    for i in range(depth):
        if i in layers and not gone:
            out.append(Stage(YOPO(), 1, site="prefill" if i else "handoff", layers=(i,) if i else None))
        elif i not in layers and gone:
            out.append(Stage(Scatter(), 1.0, layers=(i,)))
        gone = i in layers
    return out


@check(15)
def yopo(bed: CheckContext) -> Outcome:
    """5 x 5 neighbours, half of the heads off, vision skipped in the last half of the layers: counted visual FLOPs (hidden pairs
    not counted; kernels here compute them) fall by over 70% and under 2 points are lost; equally many random heads, and equally
    many random layers, lose more."""
    language = bed.model.config.text_config
    depth, count = language.num_hidden_layers, language.num_attention_heads
    made = heads.yopo(bed.model, calibration(bed))
    draw = torch.Generator().manual_seed(SEED)
    rest = [torch.randperm(count, generator=draw)[: count // 2].tolist() for _ in range(depth)]
    last = tuple(range(depth // 2, depth))
    other = [layers for layers in combinations(range(depth), depth // 2) if layers != last]
    layers = other[int(torch.randint(len(other), (1,), generator=draw))]
    off = {s.layers[0]: s.method.off for s in made.stages if s.site == "focus" and s.layers}
    kept = [i for i in range(depth) if i not in layers]
    limited = [Stage(YOPO(off[j]), 25, site="focus", layers=(i,)) for i, j in zip(kept, sorted(off), strict=True)]
    n: dict[str, Any] = {
        "visual FLOPs": visual(bed, made),
        "yopo": bed.right(made, None),
        "random heads": bed.right(heads.limited(bed.model, rest, 25, 0.5), None),
        "random layers": bed.right(Plan([*limited, *skipping(layers, depth)]), None),
        "full": bed.right("uniform", 1.0),
        "layers skipped at random": list(layers),
    }
    few = n["visual FLOPs"] < 0.3 and n["full"] - n["yopo"] < 0.02
    return few and beats(n, "yopo", ("random heads", "random layers")), n


@check(381)
def lvlm_csp(bed: CheckContext) -> Outcome:
    """The largest mean that leaves 35% of the image-token FLOPs: above FastV at equal FLOPs; after scattering, the tokens are the
    original ones, in place (accuracy; there is no mask head)."""
    tokens = max(k for k in range(170, 576) if visual(bed, plan("lvlm-csp", k)) <= 0.35)
    made = plan("lvlm-csp", tokens)
    cost = ts.cost(bed.model, made, text=TEXT)
    equal = Plan(ts.stage("fastv", ts.Keep(flops=cost.flops / cost.full_flops), **INSIDE))
    with ts.sieve(bed.model, made) as s:
        item = bed.items[0]
        testbed.answers(bed.model, bed.processor, [item.image], [item.question.text])
    assert s.last is not None
    n: dict[str, Any] = {
        "lvlm-csp": bed.right(made, None),
        "fastv": bed.right(equal, None),
        "image-token FLOPs": visual(bed, made),
        "image-token FLOPs: fastv": visual(bed, equal),
        "tokens per layer": s.last.layer_tokens,
        "scattered to their places": bool(s.last.stages[1].reduction.is_identity),
    }
    return n["scattered to their places"] and beats(n, "lvlm-csp", ("fastv",)), n


@dataclass(frozen=True)
class RandomNeurons(CoreMatching):
    """Equally many neurons, drawn."""

    def focus(self, s: ts.Signals, keep: int | float) -> Focus:
        assert s.text_neurons is not None
        draw = torch.rand(s.text_neurons.shape[2], generator=torch.Generator().manual_seed(SEED))
        order = draw.argsort()[: round(keep * len(draw))]
        chosen = torch.zeros(s.batch, len(draw), dtype=torch.bool)
        chosen[:, order] = True
        return Focus(neurons=chosen)


@check(300)
def corematching(bed: CheckContext) -> Outcome:
    """Core tokens at the knee's count beat random tokens; while decoding, a feed-forward network of 40% core neurons beats one of
    equally many random neurons. The first word of an answer comes from the prompt's own pass, which neurons do not limit."""
    sizes = [count for count, _ in bed.counts("corematching", 575, scenes=30, **INSIDE)]
    mean = round(sum(sizes) / len(sizes))
    n: dict[str, Any] = {
        "tokens": mean,
        "corematching": bed.right("corematching", 575, **INSIDE),
        "random": bed.right("random", mean, site="prefill", **INSIDE),
        "core neurons": bed.right("corematching", 0.4, site="focus"),
        "random neurons": bed.right(Plan(Stage(RandomNeurons(), 0.4, site="focus")), None),
        "all neurons": bed.right("uniform", 1.0),
    }
    return beats(n, "corematching", ("random",)) and beats(n, "core neurons", ("random neurons",)), n


@check(55)
def vmtc(bed: CheckContext) -> Outcome:
    """VMTC at 192, alone and with CMAI (each text token sees half of what is left), beside spatial downsampling of equal count.
    Compliance with output formats is not measured, and so nothing is shown: the testbed's model knows no such instructions."""
    both = Plan([ts.stage("vmtc", 192), ts.stage("cmai", 0.5)])
    n = {
        "vmtc": bed.right("vmtc", 192),
        "vmtc and cmai": bed.right(both, None),
        "cmai": bed.right("cmai", 0.5),
        "pool": bed.right("pool", 192),
        "full": bed.right("uniform", 1.0),
    }
    return False, n
