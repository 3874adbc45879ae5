"""A language model that reads and remembers blocks of tokens, and writes a block's tokens from one embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.reference.decoder import Shape, Stack


class BlockTransformer(nn.Module):
    """Logits (B, T, V) for the tokens (B, T) themselves: those of token t depend on tokens before t only.

    The *embedder* looks up `length` tokens and puts their vectors side by side; the *block decoder* attends to earlier
    blocks; the *token decoder* sees its block's embedding, unfolded to `prefix` vectors, and the block's own tokens
    before the one it writes, nothing else. So only one key and value per block and layer is remembered, and the token
    decoder's are forgotten with every block (:meth:`ledger`).

    Source: Block Transformer, arXiv 2406.02657, lookup embedder and prefix decoding. Deviation: the first block is
    written from a learned embedding, while the public code never writes it.
    """

    def __init__(self, vocabulary: int, block: Shape, token: Shape, length: int = 4, prefix: int = 2):
        super().__init__()
        if length < 1 or block.width % length:
            raise ValueError(
                f"length={length} tokens must share the block width {block.width} evenly; take a divisor of it"
            )
        if prefix < 1:
            raise ValueError(
                f"prefix={prefix} must be at least 1, or the token decoder learns nothing of what was before"
            )
        self.length, self.prefix = length, prefix
        self.embed = nn.Embedding(vocabulary, block.width // length)
        self.start = nn.Parameter(0.5 * torch.randn(block.width))
        self.blocks = Stack(block)
        self.unfold = nn.Linear(block.width, prefix * token.width, bias=False)
        self.embed_token = nn.Embedding(vocabulary, token.width)
        self.tokens = Stack(token)
        self.head = nn.Linear(token.width, vocabulary, bias=False)
        for table in (self.embed, self.embed_token):
            nn.init.normal_(table.weight, std=0.5)
        nn.init.normal_(self.head.weight, std=0.5 * token.width**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        rows, count = ids.shape[0], self._whole(ids)
        read = torch.cat([self.start.expand(rows, 1, -1), self._embed(ids)[:, :-1]], dim=1)
        prefix = self._unfold(self.blocks(read)).flatten(0, 1)
        before = self.embed_token(ids.reshape(rows * count, self.length)[:, :-1])
        local = self.tokens(torch.cat([prefix, before], dim=1))[:, self.prefix - 1 :]
        return self.head(local).reshape(*ids.shape, -1)

    def open(self, ids: Tensor) -> dict[Any, Any]:
        """What is remembered of a prompt (B, T): `memory[layer]` of the block decoder's layers; and what comes next."""
        self._whole(ids)
        memory: dict[Any, Any] = {}
        read = torch.cat([self.start.expand(len(ids), 1, -1), self._embed(ids)], dim=1)
        memory["next"] = self.blocks(read, None, memory)[:, -1:]
        return memory

    def write(self, memory: dict[Any, Any]) -> Tensor:
        """The likeliest next block (B, length), after which `memory` holds that block as well."""
        local: dict[Any, Any] = {}
        x = self._unfold(memory["next"])[:, 0]
        ids: list[Tensor] = []
        for i in range(self.length):
            start = 0 if i == 0 else self.prefix + i - 1
            ids.append(self.head(self.tokens(x, None, local, start)[:, -1:]).argmax(-1))
            x = self.embed_token(ids[-1])
        block = torch.cat(ids, dim=1)
        memory["next"] = self.blocks(self._embed(block), None, memory, memory[0].length)
        return block

    def ledger(self, tokens: int, size: int = 4) -> dict[str, int]:
        """Bytes of keys and values for one row of `tokens` tokens, numbers of `size` bytes: those that stay, with the
        one embedding in front, and those of the block that is being written."""
        b, t = self.blocks.shape, self.tokens.shape
        return {
            "block decoder": 2 * b.layers * b.groups * b.head * (tokens // self.length + 1) * size,
            "token decoder": 2 * t.layers * t.groups * t.head * (self.prefix + self.length - 1) * size,
        }

    def _embed(self, ids: Tensor) -> Tensor:
        return self.embed(ids).reshape(len(ids), -1, self.blocks.shape.width)

    def _unfold(self, x: Tensor) -> Tensor:
        return self.unfold(x).unflatten(-1, (self.prefix, -1))

    def _whole(self, ids: Tensor) -> int:
        if ids.shape[1] % self.length:
            raise ValueError(
                f"{ids.shape[1]} tokens are no whole number of blocks of {self.length}; pad them on the left to "
                f"{-(-ids.shape[1] // self.length) * self.length}"
            )
        return ids.shape[1] // self.length
