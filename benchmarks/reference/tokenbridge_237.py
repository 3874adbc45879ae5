"""TokenBridge: a token of many dimensions told one dimension after another."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, pad


class Dimensions(nn.Module):
    """The bins of a token's dimensions, each from a state and the dimensions before it; 16 bins of 16 dimensions would be one
    softmax of 2^64.

    Source: arXiv 2503.16430. Deviation: the dimensions before are seen through a sum of embeddings and a perceptron, where the
    paper has a small causal transformer. ``chain=False`` predicts all of them from the state alone.

    Args:
        bins: of a dimension; dims: how many, told in their order; width: of the state.
    """

    def __init__(self, bins: int, dims: int, width: int, chain: bool = True, hidden: int = 64):
        super().__init__()
        self.bins, self.chain = bins, chain
        self.table = nn.Parameter(0.02 * torch.randn(dims, bins, hidden))
        self.state, self.place = nn.Linear(width, hidden), nn.Parameter(0.02 * torch.randn(dims, hidden))
        self.body = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        self.heads = nn.Parameter(0.02 * torch.randn(dims, hidden, bins))

    def logits(self, states: Tensor, indices: Tensor) -> Tensor:
        """``(T, dims, bins)`` of states ``(T, width)`` and the token's own bins ``(T, dims)``, each seeing those before it."""
        said = self.table[torch.arange(indices.shape[1]), indices]
        before = pad(said.cumsum(1), (0, 0, 1, 0))[:, :-1] if self.chain else torch.zeros_like(said)
        x = self.body(self.state(states)[:, None] + self.place + before)
        return torch.einsum("tdh,dhb->tdb", x, self.heads)

    def loss(self, states: Tensor, indices: Tensor) -> Tensor:
        """Nats a dimension."""
        return cross_entropy(self.logits(states, indices).flatten(0, 1), indices.flatten())

    @torch.no_grad()
    def sample(self, states: Tensor, generator: Generator | None = None) -> Tensor:
        """Bins ``(T, dims)``."""
        out = torch.zeros(len(states), len(self.place), dtype=torch.int64)
        for i in range(out.shape[1]):
            p = self.logits(states, out)[:, i].softmax(1)
            out[:, i] = torch.multinomial(p, 1, generator=generator)[:, 0]
        return out
