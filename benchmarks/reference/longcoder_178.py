"""A code model that sees a window, bridges over what lies before it, and the definitions that rules pick."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.reference.decoder import Decoder

_DEFINITIONS = re.compile(r"^[ \t]*(?:from|import|class|def|async def)\b.*$", re.MULTILINE)


class LongCoder(nn.Module):
    """Token ids (B, T) and which of them are memory (B, T) to logits (B, T, V); T is a multiple of `every`.

    After every `every` tokens stands a *bridge* with a learned embedding and the position of the token before it; it
    predicts nothing. A token sees the last `window` places, itself included, and of all earlier ones the latest
    `bridges` bridges and the latest `memory` memory tokens: pairs grow linearly with the length. Queries are handled in
    blocks of `window`, whose keys are gathered. `pairs` is how many pairs of a row the last call saw, in one layer.

    Source: LongCoder, arXiv 2306.14893. Deviations: one set of projections for all kinds of tokens, so that it can be
    tuned from a plain decoder; the latest bridges are kept, where the public code bounds the input instead.
    """

    def __init__(self, decoder: Decoder, window: int = 512, every: int = 16, bridges: int = 64, memory: int = 64):
        super().__init__()
        least = {"window": (window, every + 1), "every": (every, 1), "bridges": (bridges, 0), "memory": (memory, 0)}
        for name, (value, low) in least.items():
            if value < low:
                raise ValueError(f"{name}={value} must be at least {low}; a window spans one bridge and what it covers")
        self.decoder, self.window, self.every = decoder, window, every
        self.bridges, self.memory = bridges, memory
        # At first a bridge says nothing: one that spoke, if only with the mean of all embeddings, would drown the text.
        self.bridge = nn.Parameter(torch.zeros_like(decoder.embed.weight[0]))
        self.pairs = 0.0

    def forward(self, ids: Tensor, marked: Tensor) -> Tensor:
        rows, length = ids.shape
        if length % self.every:
            raise ValueError(f"{length} tokens are no multiple of every={self.every}; cut or pad the row to one")
        x = self.decoder.embed(ids).unflatten(1, (-1, self.every))
        x = torch.cat([x, self.bridge.expand(rows, x.shape[1], 1, -1)], dim=2).flatten(1, 2)
        memory = F.pad(marked.unflatten(1, (-1, self.every)), (0, 1)).flatten(1)
        place = torch.arange(x.shape[1], device=ids.device)
        position = place - (place + 1) // (self.every + 1)
        keys, seen = self.plan(memory)
        self.pairs = float(seen.sum()) / rows

        def attend(layer: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor, _: dict | None = None) -> Tensor:
            return gathered(q, k, v, keys, seen)

        x = self.decoder.stack(x, attend, None, position[None])
        return self.decoder.head(x[:, place % (self.every + 1) < self.every])

    def plan(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """For memory tokens (B, S) among all places: the places of the keys of each block of queries (B, n, K), and
        which of them each query sees (B, n, window, K); the last block may be partly empty."""
        rows, size = memory.shape
        count = -(-size // self.window)
        ends = torch.arange(1, count + 1, device=memory.device) * self.window
        local = ends[:, None] + torch.arange(-2 * self.window, 0, device=memory.device)
        bridge = (torch.arange(size, device=memory.device) + 1) % (self.every + 1) == 0
        far = [local.expand(rows, -1, -1)]
        for kind, most in ((bridge.expand(rows, -1), self.bridges), (memory, self.memory)):
            # Places of the kind in order, then how many of them lie before a block: the latest of those.
            order = (~kind).long().argsort(dim=1, stable=True)
            before = F.pad(kind.cumsum(1), (1, 0))[:, (ends - self.window).clamp(max=size)]
            slot = before[..., None] + torch.arange(-most, 0, device=memory.device)
            found = order.gather(1, slot.clamp(min=0).flatten(1)).view(slot.shape)
            far.append(torch.where(slot >= 0, found, -1))
        keys = torch.cat(far, dim=-1)
        query = (ends - self.window)[:, None] + torch.arange(self.window, device=memory.device)
        age = query[None, :, :, None] - keys[:, :, None, :]
        near = torch.arange(keys.shape[-1], device=memory.device) < 2 * self.window
        seen = torch.where(near, (age >= 0) & (age < self.window), age >= self.window)
        seen = seen & (keys >= 0)[:, :, None] & (keys < size)[:, :, None] & (query < size)[None, :, :, None]
        return keys.clamp(0, size - 1), seen


def gathered(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, seen: Tensor) -> Tensor:
    """Attention of blocks of queries, q (B, H, S, d), to gathered keys: see :meth:`LongCoder.plan`."""
    rows, blocks, window, _ = seen.shape
    size, d = q.shape[2], q.shape[3]
    q = F.pad(q, (0, 0, 0, blocks * window - size)).unflatten(2, (blocks, window)).transpose(1, 2).flatten(0, 1)
    at = keys.flatten(1)[:, None, :, None].expand(-1, k.shape[1], -1, d)
    k, v = (t.gather(2, at).unflatten(2, (blocks, -1)).transpose(1, 2).flatten(0, 1) for t in (k, v))
    # A query behind the end sees nothing: it may see the first key, and is cut off.
    blank = ~seen.any(-1, keepdim=True) & (torch.arange(seen.shape[-1], device=q.device) == 0)
    mask = (seen | blank).flatten(0, 1)[:, None]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return mixed.unflatten(0, (rows, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :size]


def definitions(pieces: list[str]) -> list[bool]:
    """Which tokens, given as pieces of text, are part of a Python line that imports or defines something."""
    text = "".join(pieces)
    inside = [False] * (len(text) + 1)
    for line in _DEFINITIONS.finditer(text):
        inside[line.start() : line.end()] = [True] * (line.end() - line.start())
    marks, at = [], 0
    for piece in pieces:
        marks.append(any(inside[at : at + len(piece)]))
        at += len(piece)
    return marks
