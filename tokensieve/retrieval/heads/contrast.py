"""Contrast: differentiable MaxSim, the in-batch loss, and one training loop for every module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding


def pad(vectors: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """From ragged ``(T, d)`` and ``(n + 1,)`` to ``(n, N, d)`` and which of it is valid, ``(n, N)``; zeros elsewhere."""
    lengths = offsets.diff()
    step = torch.arange(int(lengths.max()))
    mask = step < lengths[:, None]
    place = (offsets[:-1, None] + step).where(mask, 0)
    return vectors[place] * mask[..., None].to(vectors.dtype), mask


def chamfer(queries: Tensor, query_mask: Tensor, documents: Tensor, document_mask: Tensor) -> Tensor:
    """``(B, D)``: MaxSim of every query ``(B, n, d)`` with every document ``(D, N, d)``, over the query's number of vectors.

    Gradients reach the best match of each query vector and nothing else, as those of the maximum do (of equal ones the first);
    the other similarities are not kept for the backward pass.

    Raises:
        ValueError: a query or a document without a vector.
    """
    for name, mask in (("query", query_mask), ("document", document_mask)):
        if not bool(mask.any(1).all()):
            raise ValueError(f"{name} {int(mask.any(1).long().argmin())} has no vectors; every one needs at least one")
    asked, flat = queries[query_mask], documents.flatten(0, 1)
    with torch.no_grad():
        like = (asked @ flat.T).view(len(asked), *document_mask.shape).masked_fill_(~document_mask, -torch.inf)
        best = like.argmax(2) + torch.arange(len(documents)) * documents.shape[1]
    value = (asked[:, None] * embedding(best, flat)).sum(2)
    owner = query_mask.nonzero()[:, 0]
    total = value.new_zeros(len(queries), len(documents)).index_add(0, owner, value)
    return total / query_mask.sum(1, keepdim=True)


def in_batch(scores: Tensor, temperature: float = 0.05) -> Tensor:
    """Cross entropy of ``(B, B)`` scores, where the document of a query is the one of its own row, and others are negatives."""
    if scores.dim() != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(f"scores have shape {tuple(scores.shape)}; pass one document for each query, (B, B)")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}; it must be above 0, 0.05 by default")
    return cross_entropy(scores / temperature, torch.arange(len(scores)))


def batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of ``size`` of ``count`` examples, each example once before any comes again."""
    draw = torch.Generator().manual_seed(seed)
    size = min(size, count)
    while True:
        yield from torch.randperm(count, generator=draw)[: count // size * size].split(size)


def fit(
    parts: Sequence[nn.Module],
    loss: Callable[[Tensor], Tensor],
    count: int,
    *,
    steps: int,
    batch: int = 32,
    rate: float = 5e-4,
    seed: int = 0,
    what: str = "training",
) -> list[float]:
    """Train modules by AdamW: the rate rises over the first tenth of the steps and falls to zero over the rest.

    Args:
        loss: maps which examples of ``count`` are in the batch, ``(batch,)`` long, to a scalar.
        what: beside the progress bar.

    Returns:
        the loss of each step.
    """
    free = [p for part in parts for p in part.parameters() if p.requires_grad]
    rule = torch.optim.AdamW(free, lr=rate)
    warm = max(steps // 10, 1)
    pace = torch.optim.lr_scheduler.LambdaLR(
        rule, lambda step: min((step + 1) / warm, (steps - step) / max(steps - warm, 1))
    )
    for part in parts:
        part.train()
    drawn, found = batches(count, batch, seed), []
    for _ in track(range(steps), description=what, console=Console(stderr=True)):
        value = loss(next(drawn))
        rule.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(free, 1.0)
        rule.step()
        pace.step()
        found.append(value.item())
    for part in parts:
        part.eval()
    return found
