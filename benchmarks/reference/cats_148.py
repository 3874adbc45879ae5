"""CATS: gated feed-forward networks that compute only the neurons whose gate is far from zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

SAMPLED = 1 << 20
"""Gate activations of a layer that its percentile is taken of, at most."""


@dataclass
class Meter:
    """How many neurons were left out, layer by layer."""

    silent: list[int] = field(default_factory=list)
    all: list[int] = field(default_factory=list)

    @property
    def sparsity(self) -> float:
        """The share of neurons, over all layers and tokens, that were not computed."""
        return sum(self.silent) / max(sum(self.all), 1)


def gated(model: nn.Module) -> list[Any]:
    """The gated feed-forward networks of a model, in order: what has ``gate_proj``, ``up_proj``, ``down_proj`` and ``act_fn``.

    Raises:
        ValueError: it has none.
    """
    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    found = [m for m in model.modules() if all(hasattr(m, part) for part in parts)]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no gated feed-forward network ({', '.join(parts)}); CATS needs one, as in Llama"
        )
    return found


@torch.no_grad()
def calibrate(model: nn.Module, prompts: Iterable[Tensor], sparsity: float) -> list[float]:
    """The threshold of each layer: the ``sparsity`` quantile of its gates' absolute activations on ``prompts``, ``(B, T)`` ids.

    Raises:
        ValueError: a sparsity outside [0, 1), or a model without gated networks.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(
            f"sparsity={sparsity}; it must be a share from 0 to below 1, such as 0.5 for half of the neurons"
        )
    layers = gated(model)
    seen: list[list[Tensor]] = [[] for _ in layers]

    def note(i: int, module: nn.Module, args: Any, out: Tensor) -> None:
        seen[i].append(layers[i].act_fn(out).abs().flatten().float())

    hooks = [layer.gate_proj.register_forward_hook(partial(note, i)) for i, layer in enumerate(layers)]
    try:
        for ids in prompts:
            model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    out = []
    for parts in seen:
        every = torch.cat(parts)
        every = every[:: max(1, -(-len(every) // SAMPLED))]
        rank = int(sparsity * len(every))
        out.append(float(every.kthvalue(rank).values) if rank else 0.0)
    return out


@contextmanager
def cats(model: nn.Module, thresholds: Sequence[float]) -> Iterator[Meter]:
    """Run a model with its gated networks cut at ``thresholds``, one a layer; they are what they were behind it.

    Neurons whose gate's absolute activation is at or below the threshold count as zero. Passes of one token compute the
    other two projections for the remaining neurons only (columns that are left out are not read); longer passes mask.

    Source: arXiv 2404.08763, without its fine-tuning. Deviations: the columns are gathered, where the public code has a
    kernel of its own for GPUs; a batch of several tokens is masked and no faster.

    Raises:
        ValueError: as many thresholds as there are layers are needed.
    """
    layers, meter = gated(model), Meter()
    if len(thresholds) != len(layers):
        raise ValueError(
            f"{len(thresholds)} thresholds for {len(layers)} gated networks; pass one for each, as calibrate() gives"
        )
    meter.silent, meter.all = [0] * len(layers), [0] * len(layers)
    for i, (layer, threshold) in enumerate(zip(layers, thresholds, strict=True)):
        layer.__dict__["forward"] = partial(_forward, layer, threshold, meter, i)
    try:
        yield meter
    finally:
        for layer in layers:
            layer.__dict__.pop("forward")


def _forward(layer: Any, threshold: float, meter: Meter, index: int, x: Tensor) -> Tensor:
    gate = layer.act_fn(layer.gate_proj(x))
    on = gate.abs() > threshold
    meter.silent[index] += on.numel() - int(on.sum())
    meter.all[index] += on.numel()
    if gate[..., 0].numel() > 1:
        return layer.down_proj(torch.where(on, gate, 0.0) * layer.up_proj(x))
    some = on.flatten().nonzero()[:, 0]
    up, down = layer.up_proj, layer.down_proj
    raised = linear(x, up.weight[some], None if up.bias is None else up.bias[some])
    return linear(gate[..., some] * raised, down.weight[:, some], down.bias)
