"""Checks of what is done to the attention of denoisers."""

from __future__ import annotations

import math
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.reference import entropy_scaling_117, sparse_videogen2_369
from benchmarks.systems.bed import CheckContext, Outcome, check
from tokensieve.testbed.diffusion import shapes

SIDES = (4, 6, 12, 16)
"""Tokens of a side, where the model was trained on 8: 0.25 to 4 times as many tokens."""
TRAINED = 8
FRAMES, SIDE, WIDTH, HEADS = 8, 12, 64, 4


@check(117)
def entropy_scaling(bed: CheckContext) -> Outcome:
    """Random attention (standard normal queries and keys) and that of the packaged denoiser on scenes of other sizes, 0.25 to 4
    times the 64 tokens of training: the mean entropy under the corrected scale is nearer to that of the training size than under
    the fixed one at every size, for both."""
    numbers: dict[str, Any] = {}
    gaps: list[tuple[float, float]] = []
    for what, rows in (("random", _random), ("trained", _trained)):
        base = rows(TRAINED, 1.0)
        for side in SIDES:
            factor = entropy_scaling_117.factor(side**2, TRAINED**2)
            fixed, scaled = abs(rows(side, 1.0) - base), abs(rows(side, factor) - base)
            gaps.append((fixed, scaled))
            numbers[f"{what}, {side**2} tokens"] = f"{fixed:.3f} to {scaled:.3f}"
    return all(scaled < fixed for fixed, scaled in gaps), numbers


def _random(side: int, factor: float) -> float:
    g = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 16, 4, side**2, 32, generator=g)
    return entropy_scaling_117.entropy(query, key, factor * 32**-0.5)


@torch.no_grad()
def _trained(side: int, factor: float) -> float:
    """Over all layers of the packaged denoiser; scenes noised to the middle of the schedule, resized to that many tokens."""
    from tokensieve.testbed.diffusion import pipeline

    pipe = pipeline.load()
    x, labels = shapes.batch("test", 0, 0, 12)
    x = torch.nn.functional.interpolate(x, (4 * side, 4 * side), mode="bilinear")
    time = torch.full((12,), 500)
    noisy = pipe.scheduler.add_noise(x, torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), time)
    held: dict[int, list[Tensor]] = {}
    hooks = []
    for i, block in enumerate(pipe.transformer.transformer_blocks):
        for part in (block.attn1.to_q, block.attn1.to_k):
            hooks.append(part.register_forward_hook(lambda m, a, out, i=i: held.setdefault(i, []).append(out)))
    pipe.transformer(noisy, timestep=time, class_labels=labels)
    for hook in hooks:
        hook.remove()
    heads = pipe.transformer.config.num_attention_heads
    pairs = [[t.unflatten(2, (heads, -1)).transpose(1, 2) for t in pair] for pair in held.values()]
    return mean(entropy_scaling_117.entropy(q, k, factor * q.shape[-1] ** -0.5) for q, k in pairs)


@check(369)
def sparse_videogen2(bed: CheckContext) -> Outcome:
    """Queries, keys and values that random projections make of a generated clip (8 frames of 12 x 12 patches in which a shape
    moves), five seeds: at 20% density the error of the output is below that of runs of neighbouring tokens chosen in the same
    way, in every seed; the mass covered meets p = 0.9; all pairs of clusters are dense attention within 1e-5. Counted pairs, not
    time: there is no kernel for blocks of different sizes."""
    errors, places, covered, exact = [], [], [], []
    for seed in range(5):
        query, key, value = _clip(seed)
        dense = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        size = dense.norm()

        def off(found: Any, dense: Tensor = dense, size: Tensor = size) -> float:
            return float((found.output - dense).norm() / size)

        clusters = (24, 48)
        errors.append(off(sparse_videogen2_369.attention(query, key, value, clusters, density=0.2)))
        places.append(off(sparse_videogen2_369.attention(query, key, value, clusters, density=0.2, by_place=True)))
        covered.append(sparse_videogen2_369.attention(query, key, value, clusters, top_p=0.9).covered)
        exact.append(
            float((sparse_videogen2_369.attention(query, key, value, clusters, top_p=1.0).output - dense).abs().max())
        )
    numbers = {
        "error at 20%": round(mean(errors), 4), "of runs": round(mean(places), 4), "least covered": round(min(covered), 4),
        "dense within": f"{max(exact):.1e}",
    }  # fmt: skip
    better = all(a < b for a, b in zip(errors, places, strict=True))
    return better and min(covered) >= 0.9 and max(exact) < 1e-5, numbers


def _clip(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(1, H, N, d)`` three times: patches of 4 pixels of a shape that moves over a plain ground."""
    g = torch.Generator().manual_seed(seed)
    label = torch.tensor([seed % len(shapes.CLASSES)])
    image = torch.nn.functional.interpolate(shapes.draw(label, g), (4 * SIDE, 4 * SIDE), mode="bilinear")
    frames = torch.cat([image.roll((2 * i, 3 * i), (2, 3)) for i in range(FRAMES)])
    frames = frames + 0.05 * torch.randn(frames.shape, generator=g)
    patches = frames.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(1, FRAMES * SIDE**2, -1)
    place = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (FRAMES, SIDE, SIDE)), indexing="ij"), -1)
    x = torch.cat([patches, place.reshape(1, -1, 3)], 2)
    made = []
    for _ in range(3):
        project = torch.randn(x.shape[2], WIDTH, generator=g) / math.sqrt(x.shape[2])
        made.append(2 * (x @ project).unflatten(2, (HEADS, -1)).transpose(1, 2))
    return made[0], made[1], made[2]
