"""Quotas: which layers a stage of the cache takes, whether stages go together, and how many entries rows keep."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokensieve.core.needs import Need
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.parts import budget, score
from tokensieve.parts.budget import Budget, Keep, across_layers
from tokensieve.sites.cache.entries import Entries
from tokensieve.sites.model.blocks import Stack


def layers_of(stage: Stage, language: Stack, full: list[int]) -> list[int]:
    """The layers of a stage, among those that see every token.

    Raises:
        ValueError: it names another.
    """
    if stage.layers is None:
        return full
    asked = [language.layer(i) for i in stage.layers]
    other = sorted(set(asked) - set(full))
    if other:
        raise ValueError(f"layers={stage.layers}: layer {other[0]} does not see every token; those that do are {full}")
    return sorted(set(asked))


def check(stages: Sequence[Stage], layers: dict[int, list[int]], full: list[int], read: set[int]) -> None:
    """Args:
        layers: those of each stage, by its id; read: those whose keys later layers attend to as well.

    Raises:
        ValueError: stages that do not go together, or not with the layers that they take.
    """
    for i in full:
        beside = [s for s in stages if i in layers[id(s)]]
        late = {s.every for s in beside}
        if len(late) > 1:
            raise ValueError(
                f"layer {i} has stages with every={sorted(late)}; stages of one layer evict at the same steps"
            )
        if len(beside) > 1 and any(s.cache_method.shared for s in beside):
            name = next(s.method.name for s in beside if s.cache_method.shared)
            raise ValueError(f"layer {i} has {len(beside)} stages; {name}, whose layers share one budget, stands alone")
        needs(beside)
        if i in read and any(s.cache_method.unit == "entry" and not s.cache_method.shared for s in beside):
            raise ValueError(
                f"later layers attend to the keys of layer {i}, so that its heads have to keep equally many; take a method "
                "under which they do ('snapkv')"
            )


def needs(stages: Sequence[Stage]) -> list[Need]:
    """What the stages of a layer read, each once, of the widest window.

    Raises:
        ValueError: one and the same is wanted in two ways.
    """
    found: dict[str, tuple[Stage, Need]] = {}
    for stage in stages:
        for need in stage.needs:
            other, known = found.setdefault(need.name, (stage, need))
            if known.rate != need.rate:
                raise ValueError(
                    f"{other.method.name} and {stage.method.name} read {need.name} at rates {known.rate} and {need.rate}; a "
                    "layer remembers one"
                )
            if need.window > known.window:
                found[need.name] = (stage, need)
    return [need for _, need in found.values()]


def counts(stage: Stage, now: Entries, seen: Tensor, order: int, depth: int, grows: bool) -> tuple[Tensor, Tensor]:
    """``(B,)`` entries that each row keeps, and holds: per head, or in all heads together for the unit "entry".

    Args:
        seen: ``(B,)``, the tokens of each row so far; grows: whether these may be a part of a prompt.
        order: which of the stage's ``depth`` layers it is.

    Raises:
        ValueError: a budget below what the method always keeps.
    """
    method, held = stage.cache_method, now.valid.sum(2)
    least = method.min_kept
    keep, short = _room(now, stage.keep) if method.visual else resolve_count(stage.keep, seen), held.amax(1) <= least
    wrong = (keep < least) & ~short
    if grows:
        keep = keep.clamp(min=least)
    elif bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"keep={stage.keep} leaves row {row} {int(keep[row])} of its {int(seen[row])} tokens; {method.name} always keeps "
            f"{least}: pass keep={least} or more, or options of the method that protect fewer"
        )
    idle = short & (keep < held.amax(1))
    if order == 0 and now.call.query.shape[2] > 1 and not grows and bool(idle.any()):
        warnings.warn(
            f"a prompt of {int(held[idle].amax())} tokens is no longer than the {least} that {method.name} always keeps; "
            "nothing leaves its cache",
            stacklevel=2,
        )
    keep = method.of_layer(keep, seen, order, depth)
    heads = now.keys.shape[1]
    if method.unit == "entry":
        keep, held = keep * heads, held.sum(1)
        keep = torch.where(short, held, keep)
        return keep if method.shared else keep.minimum(held), held
    held = held.amax(1)
    return torch.where(short, held, keep).minimum(held), held


def shared(layers: Sequence[Signals], keep: Tensor, heads: int, least: int) -> tuple[Tensor, Tensor]:
    """``(B, L)`` entries of a head that each of the layers keeps which share a budget, from one ranking of what each further slot
    is worth; and that it holds.

    Args:
        layers: with the ``ranking`` of their entries, ``(B, H N)``.
        keep: ``(B, L)``, what they would keep in all heads by themselves.
        least: entries of a head that each layer is sure of.
    """
    worth, held = [], []
    for signals in layers:
        assert signals.ranking is not None
        rank, valid = (x.unflatten(1, (heads, -1)) for x in (signals.ranking, signals.valid))
        worth.append(score.composite(rank, valid))
        held.append(valid.sum(2).amax(1))
    most, total = torch.stack(held, 1), keep.sum(1) // heads
    return across_layers.across(worth, total, torch.full_like(total, least), most), most


def _room(now: Entries, keep: Budget) -> Tensor:
    """``(B,)``: entries that stay where a budget counts those of each image: it, the prompt's text, and what has been decoded in
    the place of visual ones, of which one stays."""
    shown = now.layer.is_visual
    assert shown is not None
    images = (shown & ~pad(shown[:, :-1], (1, 0))).sum(1).clamp(min=1)
    visual = resolve_count(keep, shown.sum(1) // images) * images
    text = now.valid & ~now.is_visual()
    prompt = (text & (now.columns < shown.shape[1])).sum(2).amax(1)
    return (visual + prompt).maximum(text.sum(2).amax(1) + 1)


def resolve_count(keep: Budget, seen: Tensor) -> Tensor:
    """``(B,)``: the budget of rows that have seen so many tokens.

    Raises:
        ValueError: a budget in FLOPs.
    """
    if isinstance(keep, Keep):
        if keep.flops is not None:
            raise ValueError(
                f"{keep}; at site='cache' a budget is a number of tokens or a share: pass keep=1024 or keep=0.25"
            )
        if keep.average is not None:
            keep = keep.average if keep.average <= 1 else round(keep.average)
    return budget.of(keep, seen)
