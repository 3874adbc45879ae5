"""Checks of the family vit on digits among clutter: patches that never enter, and blocks that patches go past."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

import tokensieve as ts
from benchmarks import cluttered
from benchmarks.cluttered import Canvases
from benchmarks.reference.bavit_304 import BackgroundViT, fit
from benchmarks.systems.bed import SEED, CheckContext, Outcome, check

COVERED = 0.3
"""From which share of a patch that lies in the digit's box on it counts as foreground."""


@functools.cache
def vit() -> Any:
    """Trained on every patch."""
    return cluttered.train()


@functools.cache
def held() -> Canvases:
    return cluttered.canvases(1500, SEED, "test")


@functools.cache
def gallery() -> Canvases:
    return cluttered.canvases(1500, SEED)


@torch.no_grad()
def embedded(model: Any, data: Canvases) -> Tensor:
    """``(n, 64, D)``: patches as they enter the first block."""
    return torch.cat([model.vit.embeddings(x)[:, 1:] for x in data.images.split(100)])


@functools.cache
def classifier() -> BackgroundViT:
    data = gallery()
    return fit(embedded(vit(), data), data.covered > COVERED)


def accuracy(name: str, keep: float, given: dict[str, Any] | None = None) -> float:
    with ts.sieve(vit(), name, keep=keep, site="patch", seed=SEED, given=given):
        return cluttered.accuracy(vit(), held())


@check(301)
def skipvit(_: CheckContext) -> Outcome:
    """Digits among clutter, a ViT of six layers trained twice in equal steps: with 55% of the patches going past
    blocks 3 to 5 it ends within one point of dense training, with fewer FLOPs; also both as trained dense."""

    def sieved(model: Any) -> Any:
        return ts.sieve(model, "skipvit", keep=0.45, site="encoder", layers=(1,), back=5)

    skipping = cluttered.train(sieved)
    stage = ts.stage("skipvit", 0.45, site="encoder", layers=(1,), back=5)
    with sieved(skipping):
        n = {"trained and run with bypass": cluttered.accuracy(skipping, held())}
    n["dense"] = cluttered.accuracy(vit(), held())
    with sieved(vit()):
        n["trained dense, run with bypass"] = cluttered.accuracy(vit(), held())
    n["FLOPs of a step"] = round(ts.cost(skipping, ts.Plan(stage), tokens=64).share, 4)
    return n["trained and run with bypass"] >= n["dense"] - 0.01 and n["FLOPs of a step"] < 1, n


@check(304)
def bavit(_: CheckContext) -> Outcome:
    """Digits among clutter: patch AUC of a two-layer classifier trained on boxes above 0.9; a frozen ViT on the half of the
    patches that it names within two points of all patches, a random half lower."""
    likely = torch.cat([classifier()(x).detach() for x in embedded(vit(), held()).split(100)])
    n = {
        "patch AUC": round(float(roc_auc_score((held().covered > COVERED).flatten(), likely.flatten())), 4),
        "all patches": cluttered.accuracy(vit(), held()),
        "bavit, half": accuracy("bavit", 0.5, {"foreground": _detected()}),
        "random half": _random(0.5),
    }
    near = n["bavit, half"] >= n["all patches"] - 0.02
    return n["patch AUC"] > 0.9 and near and n["random half"] < n["bavit, half"], n


def _detected() -> Callable[[ts.Signals, int], Tensor]:
    model = classifier()
    return lambda s, block: model(s.features)


def _random(keep: float) -> float:
    draw = torch.Generator().manual_seed(SEED)
    return accuracy("bavit", keep, {"foreground": lambda s, block: torch.rand(s.batch, s.n, generator=draw)})


@check(310)
def atf(_: CheckContext) -> Outcome:
    """Digits among clutter, frozen ViT, nearest picture by class-token state among 1,500 embedded in full: the share of
    right digits at 40% of the patches within two points of all, above static places alone and above random ones; and
    above, or not, detected regions alone."""
    prior = _attention(gallery())
    detected = {"foreground": _detected()}
    draw = torch.Generator().manual_seed(SEED)
    chance = {"foreground": lambda s, block: torch.rand(s.batch, s.n, generator=draw)}
    n = {
        "all patches": _recall("", None, 1.0),
        "atf": _recall("atf", detected | {"prior": prior}),
        "static alone": _recall("bavit", {"foreground": prior}),
        "detected alone": _recall("bavit", detected),
        "random": _recall("bavit", chance),
    }
    return n["atf"] >= n["all patches"] - 0.02 and n["atf"] > max(n["static alone"], n["random"]), n


@torch.no_grad()
def _attention(data: Canvases) -> Tensor:
    """``(64,)``: the class token's attention, averaged over pictures and blocks."""
    model = vit()
    model.set_attn_implementation("eager")
    made = [model(pixel_values=x, output_attentions=True).attentions for x in data.images[:500].split(100)]
    model.set_attn_implementation("sdpa")
    return torch.stack([torch.stack(a)[:, :, :, 0, 1:].mean((0, 1, 2)) for a in made]).mean(0)


def _recall(name: str, given: dict[str, Any] | None, keep: float = 0.4) -> float:
    """Queries run under a method, the gallery in full."""
    known = torch.nn.functional.normalize(_gallery(), dim=1)
    if name:
        with ts.sieve(vit(), name, keep=keep, site="patch", given=given):
            asked = cluttered.outputs(vit(), held())[1]
    else:
        asked = cluttered.outputs(vit(), held())[1]
    best = (torch.nn.functional.normalize(asked, dim=1) @ known.T).argmax(1)
    return round(float((gallery().labels[best] == held().labels).float().mean()), 4)


@functools.cache
def _gallery() -> Tensor:
    return cluttered.outputs(vit(), gallery())[1]
