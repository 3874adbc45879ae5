"""Adapters of low rank on a language model's matrices (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Adapter(nn.Module):
    """What is added to a matrix: ``up @ down``, zero at first."""

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) * linear.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down), self.up)


def adapters(language: nn.Module, rank: int) -> nn.ModuleDict:
    """An adapter for every linear layer, by its name with ``-`` for ``.``."""
    return nn.ModuleDict({n.replace(".", "-"): Adapter(m, rank) for n, m in _linear(language)})


def attach(language: nn.Module, added: nn.ModuleDict) -> None:
    """Have each layer add what its adapter says, for training: the weights stay as they are. Once a model."""
    for name, linear in _linear(language):
        adapter = added[name.replace(".", "-")]
        linear.register_forward_hook(lambda _, args, out, adapter=adapter: out + adapter(args[0]))


@torch.no_grad()
def merge(language: nn.Module, added: nn.ModuleDict) -> None:
    """Add the adapters to the weights, so that the model is one that knows nothing of adapters."""
    for name, linear in _linear(language):
        adapter: Adapter = added[name.replace(".", "-")]  # type: ignore[assignment]
        linear.weight += (adapter.up @ adapter.down).to(linear.weight.dtype)


def _linear(language: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in language.named_modules() if isinstance(module, nn.Linear)]
