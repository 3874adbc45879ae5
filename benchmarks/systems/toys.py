"""Checks of attention that looks for something, on generated tasks: one training each, equal steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.systems import small
from benchmarks.systems.bed import SEED, Bed, Outcome, check
from tokensieve.modules.tree import TreeCrossAttention, Walk, retreever_loss

COPIED, SYMBOLS, WIDTH, ASKED = 256, 10, 64, 64


class Copier(nn.Module):
    """Says which symbol stands at a place: symbols (B, N), places asked (B, M) to logits (B, M, SYMBOLS).

    `kind` is "tree", "full" (attention to all) or "latents" (as many vectors, which read the context, as a tree shows).
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.symbols = nn.Embedding(SYMBOLS, WIDTH)
        self.context, self.query = (
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)) for _ in range(2)
        )
        self.look = TreeCrossAttention(WIDTH)
        self.look.k.load_state_dict(
            self.look.q.state_dict()
        )  # a place then finds itself: most of the training otherwise
        if kind == "latents":
            self.latents = nn.Parameter(torch.randn(1, COPIED.bit_length(), WIDTH))
            self.read = TreeCrossAttention(WIDTH)
        self.say = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, SYMBOLS))
        speed = (2 * COPIED) ** (-torch.arange(WIDTH // 2) / (WIDTH // 2 - 1))
        angle = 2 * torch.arange(COPIED)[:, None] * speed
        self.register_buffer("places", torch.cat([angle.sin(), angle.cos()], dim=-1))

    def forward(self, symbols: Tensor, asked: Tensor) -> tuple[Tensor, Walk | None]:
        x = self.places + self.symbols(symbols)
        x = x + self.context(x)
        q = self.places[asked]
        q = q + self.query(q)
        if self.kind == "tree":
            walk = self.look(q, x)
            return self.say(walk.output), walk
        if self.kind == "latents":
            x = self.read.attend_all(self.latents.expand(len(x), -1, -1), x)
        return self.say(self.look.attend_all(q, x)), None


def copy_sample(index: int, seed: int = SEED) -> Tensor:
    """(N + ASKED,): symbols and places."""
    draw = torch.Generator().manual_seed(1_000_003 * seed + index)
    symbols = torch.randint(SYMBOLS, (COPIED,), generator=draw)
    return torch.cat([symbols, torch.randperm(COPIED, generator=draw)[:ASKED]])


@check(274)
@torch.no_grad()
def tree(bed: Bed) -> Outcome:
    """Copying 256 symbols, equal steps: accuracy of 9 nodes of the tree within 2 points of attention to all
    256 and above 9 latents that read them."""
    n: dict[str, Any] = {}
    for kind in ("full", "tree", "latents"):
        torch.manual_seed(SEED)
        model = Copier(kind)

        def loss(rows: Tensor, model: Copier = model) -> Tensor:
            symbols, asked = rows[:, :COPIED], rows[:, COPIED:]
            gold = symbols.gather(1, asked)
            logits, walk = model(symbols, asked)
            if walk is None:
                return F.cross_entropy(logits.float().flatten(0, 1), gold.flatten())
            return retreever_loss(logits, model.say(walk.leaves), gold, walk)

        small.train(f"274 {kind}", model, loss, copy_sample, 400, 2e-3, 16)
        rows = torch.stack([copy_sample(i, SEED + 1) for i in range(64)])
        logits, walk = model(rows[:, :COPIED], rows[:, COPIED:])
        gold = rows[:, :COPIED].gather(1, rows[:, COPIED:])
        n[kind] = round(float((logits.argmax(-1) == gold).float().mean()), 4)
        if walk is not None:
            n["nodes of a query"] = walk.nodes
    return n["tree"] >= n["full"] - 0.02 and n["tree"] > n["latents"], n
