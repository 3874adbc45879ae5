"""Checks of the family vit on the packaged tower: 576 patches, linear probes of what each of them shows, nothing trained."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import tokensieve as ts
from benchmarks.systems.bed import SEED, CheckContext, Outcome, beats, check
from tokensieve.core.method import Method
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.encoder.expedit import Expedit
from tokensieve.sites.encoder import schedule
from tokensieve.sites.model.blocks import stack_of
from tokensieve.testbed import probes
from tokensieve.testbed.probes import DenseScore

COUNT = 96
"""Held-out scenes: about 4,000 patches of things."""
ONCE: dict[str, Any] = {"layers": (1,), "schedule": "once"}
"""All leave behind the second block of five."""
SIDE = 24


class DenseBed:
    """The tower, its probes and the held-out scenes; what was measured is kept."""

    def __init__(self) -> None:
        self.tower, self.probes = probes.tower(), probes.load_probes()
        self.scenes = probes.held_out(COUNT)
        self._known: dict[str, DenseScore] = {}

    def seen(self, name: str | Method, keep: Any, **how: Any) -> DenseScore:
        """Under a method; `full` for none."""
        key = repr((name, keep, how))
        if key not in self._known:
            if name == "full":
                self._known[key] = probes.seen(self.tower, self.probes, self.scenes)
            else:
                with ts.sieve(self.tower, name, keep=keep, site="encoder", seed=SEED, **how):
                    self._known[key] = probes.seen(self.tower, self.probes, self.scenes)
        return self._known[key]

    def bilinear(self, keep: int, **how: Any) -> DenseScore:
        """Pooled to a square grid in the midst, and widened behind the tower between the middles of its cells."""
        step = SIDE // int(keep**0.5)

        def states(pixels: Tensor) -> Tensor:
            made = self.tower(pixel_values=pixels).last_hidden_state[:, 1:].unflatten(1, (SIDE, SIDE))
            small = made[:, ::step, ::step].permute(0, 3, 1, 2)
            wide = F.interpolate(small, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
            return wide.flatten(2).transpose(1, 2)

        with ts.sieve(self.tower, "pool", keep=keep, site="encoder", **how):
            return probes.seen(self.tower, self.probes, self.scenes, states=states)

    @torch.no_grad()
    def states(self, block: int, count: int = 32) -> Tensor:
        """``(count, 576, D)``: patch states behind a block."""
        return probes.states_of(self.tower, self.scenes[:count], block)


@functools.cache
def bed() -> DenseBed:
    return DenseBed()


def pair(seen: DenseScore) -> list[float]:
    """What a record holds of it: mIoU of kinds, and the share of right names."""
    return [seen.miou, seen.name]


@dataclass(frozen=True)
class Copied(Expedit):
    """The same clusters; every token takes the state of its own."""

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        made = super().reduce(s, keep)
        return made.expanding(made.owner.clamp(min=0)[..., None], torch.ones(made.batch, made.n, 1))


@check(22)
def expedit(_: CheckContext) -> Outcome:
    """Packaged tower, 576 patches clustered to 144 behind the third block of five (0.4 of its depth), nothing trained: mIoU
    above pooling with bilinear widening, and above the same clusters copied; all 576 come back. Beside it [mIoU, share of
    right names] of other clusters, and of these behind the second block."""
    b, there = bed(), {"layers": (2,), "schedule": "once"}
    made = {
        "full": b.seen("full", None),
        "expedit": b.seen("expedit", 144),
        "the same clusters, copied": b.seen(Copied(), 144, **there),
        "of the nearest cluster alone": b.seen("expedit", 144, slots=1),
        "pooled, bilinear": b.bilinear(144, **there),
        "pooled, copied": b.seen("pool", 144, **there),
        "atc, copied": b.seen("atc", 144, **there),
        "tome, copied": b.seen("tome", 144, **there),
    }
    n: dict[str, Any] = {name: pair(seen) for name, seen in made.items()}
    x = b.states(2, 4)
    n["tokens restored"] = ts.reduce(x, "expedit", 144, grid=(SIDE, SIDE)).restore(torch.zeros(4, 144, 128)).shape[1]
    n["behind the second block: expedit"] = pair(b.seen("expedit", 144, **ONCE))
    n["behind the second block: pooled, bilinear"] = pair(b.bilinear(144, **ONCE))
    n["behind the second block: atc, copied"] = pair(b.seen("atc", 144, **ONCE))
    best = made["expedit"].miou
    weaker = [made[name].miou for name in ("pooled, bilinear", "pooled, copied", "the same clusters, copied")]
    return best > max(weaker) and n["tokens restored"] == 576, n


@check(84)
def bat(_: CheckContext) -> Outcome:
    """Packaged tower, 288 of 576 patches at the end, equal steps, nothing trained: share of right names above
    class-attention top-k with one fused token, and above random; the mean cosine of states that stay, half kept behind
    the second block, lower than top-k's."""
    b = bed()
    n: dict[str, Any] = {
        "bat": b.seen("bat", 288).name,
        "top-k and one fused": b.seen("bat", 288, clusters=1 / 288, matched=0.0).name,
        "top-k": b.seen("fastervlm", 288).name,
        "random": b.seen("random", 288).name,
        "full": b.seen("full", None).name,
    }
    for name, how in {"bat": {}, "fastervlm": {}}.items():
        n[f"cosine of those that stay, {name}"] = round(_likeness(b, name, **how), 4)
    lower = n["cosine of those that stay, bat"] < n["cosine of those that stay, fastervlm"]
    return beats(n, "bat", ("top-k and one fused", "random")) and lower, n


