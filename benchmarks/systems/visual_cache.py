"""Checks of systems that evict from the cache of a vision-language model."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
from transformers import DynamicCache

import tokensieve as ts
from benchmarks.systems.bed import SEED, CheckContext, Outcome, check
from tokensieve import testbed
from tokensieve.core.method import Method
from tokensieve.methods.cache.vasparse import VASparse
from tokensieve.sites.model.compatibility import cache_argument
from tokensieve.testbed.words import COUNTS

ASKED, LATE, NEW = ("digits", "shapes"), 2, 32


def existence(count: int) -> list[tuple[Any, str, bool]]:
    """Pictures, questions how many there are of a kind, and whether there are any: half of them with none."""
    out: dict[bool, list[tuple[Any, str, bool]]] = {True: [], False: []}
    index = 0
    while min(map(len, out.values())) < count // 2:
        scene = testbed.generate(SEED, index, "test")
        for what in ASKED:
            there = any(f"{thing.kind}s" == what for thing in scene.things)
            out[there].append((scene.image, f"how many {what} are there ?", there))
        index += 1
    return out[True][: count // 2] + out[False][: count // 2]


@torch.no_grad()
def says_yes(bed: CheckContext, asked: list[tuple[Any, str, bool]], what: Method | None, keep: float) -> list[bool]:
    """Whether the first word of the answer is another number than none; entries leave in front of the prompt's last tokens."""
    none = bed.processor.tokenizer.encode(COUNTS[0], add_special_tokens=False)[-1]
    out = []
    for image, text, _ in asked:
        given = bed.processor(images=[image], text=[testbed.prompt(text)], return_tensors="pt")
        ids, cache = given["input_ids"], DynamicCache()
        stage = ts.Plan([]) if what is None else ts.Plan(ts.Stage(what, keep))
        with ts.sieve(bed.model, stage, seed=SEED):
            bed.model(input_ids=ids[:, :-LATE], pixel_values=given["pixel_values"], **cache_argument(bed.model, cache))
            for step in range(LATE):
                upto = ids.shape[1] - LATE + step
                mask = torch.ones(1, upto + 1, dtype=torch.long)
                logits = bed.model(
                    input_ids=ids[:, upto : upto + 1], attention_mask=mask, **cache_argument(bed.model, cache)
                ).logits[0, -1]
        out.append(int(logits.argmax()) != none)
    return out


@torch.no_grad()
def speed(bed: CheckContext, what: Method | None, keep: float, passes: int = 1, batch: int = 8) -> float:
    """Decoded tokens per second; ``passes`` over caches of their own for each, as contrasting two views takes."""
    scene = testbed.generate(SEED, 0, "test")
    text = [testbed.prompt("how many digits are there ?")] * batch
    given = bed.processor(images=[scene.image] * batch, text=text, padding=True, return_tensors="pt")
    stage = ts.Plan([]) if what is None else ts.Plan(ts.Stage(what, keep))
    with ts.sieve(bed.model, stage, seed=SEED):
        caches = [DynamicCache() for _ in range(passes)]
        for cache in caches:
            bed.model(**given, **cache_argument(bed.model, cache))
        held = [cache_argument(bed.model, cache) for cache in caches]
        mask, ids = given["attention_mask"], given["input_ids"][:, -1:]
        start = perf_counter()
        for _ in range(NEW):
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
            every = [bed.model(input_ids=ids, attention_mask=mask, **h).logits[:, -1] for h in held]
            ids = every[0].argmax(-1, keepdim=True)
        return batch * NEW / (perf_counter() - start)


@check(288)
def vasparse(bed: CheckContext) -> Outcome:
    """Is there any digit, any shape (asked as how many, half of the answers being none), half of the cache kept in front of the
    answer: fewer false yes than by attention alone; more tokens per second than two passes contrasted take. The contrast
    of one pass is not built."""
    asked = existence(120)
    tries: dict[str, Method | None] = {
        "vasparse": VASparse(),
        "attention only": VASparse(weight=0.0, sinks=True),
        "tova": ts.get_method("tova"),
        "full": None,
    }
    n: dict[str, Any] = {}
    for name, what in tries.items():
        said = says_yes(bed, asked, what, 0.5)
        n[f"{name}: false yes"] = round(sum(y for y, (*_, there) in zip(said, asked, strict=True) if not there) / 60, 4)
        n[f"{name}: right"] = round(sum(y == there for y, (*_, there) in zip(said, asked, strict=True)) / 120, 4)
    one, two = speed(bed, VASparse(), 0.5), speed(bed, None, 1.0, passes=2)
    n["tokens per second against two passes"] = round(one / two, 3)
    fewer = n["vasparse: false yes"] < n["attention only: false yes"]
    return fewer and one > two, n
