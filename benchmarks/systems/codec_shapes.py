"""Checks of tokenizers whose tokens stand for no place: a line, and a set."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn.functional import interpolate

from benchmarks.reference import instella_95, tokenset_168
from benchmarks.systems.bed import CheckContext, Outcome, check
from benchmarks.systems.codec_bed import SEEDS, TOKENS, described, digits, kept, told, trained, whole, wins
from tokensieve.bench.codec.distortion import kernel_distance
from tokensieve.codec import quantizer

CODES, STEPS, DRAWS = 64, 400, 16
DIM = 8


@check(95)
def instella(bed: CheckContext) -> Outcome:
    """Digits brought to 16 x 16, 16 tokens in a line, equal steps, three seeds: error of 14 sign bits below one-hot codes of
    1,024 (10 bits; revived, default); one-hot codes of 16,384 have as many bits; the least used bit's entropy above 0.9."""
    train, test = (interpolate(images, (16, 16), mode="bilinear") for images in digits()[:2])
    published = {"kmeans": False, "revive": 0.0}
    vq = {"name": "vq", "dim": DIM}
    arms = {
        "binary": {"name": "lfq", "bits": 14, "dim": DIM}, "one-hot, 10 bits": vq | {"codes": 1024},
        "one-hot, 10 bits, default": vq | {"codes": 1024} | published, "one-hot, 14 bits": vq | {"codes": 16384},
    }  # fmt: skip

    def arm(options: dict[str, Any], seed: int) -> dict[str, float]:
        model = instella_95.OneDimensional(16, 1, 4, TOKENS, quantizer(**options))
        trained(model, lambda rows, draw: model.loss(train[rows], draw), seed, STEPS, rate=2e-3)
        with torch.no_grad():
            one, two = model.encode(train), model.encode(test)
            error = float((model.decode(two.values) - test).square().mean())
        return described(torch.cat([one.indices, two.indices]), two.levels, error)

    rows = {name: [kept(f"95 {name}", s, partial(arm, o, s), instella_95) for s in SEEDS] for name, o in arms.items()}
    n: dict[str, Any] = {f"{name} {key}": told(row, key) for name, row in rows.items() for key in ("mse", "codes")}
    n["least bit's entropy"] = told(rows["binary"], "least bit", 3)
    below = [wins(n["binary mse"], n[f"{name} mse"]) for name in arms if name != "binary"]
    n["seeds below each one-hot"] = below
    return whole(rows["binary"]) and below[:2] == [len(SEEDS)] * 2 and min(n["least bit's entropy"]) > 0.9, n


@check(168)
def token_set(bed: CheckContext) -> Outcome:
    """Sets of 16 codes of digits, three seeds: counts and back exact, decoded digits the same in another order (within 1e-4),
    every total of a diffusion of counts 16; kernel distance x 1000 of pixels of its samples to held-out digits below that of the
    same diffusion without the constraint."""

    def arm(seed: int) -> dict[str, Any]:
        train, test, _, _ = digits()
        model = instella_95.OneDimensional(8, 1, 2, TOKENS, quantizer("set", codes=CODES, dim=DIM), ordered=False)
        trained(model, lambda rows, draw: model.loss(train[rows], draw), seed, STEPS, rate=2e-3)
        q: Any = model.quantizer
        with torch.no_grad():
            codes = model.encode(test)
            order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(seed))
            back, other = model.decode(codes.values), model.decode(codes.values[:, order])
            counts, known = q.counts(codes.indices), q.counts(model.encode(train).indices)
        out = described(codes.indices, codes.levels, float((back - test).square().mean()))
        out |= {"round trip": bool(torch.equal(q.counts(q.members(counts)), counts))}
        out["order"] = float((back - other).abs().max())
        for name, fixed in (("fixed", True), ("free", False)):
            sampler = tokenset_168.FixedSum(CODES, TOKENS, fixed)
            trained(sampler, lambda rows, draw: sampler.loss(known[rows], draw), seed, 2000, 64, 2e-3)  # noqa: B023
            draw = torch.Generator().manual_seed(seed)
            *between, drawn = sampler.sample(len(test), DRAWS, draw)
            totals = torch.stack([*between, drawn]).sum(2)
            out |= {f"{name} totals": [int(totals.min()), int(totals.max())]}
            with torch.no_grad():
                made = torch.cat([model.decode(q.lookup(q.members(row[None]))) for row in drawn if int(row.sum())])
            out[f"{name} distance"] = kernel_distance(test.flatten(1)[: len(made)], made.flatten(1))[0]
        return out

    rows = [kept("168", seed, partial(arm, seed), instella_95, tokenset_168) for seed in SEEDS]
    keys = ("mse", "codes", "order", "fixed distance", "free distance")
    n: dict[str, Any] = {key: told(rows, key) for key in keys}
    n |= {key: [row[key] for row in rows] for key in ("round trip", "fixed totals", "free totals")}
    q: Any = quantizer("set", codes=CODES, dim=DIM)
    n |= {"bits of a set": round(q.set_bits(TOKENS), 1), "bits of a sequence": TOKENS * q.bits}
    exact = all(n["round trip"]) and max(n["order"]) < 1e-4 and n["fixed totals"] == [[TOKENS, TOKENS]] * len(SEEDS)
    return whole(rows) and exact and wins(n["fixed distance"], n["free distance"]) == len(SEEDS), n