@torch.no_grad()
def _likeness(b: DenseBed, name: str, **how: Any) -> float:
    """Mean cosine of pairs of states that stay behind the second block."""
    out = []
    for start in range(0, 32, 8):
        given = probes.pixels(b.scenes[start : start + 8])
        with ts.sieve(b.tower, name, keep=288, site="encoder", **ONCE, **how) as s:
            states = b.tower(pixel_values=given, output_hidden_states=True).hidden_states[2][:, 1:]
        assert s.last is not None
        unit = F.normalize(s.last.stages[0].reduction.take(states), dim=-1)
        out.append((unit.mean(1).square().sum(1)).mean())
    return float(torch.stack(out).mean())


@check(110)
def zero_tprune(_: CheckContext) -> Outcome:
    """Packaged tower, nothing trained, equal steps to a third fewer FLOPs: share of right names above random, class-
    token attention and importance alone."""
    b, keep = bed(), ts.Keep(flops=0.67)
    n = {
        "zero-tprune": b.seen("zero-tprune", keep).name,
        "importance alone": b.seen("zero-tprune", keep, similar=0.0).name,
        "top-k": b.seen("fastervlm", keep).name,
        "random": b.seen("random", keep).name,
    }
    return beats(n, "zero-tprune", ("importance alone", "top-k", "random")), n


@check(275)
def token_pooling(_: CheckContext) -> Outcome:
    """Packaged tower, 576 to 144 patches behind the second block, nothing trained: the mean squared distance of states
    there to the nearest one left, and the share of right names, both better than grid pooling and top-k."""
    b = bed()
    x = b.states(1)
    error = {
        name: round(float(torch.cdist(x, _reduced(x, name)).amin(2).square().mean()), 4)
        for name in ("token-pooling", "pool", "random", "expedit")
    }
    n: dict[str, Any] = {
        "token-pooling": b.seen("token-pooling", 144, **ONCE).name,
        "pool": b.seen("pool", 144, **ONCE).name,
        "top-k": b.seen("fastervlm", 144, **ONCE).name,
        **{f"error of {name}": value for name, value in error.items()},
    }
    least = error["token-pooling"] < min(error["pool"], error["random"])
    return beats(n, "token-pooling", ("pool", "top-k")) and least, n


def _reduced(x: Tensor, name: str) -> Tensor:
    return ts.reduce(x, name, 144, grid=(SIDE, SIDE)).apply(x)


