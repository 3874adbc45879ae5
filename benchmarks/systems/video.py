"""Checks of video methods: accuracy on clips of the testbed's second model, exact sums, what a still clip becomes."""

from __future__ import annotations

import torch

import tokensieve as ts
from benchmarks.systems.bed import SEED, Bed, Outcome, beats, check
from tokensieve import testbed
from tokensieve.methods.video.framefusion import SHALLOW, FrameFusion
from tokensieve.methods.video.lftr import LFTR
from tokensieve.methods.vlm.text_attention import ByText
from tokensieve.plan import Stage, descent
from tokensieve.signals import Signals
from tokensieve.testbed import Several
from tokensieve.testbed.onevision import TOKENS

FRAMES, PLACES, DIM = 8, 36, 32


def clip(still: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A clip of random tokens, the same in every frame or changing a little, and the frame of each token."""
    draw = torch.Generator().manual_seed(SEED)
    first = torch.randn(PLACES, DIM, generator=draw)
    change = torch.zeros(FRAMES, PLACES, DIM) if still else torch.randn(FRAMES, PLACES, DIM, generator=draw).cumsum(0)
    return (first + 0.3 * change).flatten(0, 1)[None], torch.arange(FRAMES).repeat_interleave(PLACES)[None]


def shows(number: int = 30) -> list[Several]:
    """Clips of eight scenes that have nothing in common, each with a question about a thing of one of them alone."""
    items: list[Several] = []
    for index in range(number):
        scenes = [testbed.generate(SEED + 1, FRAMES * index + t, "test") for t in range(FRAMES)]
        asked = [[q for q in testbed.questions(s) if q.kind in ("identity", "reading")] for s in scenes]
        texts = [q.text for questions in asked for q in questions]
        alone = [q for questions in asked for q in questions if texts.count(q.text) == 1]
        items += [Several(tuple(s.image for s in scenes), q, "clip") for q in alone[index % 3 :: 8][:1]]
    return items


@check(199)
def lftr(bed: Bed) -> Outcome:
    """Clips at 16x fewer tokens: above uniform subsampling and average pooling; a static clip gives every frame one weight."""
    x, frame = clip(True)
    weights = LFTR().temporal_weights(Signals(x, frame=frame))
    keep = TOKENS["clip"] // 16
    n = {name: bed.several.right("clip", name, keep) for name in ("lftr", "uniform", "pool")}
    n |= {"all tokens": bed.several.right("clip", "uniform", 1.0), "still: weights": len(set(weights[0].tolist()))}
    return beats(n, "lftr", ("uniform", "pool")) and n["still: weights"] == 1, n


@check(370)
def quota(bed: Bed) -> Outcome:
    """Clips with one relevant frame, 144 tokens: above equal quotas of the same total; quotas sum exactly to the budget."""
    items, keep = shows(), 144
    flags = {
        "quota": bed.several.flags(items, "quota", keep),
        "equal quotas": bed.several.flags(items, "quota", keep, power=0.0),
        "all tokens": bed.several.flags(items, "uniform", 1.0),
    }
    n = {name: round(sum(ok) / len(items), 4) for name, ok in flags.items()}
    n["sum"] = bed.several.kept(items[0], "quota", keep)
    return n["quota"] > n["equal quotas"] and n["sum"] == keep, n


@check(397)
def framefusion(bed: Bed) -> Outcome:
    """Clips at 30% of the tokens on average: above pruning alone and merging alone; a static clip merges to one frame."""
    keep = round(0.3 * TOKENS["clip"])
    x, frame = clip(True)
    r = ts.reduce(x, "framefusion", PLACES, frame=frame, received_attention=torch.ones(1, x.shape[1]) / x.shape[1])
    merging = ts.Plan(Stage(FrameFusion(similarity=-1.0), keep))
    n = {
        "framefusion": bed.several.right("clip", "framefusion", ts.Keep(average=keep)),
        "pruning": bed.several.right("clip", ts.Plan(descent(ByText(), ts.Keep(average=keep), (SHALLOW,)))),
        "merging": bed.several.right("clip", merging),
        "all tokens": bed.several.right("clip", "uniform", 1.0),
        "still: off one frame by": round(float((r.apply(x)[0] - x[0, :PLACES]).abs().max()), 6),
    }
    still = n["still: off one frame by"] < 1e-5 and r.m == PLACES
    return still and beats(n, "framefusion", ("pruning", "merging")), n


@check(139)
def centerclip(bed: Bed) -> Outcome:
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
