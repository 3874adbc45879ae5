"""Checks of systems of several stages. Their budget is the mean over the language model's layers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

import tokensieve as ts
from benchmarks.systems.bed import CheckContext, Outcome, beats, check
from tokensieve import testbed
from tokensieve.methods.multistage.mustdrop import MustDrop
from tokensieve.parts.budget import Keep
from tokensieve.sites.model.compatibility import cache_argument

MEAN = {"layers": 1}


@check(287)
def star(bed: CheckContext) -> Outcome:
    """At 0.3 of the tokens on average: above encoder-only and above LM-only pruning of the same average."""
    n = {
        "star": bed.right("star", 0.3),
        "encoder only": bed.right("star", 0.3, site="handoff"),
        "lm only": bed.right("fastv", Keep(average=0.3), **MEAN),
    }
    return beats(n, "star", ("encoder only", "lm only")), n


@check(90)
def vscan(bed: CheckContext) -> Outcome:
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
def visiondrop(bed: CheckContext) -> Outcome:
    """At a mean of 200 of 576 (64 is less than the first of four layers holds): above last-text-token pruning."""
    n = {
        "visiondrop": bed.right("visiondrop", 200),
        "fastv": bed.right("fastv", Keep(average=200), **MEAN),
        "random": bed.right("random", 200),
    }
    return beats(n, "visiondrop", ("fastv",)), n


@check(305)
def flowcut(bed: CheckContext) -> Outcome:
    """64 of 576: above last-layer CLS top-k (agreement of neighbouring layers is not measured)."""
    n: dict[str, Any] = {
        "flowcut": bed.right("flowcut", 64),
        "last layer": bed.right("fastervlm", 64, encoder_layer=-1),
        "random": bed.right("random", 64),
    }
    return False, n


@check(10)
def aim(bed: CheckContext) -> Outcome:
    """At 0.3 of the tokens on average: above merging alone and above one-shot text-attention pruning."""
    n = {
        "aim": bed.right("aim", 0.3),
        "merging alone": bed.right("aim", 0.3, site="handoff"),
        "fastv": bed.right("fastv", Keep(average=0.3), **MEAN),
    }
    return beats(n, "aim", ("merging alone", "fastv")), n


@check(66)
def vflowopt(bed: CheckContext) -> Outcome:
    """At 10%: as a system above its first stage alone and above random (recycling is not ablated, options not tuned)."""
    n = {
        "vflowopt": bed.right("vflowopt", 58),
        "handoff only": bed.right("vflowopt", 58, site="handoff"),
        "random": bed.right("random", 58),
    }
    return beats(n, "vflowopt", ("random", "handoff only")), n


def min_kept(bed: CheckContext, keep: float, share: float) -> bool:
    """Whether the image's tokens of highest CLS attention are there behind the last stage in front of the cache's."""
    for item in bed.items[::40]:
        asked = ([item.image], [item.question.text])
        with ts.sieve(bed.model, "fastervlm", keep=575, scores=True) as s:
            testbed.answers(bed.model, bed.processor, *asked)
        assert s.last is not None
        assert s.last.stages[0].score is not None
        cls = s.last.stages[0].score[0]
        with ts.sieve(bed.model, "mustdrop", keep=keep) as s:
            testbed.answers(bed.model, bed.processor, *asked)
        assert s.last is not None
        kept = s.last.stages[-1].reduction.kept[0].tolist()
        if not set(cls.topk(int(share * len(kept) + 0.5)).indices.tolist()) <= set(kept):
            return False
    return True


def most_held(bed: CheckContext, keep: float, new: int = 12) -> list[int]:
    """The most entries of an image's prompt and answer that any layer holds, behind the prompt and each decoded token, beside
    the prompt's text."""
    item, cache, sizes = bed.items[0], DynamicCache(), []
    text = testbed.prompt(item.question.text)
    inputs = bed.processor(images=[item.image], text=[text], return_tensors="pt")
    words = int((inputs["input_ids"] != bed.model.config.image_token_id).sum())

    def note(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        sizes.append(max(layer.places.shape[2] + layer.columns.shape[1] for layer in cache.layers) - words)
        return scores

    with ts.sieve(bed.model, "mustdrop", keep=keep), torch.no_grad():
        bed.model.generate(
            **inputs,
            **cache_argument(bed.model, cache),
            logits_processor=[note],
            do_sample=False,
            min_new_tokens=new,
            max_new_tokens=new,
        )
    return sizes


@check(53)
def mustdrop(bed: CheckContext) -> Outcome:
    """At 10% of the tokens on average: above merging alone; at 30%, the least that they reach being over 25%, above filtering
    alone and merging alone. Protected tokens survive prefill; no layer's cache grows beyond the budget and the prompt's text."""
    n: dict[str, Any] = {
        "mustdrop": bed.right("mustdrop", 0.1),
        "merging alone": bed.right("mustdrop", 0.1, site="handoff"),
        "mustdrop at 0.3": bed.right("mustdrop", 0.3),
        "merging alone at 0.3": bed.right("mustdrop", 0.3, site="handoff"),
        "filter alone at 0.3": bed.right("fastv", Keep(average=0.3), **MEAN),
        "cache alone, whole prefill": bed.right("mustdrop-c", 0.1, every=1),
        "protected survive": min_kept(bed, 0.1, MustDrop().protect),
        "entries beside the prompt's text, token by token": most_held(bed, 0.1),
    }
    shown = beats(n, "mustdrop", ("merging alone",))
    shown &= beats(n, "mustdrop at 0.3", ("merging alone at 0.3", "filter alone at 0.3"))
    bounded = max(n["entries beside the prompt's text, token by token"]) <= round(0.1 * 576)
    return shown and n["protected survive"] and bounded, n


@check(141)
def catp(bed: CheckContext) -> Outcome:
    """Pairs of pictures in place of worked examples, which the testbed's models were not taught: 78% of visual tokens removed
    on average over layers, above random removal, and above last-text attention that ends with as few behind a first layer
    that sees all."""
    keep, depth = 0.22, 4
    end = (depth * keep - 2 * keep) / (depth - 1)
    n = {
        "catp": bed.several.right("pair", "catp", keep),
        "last text": bed.several.right("pair", "fastv", end, **MEAN),
        "random": bed.several.right("pair", "random", keep),
        "all tokens": bed.several.right("pair", "uniform", 1.0),
    }
    return beats(n, "catp", ("last text", "random")), n
