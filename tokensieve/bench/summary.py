"""Summary: the rows of a bench on people's own data, from what was found of each item."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from tokensieve.bench.equal import FULL, Cell, nearest_random
from tokensieve.bench.paired import interval, paired
from tokensieve.bench.rounds import Record, Rounds

Records = Mapping[str, Record]
Scores = Mapping[str, Callable[[Record], float | None]]
"""By name, what is compared of a record; None where an item says nothing of it."""


def rows(rounds: Rounds, scores: Scores) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """A row for each cell that has been through every item: what it costs, and its paired differences; and the items that all
    have answered, of which it is.

    Args:
        scores: what is compared.
    """
    here, names = rounds.answered([s["name"] for s in rounds.results.data["samples"]])
    if not names:
        raise ValueError(f"there is nothing that every plan can take: {'; '.join(rounds.notes)}")
    passes = rounds.paid()
    costs = rounds.work.costs(passes, here)
    seed = int(rounds.results.data["settings"]["seed"])
    out = {}
    for cell in here:
        mine = [rounds.records[cell.key][n] for n in names]
        row: dict[str, Any] = {"method": cell.method, "keep": cell.keep, "site": _site(cell), "unranked": cell.unranked}
        row["added"] = cell.added
        row |= rounds.work.row_of(passes[cell.key])
        beside = next((found for c in costs if (found := nearest_random(cell, c, here)) is not None), None)
        row["random_at"] = None if beside is None else beside.key
        row["paired"] = {
            name: {
                "full": _difference(mine, [rounds.records[FULL][n] for n in names], score, seed) if cell.plan else None,
                "random": _difference(mine, [rounds.records[beside.key][n] for n in names], score, seed)
                if beside
                else None,
            }
            for name, score in scores.items()
        }
        out[cell.key] = row
    return out, names


def by_kind(records: Sequence[Record], of: Sequence[str]) -> dict[str, Any]:
    """Scores by kind of question (``of``, in the order of the records) and over all questions, with the interval of their mean,
    and the answers."""
    mine = list(zip(of, records, strict=True))
    kinds: dict[str, list[float]] = {}
    for kind, record in mine:
        kinds.setdefault(kind, []).append(record["score"])
    scores = [record["score"] for _, record in mine]
    return {
        "accuracy": {kind: round(mean(some), 4) for kind, some in kinds.items()},
        "accuracy_mean": round(mean(scores), 4),
        "interval": interval(scores),
        "agreement": round(mean(float(r["same"]) for _, r in mine), 4),
        "kl": round(mean(r["kl"] for _, r in mine), 5),
        "answers": [r["said"] for _, r in mine],
    }


def continued(records: Sequence[Record]) -> dict[str, Any]:
    """What texts say of a method: perplexity and the like as means over the texts."""

    def told(name: str) -> float | None:
        some = [r[name] for r in records if r.get(name) is not None]
        return round(mean(some), 4) if some else None

    nats = mean(r["nats"] for r in records)
    return {
        "accuracy": {},
        "accuracy_mean": None,
        "quality": -nats,
        "perplexity": round(math.exp(nats), 4),
        "bits": round(mean(r["bits"] for r in records), 4),
        "agreement": round(mean(r["agree"] for r in records), 4),
        "kl": round(mean(r["kl"] for r in records), 5),
        "after": told("after"),
        "before": told("before"),
    }


def _difference(
    ours: Sequence[Record], theirs: Sequence[Record], score: Callable[[Record], float | None], seed: int
) -> Any:
    both = [
        (a, b) for a, b in zip(map(score, ours), map(score, theirs), strict=True) if a is not None and b is not None
    ]
    return paired([a for a, _ in both], [b for _, b in both], seed).to_json() if both else None


def _site(cell: Cell) -> str:
    return "" if cell.plan is None else "+".join(dict.fromkeys(s.site for s in cell.plan.stages))
