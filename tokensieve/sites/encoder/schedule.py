"""Schedule: how many tokens are left behind each of the blocks in which some leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokensieve.core.stage import Stage
from tokensieve.parts import budget
from tokensieve.parts.budget import flops
from tokensieve.sites.model.blocks import Stack

FRONT = -1
"""In the place of a block: in front of the first."""


@dataclass(frozen=True)
class Depth:
    """Where in an encoder tokens leave.

    Attributes:
        layers: the blocks; between: whether they leave in front of a block's feed-forward network, or behind it.
        around: tokens that always stay; back: the block in front of which all are there again.
    """

    stack: Stack
    layers: tuple[int, ...]
    between: bool = False
    around: int = 0
    back: int | None = None

    def tokens(self, n: float, targets: Sequence[float]) -> list[tuple[float, float]]:
        """Of each block the tokens in its attention and in its feed-forward network, those that always stay left out."""
        left, out = dict(zip(self.layers, targets, strict=True)), []
        now = float(left.get(FRONT, n))
        for i in range(len(self.stack.layers)):
            now = float(n) if i == self.back else now
            after = float(left.get(i, now))
            out.append((now, after if self.between else now))
            now = after
        return out

    def flops(self, tokens: Sequence[tuple[float, float]]) -> float:
        """FLOPs of one sequence with so many tokens in the blocks. Weights are counted in the blocks: the configs of encoders do
        not tell which have a gated feed-forward."""
        total = 0.0
        for layer, attention, (first, second) in zip(self.stack.layers, self.stack.attentions, tokens, strict=True):
            held = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
            config: Any = getattr(attention, "config", None) or self.stack.config
            network = self._network(layer) if self.between else 0
            total += flops.of_block(config, held - network, self.around + first) + 2.0 * network * (
                self.around + second
            )
        return total

    def _network(self, layer: torch.nn.Module) -> int:
        """Weights of a block that belong to no attention."""
        inside = {id(p) for m in layer.modules() if "Attention" in type(m).__name__ for p in m.parameters()}
        return sum(p.numel() for p in layer.parameters() if p.dim() == 2 and id(p) not in inside)


def back(stage: Stage, stack: Stack) -> int | None:
    """The block in front of which tokens come back; None where they do so behind the last."""
    asked = stage.method.returns if stage.back is None else stage.back
    return None if asked is None or stage.readout == "merged" else stack.layer(asked)


def layers(stage: Stage, stack: Stack, end: int, back: int | None) -> tuple[int, ...]:
    """The blocks in which tokens leave: those that a stage names, or those in front of ``end``; of a stage at site="patch"
    :data:`FRONT`."""
    if stage.site == "patch":
        return (FRONT,)
    if stage.layers:
        return tuple(sorted({stack.layer(i) for i in stage.layers}))
    every = range(max(end, 1)) if back is None else range(max(min(end, back - 1), 1))
    first = stack.layer(stage.method.begins) if stage.method.begins else 0
    return tuple(every[min(first, len(every) - 1) :])


def check(stage: Stage, layers: Sequence[int], back: int | None, between: bool) -> None:
    """Raise ValueError for a budget that no encoder has, or where tokens would be back before a block runs without them."""
    keep = stage.keep
    if isinstance(keep, budget.Keep) and keep.layered and keep.flops is None and keep.r is None:
        raise ValueError(
            f"{keep}: an encoder takes tokens, a share, r=... or flops=...; the others are of the language model"
        )
    if back is not None and max(layers) >= back - (0 if between else 1):
        raise ValueError(
            f"back={back}: tokens that leave in blocks {list(layers)} would be back before a block runs without them; give a "
            "later back, or earlier layers"
        )


def targets(stage: Stage, depth: Depth, count: Tensor) -> list[Tensor]:
    """Tokens that are left behind each of the layers.

    Args:
        count: ``(B,)`` long, tokens that may leave.

    Returns:
        a tensor ``(B,)`` long for each, at least 1 in every row.
    """
    keep, number, pace = stage.keep, len(depth.layers), stage.pace
    if isinstance(keep, budget.Keep) and keep.r is not None:
        now, out = count.tolist(), []
        for gone in leaving(keep.r, number, pace):
            # One matching lets at most half of the tokens leave.
            now = [max(n - gone, (n + 1) // 2) if gone else n for n in now]
            out.append(torch.tensor(now, device=count.device))
        return out
    if isinstance(keep, budget.Keep) and keep.flops is not None:
        last = torch.tensor([solved(depth, n, keep.flops, pace) for n in count.tolist()], device=count.device)
    else:
        last = budget.of(keep, count)
    return [count - ((count - last) * share).round().long() for share in shares(number, pace)]


def leaving(r: int, number: int, schedule: str) -> list[int]:
    """Tokens that leave at each of ``number`` steps, ``r`` in the mean (arXiv 2210.09461, and its public code's ``inflect=-1``
    where they grow fewer)."""
    if schedule == "once":
        return [r * number] + [0] * (number - 1)
    if schedule == "decreasing" and number > 1:
        return [int(2 * r - 2 * r * i / (number - 1)) for i in range(number)]
    return [r] * number


def shares(number: int, schedule: str) -> list[float]:
    """Which share of all that are to leave has left behind each step."""
    if schedule == "once":
        return [1.0] * number
    if schedule == "decreasing":
        weights = [number - i for i in range(number)]
        return [sum(weights[: i + 1]) / sum(weights) for i in range(number)]
    return [(i + 1) / number for i in range(number)]


def solved(depth: Depth, n: int, share: float, schedule: str) -> int:
    """The most tokens that may be left at the end for the FLOPs to be at most ``share`` of the full ones.

    Raises:
        ValueError: one token at the end still costs more; it says what it costs.
    """
    full = depth.flops([(float(n), float(n))] * len(depth.stack.layers))

    def cost(last: int) -> float:
        left = [n - round((n - last) * done) for done in shares(len(depth.layers), schedule)]
        return depth.flops(depth.tokens(n, left)) / full

    least = cost(1)
    if least > share:
        raise ValueError(
            f"Keep(flops={share}): with schedule={schedule!r} one token of {n} at the end still costs {least:.2f} of the FLOPs; "
            "ask for more, or use schedule='decreasing' or 'once', with which tokens leave earlier"
        )
    low, high = 1, n
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= share else (low, middle - 1)
    return low
