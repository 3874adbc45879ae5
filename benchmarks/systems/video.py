"""Checks of video methods: accuracy on clips of the testbed's second model, exact sums, what a still clip becomes."""

from __future__ import annotations

from typing import Any

import torch

import tokensieve as ts
from benchmarks import several
from benchmarks.systems.bed import SEED, CheckContext, Outcome, beats, check
from tokensieve.core.plan import descent
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.methods.prefill.text_attention import TextRanking
from tokensieve.methods.video.framefusion import SHALLOW, FrameFusion
from tokensieve.methods.video.lftr import LFTR
from tokensieve.testbed import ClipQuestion, Several
from tokensieve.testbed.onevision import TOKENS

FRAMES, PLACES, DIM = 8, 36, 32


def clip(still: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A clip of random tokens, the same in every frame or changing a little, and the frame of each token."""
    draw = torch.Generator().manual_seed(SEED)
    first = torch.randn(PLACES, DIM, generator=draw)
    change = torch.zeros(FRAMES, PLACES, DIM) if still else torch.randn(FRAMES, PLACES, DIM, generator=draw).cumsum(0)
    return (first + 0.3 * change).flatten(0, 1)[None], torch.arange(FRAMES).repeat_interleave(PLACES)[None]


def brief(number: int = 24) -> list[Several]:
    """Which way a thing goes that is in three or four of the eight frames: the fewest that a question needs."""
    asked = several.items("clip", 60, SEED)
    short = [i for i in asked if i.kind == "direction" and isinstance(i.question, ClipQuestion)]
    return [i for i in short if len(i.question.frames) <= 4][:number]  # type: ignore[attr-defined]


@check(199)
def lftr(bed: CheckContext) -> Outcome:
    """Clips at 16x fewer tokens: above uniform subsampling and average pooling; a static clip gives every frame one weight."""
    x, frame = clip(True)
    weights = LFTR().temporal_weights(Signals(x, frame=frame))
    keep = TOKENS["clip"] // 16
    n = {name: bed.several.right("clip", name, keep) for name in ("lftr", "uniform", "pool")}
    n |= {"all tokens": bed.several.right("clip", "uniform", 1.0), "still: weights": len(set(weights[0].tolist()))}
    return beats(n, "lftr", ("uniform", "pool")) and n["still: weights"] == 1, n


@check(370)
def quota(bed: CheckContext) -> Outcome:
    """Clips with three or four relevant frames (none has one), 144 tokens: beside equal quotas; quotas sum to the budget."""
    items, keep = brief(), 144
    flags = {
        "quota": bed.several.flags(items, "quota", keep),
        "equal quotas": bed.several.flags(items, "quota", keep, power=0.0),
        "all tokens": bed.several.flags(items, "uniform", 1.0),
    }
    n: dict[str, Any] = {name: round(sum(ok) / len(items), 4) for name, ok in flags.items()}
    n |= {"questions": len(items), "sum": bed.several.kept(items[0], "quota", keep)}
    return False, n


@check(397)
def framefusion(bed: CheckContext) -> Outcome:
    """Clips at 30% of the tokens on average: above pruning alone and merging alone; a static clip merges to one frame."""
    keep = round(0.3 * TOKENS["clip"])
    x, frame = clip(True)
    r = ts.reduce(x, "framefusion", PLACES, frame=frame, received_attention=torch.ones(1, x.shape[1]) / x.shape[1])
    merging = ts.Plan(Stage(FrameFusion(cosine_threshold=-1.0), keep))
    n = {
        "framefusion": bed.several.right("clip", "framefusion", ts.Keep(average=keep)),
        "pruning": bed.several.right("clip", ts.Plan(descent(TextRanking(), ts.Keep(average=keep), (SHALLOW,)))),
        "merging": bed.several.right("clip", merging),
        "all tokens": bed.several.right("clip", "uniform", 1.0),
        "still: off one frame by": round(float((r.apply(x)[0] - x[0, :PLACES]).abs().max()), 6),
    }
    still = n["still: off one frame by"] < 1e-5 and r.m == PLACES
    return still and beats(n, "framefusion", ("pruning", "merging")), n


@check(139)
def centerclip(bed: CheckContext) -> Outcome:
    """Half of a clip's tokens: accuracy beside uniform sampling, repeated runs identical. No text-video retrieval here."""
    x, frame = clip(False)
    runs = [ts.reduce(x, "centerclip", 0.5, frame=frame).kept[0] for _ in range(3)]
    n = {
        "centerclip": bed.several.right("clip", "centerclip", 0.5),
        "uniform": bed.several.right("clip", "uniform", 0.5),
        "identical": all(torch.equal(runs[0], r) for r in runs),
        "ascending": bool((runs[0].diff() > 0).all()),
    }
    return False, n
