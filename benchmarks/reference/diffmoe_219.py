"""DiffMoE: experts that choose their tokens from those of a whole batch, and a predictor of that choice for single pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.reference.dit import Shape, mlp

EXPERTS = 4
DECAY = 0.95


class PooledExperts(nn.Module):
    """Each expert takes the ``1 / experts`` of a batch's tokens that its gate likes most, so that a token has any number of
    them, one on average. Outside of training, a token goes to the experts for which its predicted score is above a threshold,
    which follows the share that each expert takes.

    Source: arXiv 2503.14487. Deviation: one learned gate, its softmax over experts; no shared expert.

    Attributes:
        loss: of the predictor, behind a pass in training.
        capacity: ``(B,)``, experts a token had on average in the last pass.
    """

    threshold: Tensor

    def __init__(self, shape: Shape, experts: int = EXPERTS):
        super().__init__()
        self.gate = nn.Linear(shape.width, experts, bias=False)
        self.experts = nn.ModuleList(mlp(shape) for _ in range(experts))
        self.predictor = nn.Sequential(nn.Linear(shape.width, shape.width), nn.SiLU(), nn.Linear(shape.width, experts))
        self.register_buffer("threshold", torch.zeros(experts))
        self.loss: Any = None
        self.capacity = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weight, said = self.gate(flat).softmax(1), self.predictor(flat.detach())
        if self.training:
            share = len(flat) // len(self.experts)
            taken = torch.zeros_like(weight, dtype=torch.bool).scatter_(0, weight.topk(share, dim=0).indices, True)
            self.loss = F.binary_cross_entropy_with_logits(said, taken.float())
            with torch.no_grad():
                self.threshold.lerp_(said.quantile(1 - 1 / len(self.experts), dim=0), 1 - DECAY)
        else:
            taken, self.loss = said > self.threshold, None
        self.capacity = taken.float().sum(1).view(x.shape[:2]).mean(1)
        return _mixed(flat, taken, weight, self.experts).view_as(x)


class RoutedExperts(nn.Module):
    """Each token takes the one expert that it likes most, and experts are kept evenly busy: what it is to be better than.

    Attributes:
        loss: of the balance (arXiv 2101.03961), behind a pass in training.
    """

    def __init__(self, shape: Shape, experts: int = EXPERTS, balance: float = 0.01):
        super().__init__()
        self.gate, self.balance = nn.Linear(shape.width, experts, bias=False), balance
        self.experts = nn.ModuleList(mlp(shape) for _ in range(experts))
        self.loss: Any = None

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weight = self.gate(flat).softmax(1)
        taken = F.one_hot(weight.argmax(1), len(self.experts)).bool()
        busy = (taken.float().mean(0) * weight.mean(0)).sum() * len(self.experts)
        self.loss = self.balance * busy if self.training else None
        return _mixed(flat, taken, weight, self.experts).view_as(x)


def _mixed(flat: Tensor, taken: Tensor, weight: Tensor, experts: nn.ModuleList) -> Tensor:
    out = torch.zeros_like(flat)
    for i, expert in enumerate(experts):
        at = taken[:, i].nonzero()[:, 0]
        out = out.index_add(0, at, expert(flat[at]) * weight[at, i, None])
    return out
