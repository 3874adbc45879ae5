"""Checks of video methods. No video model is trained here, so they are of arrays: exact sums, and what a still clip becomes."""

from __future__ import annotations

import torch

import tokensieve as ts
from benchmarks.systems.bed import SEED, Bed, Outcome, check
from tokensieve.methods.video.lftr import LFTR
from tokensieve.signals import Signals

FRAMES, PLACES, DIM = 8, 36, 32


def clip(still: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A clip of random tokens, the same in every frame or changing a little, and the frame of each token."""
    draw = torch.Generator().manual_seed(SEED)
    first = torch.randn(PLACES, DIM, generator=draw)
    change = torch.zeros(FRAMES, PLACES, DIM) if still else torch.randn(FRAMES, PLACES, DIM, generator=draw).cumsum(0)
    return (first + 0.3 * change).flatten(0, 1)[None], torch.arange(FRAMES).repeat_interleave(PLACES)[None]


def per_frame(name: str, keep: int, **given: torch.Tensor) -> list[int]:
    """How many tokens of each frame of a moving clip are kept."""
    x, frame = clip(False)
    kept = ts.reduce(x, name, keep, frame=frame, **given).kept[0]
    return torch.bincount(frame[0][kept], minlength=FRAMES).tolist()


@check(199)
def lftr(bed: Bed) -> Outcome:
    """16x fewer tokens: a static clip gives every frame the same weight. No trained video model: no accuracy."""
    x, frame = clip(True)
    weights = LFTR().temporal_weights(Signals(x, frame=frame))
    kept = per_frame("lftr", FRAMES * PLACES // 16)
    return False, {
        "still: distinct weights": len(set(weights[0].tolist())),
        "kept of 288": sum(kept),
        "per frame": kept,
    }


@check(370)
def quota(bed: Bed) -> Outcome:
    """Quotas follow a frame's relevance and sum exactly to the budget. No trained video model: no accuracy."""
    _, frame = clip(False)
    kept = per_frame("quota", 72, relevance=0.2 + 0.7 * (frame == 5))
    return False, {"kept per frame": kept, "sum": sum(kept), "relevant frame first": kept[5] == max(kept)}


@check(397)
def framefusion(bed: Bed) -> Outcome:
    """A static clip merges to one frame's tokens. No trained video model: no accuracy."""
    x, frame = clip(True)
    r = ts.reduce(x, "framefusion", PLACES, frame=frame, received_attention=torch.ones(1, x.shape[1]) / x.shape[1])
    apart = float((r.apply(x)[0] - x[0, :PLACES]).abs().max())
    return False, {"tokens": r.m, "largest difference from one frame": round(apart, 6)}


@check(139)
def centerclip(bed: Bed) -> Outcome:
    """Half the tokens: repeated runs are identical, centres stand in order. No trained video model: no recall."""
    x, frame = clip(False)
    runs = [ts.reduce(x, "centerclip", 0.5, frame=frame).kept[0] for _ in range(3)]
    same = all(torch.equal(runs[0], r) for r in runs)
    return False, {"identical": same, "ascending": bool((runs[0].diff() > 0).all()), "kept": len(runs[0])}
