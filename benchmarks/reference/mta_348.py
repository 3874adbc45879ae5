"""Attention whose scores hear their neighbours: of nearby queries, of nearby keys, and of other heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.reference.decoder import Held, Shape, causal


class MultiTokenAttention(nn.Module):
    """Each head's scores are convolved over the last `query` queries and `key` keys around each key, future ones
    counting as zero, before the softmax; after it, heads are mixed in groups of `heads`. It begins as plain attention.

    An :data:`~benchmarks.reference.decoder.Attend`. With `memory`, `memory[layer]` holds keys, values and the last queries.

    Source: Multi-Token Attention, arXiv 2504.00927. Deviation: without the norm of each head's output and its factor by
    depth, which are apart from the idea.
    """

    def __init__(self, shape: Shape, query: int = 6, key: int = 11, heads: int = 2):
        super().__init__()
        if query < 1 or key < 1 or key % 2 == 0:
            raise ValueError(f"query={query} must be at least 1 and key={key} odd, to have a middle; take 6 and 11")
        if shape.heads % heads:
            raise ValueError(f"heads={heads} must divide the {shape.heads} heads of a layer")
        self.query, self.key, self.heads = query, key, heads
        kernel = torch.zeros(shape.heads, 1, query, key)
        kernel[:, :, -1, key // 2] = 1
        mix = torch.eye(heads).expand(shape.heads // heads, -1, -1)
        self.kernels = nn.ParameterList(nn.Parameter(kernel.clone()) for _ in range(shape.layers))
        self.mixes = nn.ParameterList(nn.Parameter(mix.clone()) for _ in range(shape.layers))

    def forward(self, layer: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor, memory: dict | None = None) -> Tensor:
        new = q.shape[2]
        if memory is not None:
            held, tail = memory.get(layer, (Held(), q[:, :, :0]))
            k, v = held.add(k, v)
            q = torch.cat([tail, q], dim=2)
            memory[layer] = (held, q[:, :, max(q.shape[2] - self.query + 1, 0) :])
        share = q.shape[1] // k.shape[1]
        scores = (q @ k.repeat_interleave(share, 1).transpose(-1, -2)).float() * q.shape[-1] ** -0.5
        seen = causal(q.shape[2], k.shape[2], scores.device)
        scores = F.pad(scores.masked_fill(~seen, 0), (self.key // 2, self.key // 2, self.query - 1, 0))
        scores = F.conv2d(scores, self.kernels[layer].to(scores), groups=scores.shape[1])
        weights = scores.masked_fill(~seen, -torch.inf)[:, :, -new:].softmax(-1)
        grouped = weights.unflatten(1, (-1, self.heads))
        weights = torch.einsum("bghij,gho->bgoij", grouped, self.mixes[layer].to(weights)).flatten(1, 2)
        return weights.to(v.dtype) @ v.repeat_interleave(share, 1)
