"""Checks of attention that looks for something, on generated tasks: one training each, equal steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.reference.decoder import Decoder, Shape
from benchmarks.reference.mta_348 import MultiTokenAttention
from benchmarks.reference.tree_cross_attention_274 import TreeCrossAttention, Walk, retreever_loss
from benchmarks.systems import small
from benchmarks.systems.bed import SEED, CheckContext, Outcome, check

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
def tree(bed: CheckContext) -> Outcome:
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


LETTERS, BLOCKS, LETTERS_OF_BLOCK = 26, 8, 5
DOT, ASK = LETTERS, LETTERS + 1
FINDER = Shape(width=64, layers=3, heads=4, groups=4, head=16, mlp=192)


def find_sample(index: int, seed: int = SEED) -> Tensor:
    """Blocks of letters, a question of two letters that one block alone holds both of, and that block."""
    draw = torch.Generator().manual_seed(1_000_003 * seed + index)
    orders = torch.rand(8 * BLOCKS, LETTERS, generator=draw).argsort(1)[:, :LETTERS_OF_BLOCK]
    asked = orders[0, torch.randperm(LETTERS_OF_BLOCK, generator=draw)[:2]]
    others = orders[1:]
    fair = others[~(others[:, :, None] == asked).any(1).all(1)][: BLOCKS - 1]
    blocks = torch.cat([orders[:1], fair])[torch.randperm(BLOCKS, generator=draw)]
    text = F.pad(blocks, (0, 1), value=DOT).flatten()
    return torch.cat([text, torch.tensor([ASK]), asked, orders[0]])


@check(348)
@torch.no_grad()
def mta(bed: CheckContext) -> Outcome:
    """Naming the one of 8 blocks of 5 letters that holds both letters asked for, equal steps and sizes: share of wrong
    blocks below plain attention's; no logits change with a later token."""
    n: dict[str, Any] = {}
    test = torch.stack([find_sample(i, SEED + 1) for i in range(256)])
    for name in ("plain", "mta"):
        torch.manual_seed(SEED)
        model = nn.ModuleDict({"decoder": Decoder(ASK + 1, FINDER)})
        if name == "mta":
            model["attend"] = MultiTokenAttention(FINDER, query=2, key=2 * LETTERS_OF_BLOCK - 1)
        attend = model["attend"] if name == "mta" else None

        def answers(rows: Tensor, model: nn.ModuleDict = model, attend: Any = attend) -> Tensor:
            return model["decoder"](rows, attend)[:, -LETTERS_OF_BLOCK - 1 : -1]

        def loss(rows: Tensor, answers: Any = answers) -> Tensor:
            return F.cross_entropy(answers(rows).float().flatten(0, 1), rows[:, -LETTERS_OF_BLOCK:].flatten())

        small.train(f"348 {name}", model, loss, find_sample, 500, 2e-3, 48)
        right = (answers(test).argmax(-1) == test[:, -LETTERS_OF_BLOCK:]).all(-1)
        n[f"{name} wrong"] = round(1 - float(right.float().mean()), 4)
        n[f"{name} parameters"] = sum(p.numel() for p in model.parameters())
    changed = test.clone()
    changed[:, -1] = (changed[:, -1] + 1) % LETTERS
    moved = model["decoder"](test, model["attend"]) - model["decoder"](changed, model["attend"])
    n["leak"] = float(moved[:, :-1].abs().max())
    return n["mta wrong"] < n["plain wrong"] and n["leak"] < 1e-5, n
