"""Check of language models that remember blocks of tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.reference.block_transformer_184 import BlockTransformer
from benchmarks.reference.decoder import Decoder, Held, Shape
from benchmarks.systems import small
from benchmarks.systems.bed import CheckContext, Outcome, check

LENGTH, STEPS, BATCH, BLOCK = 256, 200, 8, 4
VANILLA = Shape(width=128, layers=4, heads=4, groups=4, head=32, mlp=384)
BLOCKS = Shape(width=128, layers=4, heads=4, groups=4, head=32, mlp=1024)  # the same cache for each block
TOKENS = Shape(width=128, layers=2, heads=4, groups=4, head=32, mlp=512)
ROWS, PROMPT, WRITTEN = 64, 1024, 16


def bits(logits_of: Callable[[Tensor], Tensor], rows: Tensor) -> float:
    """Per byte, of all but the first block; logits of byte t stand at place t."""
    losses = [
        F.cross_entropy(logits_of(part)[:, BLOCK:].flatten(0, 1), part[:, BLOCK:].flatten()) for part in rows.split(16)
    ]
    return round(float(torch.stack(losses).mean()) / math.log(2), 4)


def remembered(shape: Shape, count: int) -> dict[Any, Any]:
    """Keys and values of `count` things in each of ROWS rows, which may be anything where only time counts."""
    memory: dict[Any, Any] = {}
    for layer in range(shape.layers):
        memory[layer] = Held(room=count + WRITTEN)
        memory[layer].add(*torch.randn(2, ROWS, shape.groups, count, shape.head))
    return memory


def write_vanilla(model: Decoder, memory: dict[Any, Any]) -> None:
    ids = torch.zeros(ROWS, 1, dtype=torch.long)
    for i in range(WRITTEN):
        ids = model(ids, None, memory, PROMPT + i).argmax(-1)


def write_blocks(model: BlockTransformer, memory: dict[Any, Any]) -> None:
    memory["next"] = torch.randn(ROWS, 1, BLOCKS.width)
    for _ in range(WRITTEN // BLOCK):
        model.write(memory)


def seconds(run: Callable[[dict[Any, Any]], None], shape: Shape, count: int) -> float:
    memory = remembered(shape, count)
    start = time.perf_counter()
    run(memory)
    return time.perf_counter() - start


@check(184)
@torch.no_grad()
def block_transformer(bed: CheckContext) -> Outcome:
    """Byte models of 0.9 and 2.5 M parameters, equal steps: a quarter of the cache, at least twice the bytes a second
    in batches, and held-out bits per byte within 5% of the plain transformer's."""
    text, rows = small.read_bytes(4_000_000), small.held_out_bytes(LENGTH, 48)
    torch.manual_seed(0)
    vanilla, blocks = Decoder(256, VANILLA), BlockTransformer(256, BLOCKS, TOKENS, BLOCK)

    def shifted(ids: Tensor) -> Tensor:
        logits = vanilla(ids)
        return torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], dim=1)

    def train(name: str, model: Any, logits_of: Callable[[Tensor], Tensor]) -> None:
        def loss(ids: Tensor) -> Tensor:
            return F.cross_entropy(logits_of(ids).float().flatten(0, 1), ids.flatten())

        small.train(f"184 {name}", model, loss, small.windows(text, LENGTH), STEPS, 2e-3, BATCH)

    train("vanilla", vanilla, shifted)
    train("blocks", blocks, blocks)
    n: dict[str, Any] = {"bits per byte": bits(blocks, rows), "vanilla bits per byte": bits(shifted, rows)}
    parameters = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (blocks, vanilla)]
    n["million parameters"], n["vanilla million parameters"] = (round(p, 2) for p in parameters)
    memory: dict[Any, Any] = {}
    vanilla(rows[:1], None, memory)
    opened = blocks.open(rows[:1])
    n["bytes per byte"] = round(sum(opened[i].bytes() for i in range(BLOCKS.layers)) / LENGTH)
    n["vanilla bytes per byte"] = round(sum(memory[i].bytes() for i in range(VANILLA.layers)) / LENGTH)
    times = [
        (
            seconds(lambda m: write_vanilla(vanilla, m), VANILLA, PROMPT),
            seconds(lambda m: write_blocks(blocks, m), BLOCKS, PROMPT // BLOCK),
        )
        for _ in range(5)
    ]
    n["times faster"] = round(median(a / b for a, b in times), 2)
    fewer = n["vanilla bytes per byte"] / n["bytes per byte"]
    good = n["bits per byte"] <= 1.05 * n["vanilla bits per byte"]
    return good and fewer > 0.95 * BLOCK and n["times faster"] >= 2, n
