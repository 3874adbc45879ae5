"""Tune: how many candidates are scored exactly, by what is measured on queries of the index's own texts; the same on every
machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from tokensieve.retrieval.index import search
from tokensieve.retrieval.index.snapshot import Snapshot
from tokensieve.retrieval.scoring.ragged import Ragged

T = TypeVar("T")
KS = (10, 50, 100)
"""Hits asked for, at which depths are measured; in between they are interpolated, beyond they grow with k."""
QUERIES = 48
LENGTH = 10
"""Vectors of a query that is taken out of a stored document: those of a short question."""
MARGIN = 1.5
"""How much deeper than measured: questions are not the sentences that stand in for them."""
GATHER = 2.0
"""How many documents in a row are scored in the time of one that is gathered. Taken for all machines, so that equal indexes
answer equally."""


def rerank(state: Snapshot, admitted: Sequence[Tensor], k: int) -> int:
    """How many documents to score exactly by the measured plan; 0 for all of them."""
    plan = state.manifest["plan"]
    if plan is None or not usable(plan) or len(state) > 2 * plan["documents"]:
        return 0
    depth = depth_at(plan["depths"], k)
    return depth if GATHER * depth < (1 - plan["share"]) * sum(int(a.sum()) for a in admitted) else 0


def usable(plan: Mapping[str, Any] | None) -> bool:
    """Whether a manifest's plan is one of this release, and of an index that has candidates."""
    return plan is not None and bool(plan.get("depths"))


def depth_at(depths: Mapping[str, int], k: int) -> int:
    """The depth for k hits; that of few hits is that of the least number measured."""
    known = sorted((int(name), depth) for name, depth in depths.items())
    for (a, low), (b, high) in pairwise(known):
        if k < b:
            return max(low + -(-(high - low) * max(k - a, 0) // (b - a)), k)
    last, depth = known[-1]
    return max(-(-depth * max(k, last) // last), k)


def measure(
    state: Snapshot, queries: Ragged | None, goal: float, without: Sequence[str | None] | None = None
) -> dict[str, Any]:
    """The depths that find ``goal`` of the best documents for each of several k.

    Args:
        queries: None for stretches of stored documents, which are then left out of what is sought.
        without: the id of a document that each query was made of, and that is left out.

    Returns:
        ``depths`` by k, empty where every document is scored; ``documents`` measured with; ``recall`` of the ten best at that
        depth; ``share``, the work of looking at all sketches over that of scoring all documents.
    """
    plan: dict[str, Any] = {"depths": {}, "documents": len(state), "recall": 1.0, "share": 0.0}
    if state.sketch is None or len(state) <= max(KS):
        return plan
    admitted = [v.admitted(None) for v in state.views]
    alive = torch.cat(admitted)
    if queries is None:
        given, left_out = _samples(state)
    else:
        given, left_out = queries, _places(state, without or [None] * len(queries))
    truth = torch.cat(search.exact(state.views, state.codec, given, admitted))
    rough = torch.cat(search.rough(state.views, state.sketch, given, admitted))
    best = []
    for b, place in enumerate(left_out):
        open_ = alive.clone()
        if place is not None:
            open_[place] = False
        order = rough[:, b].masked_fill(~open_, -torch.inf).argsort(descending=True, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        top = truth[:, b].masked_fill(~open_, -torch.inf).topk(min(max(KS), int(open_.sum()))).indices
        best.append(rank[top] + 1)
    ranks = torch.stack(best)
    for k in KS:
        least = ranks[:, :k].flatten().sort().values
        # Half of what the goal lets go is left for questions that are harder than these.
        place = min(int((1 - (1 - goal) / 2) * len(least)), len(least) - 1)
        plan["depths"][str(k)] = max(-(-int(MARGIN * int(least[place])) // 10) * 10, k)
    for few, many in pairwise(KS):
        plan["depths"][str(many)] = max(plan["depths"][str(few)], plan["depths"][str(many)])
    plan["recall"] = float((ranks[:, : KS[0]] <= plan["depths"][str(KS[0])]).float().mean())
    work = [(v.segment.rows["sketch"].lengths.sum(), v.segment.tokens.lengths.sum()) for v in state.views]
    sketches, tokens = (int(sum(w)) for w in zip(*work, strict=True))
    plan["share"] = sketches * state.sketch.size / max(tokens * state.manifest["dim"], 1)
    return plan


def _places(state: Snapshot, ids: Sequence[str | None]) -> list[int | None]:
    """Where documents stand among those of all views."""
    starts = [0]
    for view in state.views:
        starts.append(starts[-1] + view.segment.docs)
    found = state.find([i or "" for i in ids])
    return [None if i is None or p is None else starts[p[0]] + p[1] for i, p in zip(ids, found, strict=True)]


def _samples(state: Snapshot) -> tuple[Ragged, list[int | None]]:
    """Stretches from the middle of documents at equal steps, and where those documents stand."""
    places, start = [], 0
    for v, view in enumerate(state.views):
        places += [(v, d, start + d) for d in view.admitted(None).nonzero()[:, 0].tolist()]
        start += view.segment.docs
    picked = places[:: max(len(places) // QUERIES, 1)][:QUERIES]
    out = []
    for v, d, _ in picked:
        rows = state.codec.decode(state.views[v].segment.tokens.take(torch.tensor([d]))[0])
        first = max((len(rows) - LENGTH) // 2, 0)
        out.append(rows[first : first + LENGTH])
    return Ragged.of(out), [place for _, _, place in picked]


def timed(call: Callable[..., T], *given: Any) -> tuple[T, float]:
    """What a call returns, and its milliseconds."""
    start = time.perf_counter()
    out = call(*given)
    return out, (time.perf_counter() - start) * 1e3