@check(62)
def token_transforming(_: CheckContext) -> Outcome:
    """Packaged tower, no training, 40% fewer FLOPs in equal steps: share of right names above bipartite merging and
    top-k; and [mIoU, names] of each."""
    b, keep = bed(), ts.Keep(flops=0.6)
    made = {name: b.seen(name, keep) for name in ("token-transforming", "tome", "fastervlm")} | {
        "full": b.seen("full", None)
    }
    n = {name: pair(seen) for name, seen in made.items()}
    names = {name: seen.name for name, seen in made.items()}
    return beats(names, "token-transforming", ("tome", "fastervlm")), n


@check(345)
def atc(_: CheckContext) -> Outcome:
    """Packaged tower, no training, a quarter of the patches kept, behind the second block and in equal steps: share of
    right names above ToMe and top-k [mIoU, names]; the cluster count exact for every M."""
    b = bed()
    once = {name: b.seen(name, 144, **ONCE) for name in ("atc", "tome", "fastervlm")}
    steps = {name: b.seen(name, 144) for name in ("atc", "tome", "fastervlm")}
    n: dict[str, Any] = {f"{name}, once": pair(s) for name, s in once.items()}
    n |= {f"{name}, equal steps": pair(s) for name, s in steps.items()}
    x = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(SEED))
    made = [ts.reduce(x, "atc", m) for m in range(1, 65)]
    n["exact for every M"] = all(int(r.counts[0]) == m and bool((r.owner >= 0).all()) for m, r in enumerate(made, 1))
    won = all(beats({k: s.name for k, s in both.items()}, "atc", ("tome", "fastervlm")) for both in (once, steps))
    return won and n["exact for every M"], n


HEADS = (1, 2)
"""Blocks of five behind which heads look."""


@functools.cache
def heads() -> dict[int, probes.PatchProbes]:
    """Probes behind earlier blocks."""
    scenes = probes.train_scenes(120)
    return {block: probes.fit(probes.states_of(bed().tower, scenes, block), scenes) for block in HEADS}


@check(58)
def dtop(_: CheckContext) -> Outcome:
    """Packaged tower, linear heads behind the second and third block of five, patches leave whose kind a head is sure of and
    keep its guess: mIoU within half a point of all patches at 20% fewer FLOPs or more, sure from 0.95, 0.99 or 0.999 on;
    without the five of each class that stay, lower at each. [mIoU, share of FLOPs]"""
    b = bed()
    n: dict[str, Any] = {"all patches": b.seen("full", None).miou}
    near = lower = False
    for sure in (0.95, 0.99, 0.999):
        five, none = (list(_exits(b, context, sure)) for context in (5, 0))
        n |= {f"sure from {sure}": five, f"sure from {sure}, none of each class stays": none}
        near |= five[0] >= n["all patches"] - 0.005 and five[1] <= 0.8
        lower = none[0] < five[0] and (lower or sure == 0.95)
    return near and lower, n


@torch.no_grad()
def _exits(b: DenseBed, context: int, sure: float) -> tuple[float, float]:
    """mIoU with the guesses with which patches exit, and the share of FLOPs."""
    parts, spent = [], []
    known = heads()
    given = {"classes": lambda s, block: known[block].heads["kind"](s.features).softmax(2)}
    depth = schedule.Depth(stack_of(b.tower), ())
    with ts.sieve(
        b.tower, "dtop", keep=575, site="encoder", layers=HEADS, context=context, sure=sure, given=given
    ) as s:
        for start in range(0, COUNT, 8):
            states = b.tower(pixel_values=probes.pixels(b.scenes[start : start + 8])).last_hidden_state[:, 1:]
            assert s.last is not None
            left = s.last.left
            assert left is not None
            guess = b.probes.heads["kind"](states).argmax(2)
            for block, head in known.items():
                guess = torch.where(left[:, 1:] == block, head.heads["kind"](states).argmax(2), guess)
            parts.append(guess)
            for row in left:
                there = [float((row >= block).sum()) for block in range(len(depth.stack.layers))]
                spent.append(depth.flops([(tokens, tokens) for tokens in there]))
    whole = depth.flops([(577.0, 577.0)] * len(depth.stack.layers))
    unread = torch.zeros(COUNT, SIDE * SIDE, dtype=torch.long)
    found = probes.score({"kind": torch.cat(parts), "name": unread, "colour": unread}, b.scenes)
    return found.miou, round(sum(spent) / len(spent) / whole, 4)
