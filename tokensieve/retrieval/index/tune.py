"""Tune: whether an index scores all documents or candidates only, by measurement on the machine it is on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from tokensieve.retrieval.index import search
from tokensieve.retrieval.index.snapshot import Snapshot
from tokensieve.retrieval.scoring.ragged import Ragged

T = TypeVar("T")
BEST = 10
QUERIES = 16
LENGTH = 32
DEPTHS = (50, 100, 200, 400, 800, 1600)


def rerank(state: Snapshot, admitted: Sequence[Tensor]) -> int:
    """How many documents to score exactly by the measured plan; 0 for all of them."""
    plan = state.manifest["plan"]
    if not plan or not plan["rerank"] or len(state) > 2 * plan["documents"]:
        return 0
    return plan["rerank"] if sum(int(a.sum()) for a in admitted) > plan["above"] else 0


def measure(state: Snapshot, queries: Ragged | None, goal: float) -> dict[str, Any]:
    """The smallest depth that finds ``goal`` of the ten best, and the size above which it is faster than scoring all.

    Returns:
        ``rerank`` (0 where scoring all is faster or no depth suffices), ``above``, ``documents`` measured with, the
        ``recall`` at that depth, and medians in milliseconds of both ways for one query.
    """
    plan: dict[str, Any] = {"rerank": 0, "above": 0, "documents": len(state), "recall": 1.0}
    if state.sketch is None or len(state) <= BEST:
        return plan
    given = _samples(state) if queries is None else list(queries)
    admitted = [v.admitted(None) for v in state.views]
    every = [Ragged.of([q]) for q in given]
    search.exact(state.views, state.codec, every[0], admitted)
    truth, slow = zip(
        *(timed(lambda q=q: _flat(search.exact(state.views, state.codec, q, admitted))) for q in every), strict=True
    )
    plan["exact_ms"] = _median(slow)
    for depth in DEPTHS:
        if depth >= len(state):
            break
        found, fast = zip(
            *(timed(lambda q=q: _flat(_two(state, q, admitted, depth))) for q in every), strict=True  # noqa: B023
        )  # fmt: skip
        recall = sum(_recall(t, f) for t, f in zip(truth, found, strict=True)) / len(every)
        if recall >= goal:
            # Half the depth at the same size tells what reranking costs, whatever the size.
            _, half = zip(*(timed(lambda q=q: _two(state, q, admitted, depth // 2)) for q in every), strict=True)  # noqa: B023
            fixed = max(2 * (_median(fast) - _median(half)), 0.0)
            gain = plan["exact_ms"] - (_median(fast) - fixed)
            plan |= {"recall": recall, "two_stage_ms": _median(fast)}
            if _median(fast) < plan["exact_ms"]:
                plan |= {"rerank": depth, "above": int(len(state) * min(fixed / gain, 1.0))}
            break
    return plan


def _two(state: Snapshot, query: Ragged, admitted: Sequence[Tensor], depth: int) -> list[Tensor]:
    assert state.sketch is not None
    return search.two_stage(state.views, state.codec, state.sketch, query, admitted, depth)


def _recall(truth: Tensor, found: Tensor) -> float:
    """Share of the best places whose document was found; equals of the last one count as it."""
    least = truth.topk(min(BEST, len(truth))).values[-1]
    return min(int((found >= least).sum()) / BEST, 1.0)


def _samples(state: Snapshot) -> list[Tensor]:
    """Documents at equal steps, the first tokens of each."""
    places = [(v, d) for v, view in enumerate(state.views) for d in view.alive.nonzero()[:, 0].tolist()]
    picked = places[:: max(len(places) // QUERIES, 1)][:QUERIES]
    rows = [state.views[v].segment.tokens.take(torch.tensor([d]))[0] for v, d in picked]
    return [state.codec.decode(r)[:LENGTH] for r in rows]


def _flat(scores: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(scores))[:, 0]


def timed(call: Callable[..., T], *given: Any) -> tuple[T, float]:
    """What a call returns, and its milliseconds."""
    start = time.perf_counter()
    out = call(*given)
    return out, (time.perf_counter() - start) * 1e3


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
