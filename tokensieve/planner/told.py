"""What a search was told: every candidate's scores and costs, kept on disk, and how candidates stand by some of the items."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from tokensieve.core.files import write_json
from tokensieve.planner.kept import Kept, kept

FORMAT = "tokensieve.search.1"
FULL = "full"
NEAR = 0.02
"""How far costs may be apart and still count as equal, as a share."""


@dataclass(frozen=True)
class Replies:
    """What one candidate said to some items.

    Attributes:
        scores: of each item, the higher the better, on a scale on which their sums may be divided; not all 0 for the full model.
        cost: of these items, as a share of what they cost the full model.
    """

    scores: Sequence[float]
    cost: float


@dataclass(frozen=True)
class Terms:
    """What is looked for, and what decides how.

    Attributes:
        goal: the share of the full model's score that has to stay, in (0, 1].
        minutes: of asking, over all sittings together.
        batch: items that are asked at once, at most.
        least: items that have to judge at least; what :func:`tokensieve.planner.kept.fewest` says of the goal if None.
        about: whatever else decides the numbers (model, data, seed of methods, ...), for a search to go on only with the same.
    """

    goal: float
    minutes: float
    batch: int = 20
    seed: int = 0
    least: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.goal <= 1:
            raise ValueError(
                f"quality={self.goal:g}: the share of the full model's score that has to stay lies in (0, 1]"
            )
        if not self.minutes > 0:
            raise ValueError(f"minutes={self.minutes:g}: it must be above 0")


@dataclass(frozen=True)
class Standing:
    """How a candidate stands.

    Attributes:
        cost: median over the calls, as a share of the full model's; costs: of each call.
        seen: what it keeps on all items that it was asked; held: on those that judge, None where it was not asked all of them.
        hope: see :func:`hopes`.
    """

    cost: float
    costs: tuple[float, ...]
    seen: Kept
    held: Kept | None
    hope: float


class Answered:
    """Scores and costs by candidate and item, as they are on disk.

    Attributes:
        scores: by candidate, the full model among them, and item.
        left: why candidates cannot be asked.
        seconds: of asking so far; first, last: of the first and the last call.
        answers: how many there were, the full model's counted.
    """

    def __init__(self, file: Path, terms: Terms, candidates: Sequence[str], items: Sequence[str]):
        """Open a file, or begin one.

        Raises:
            ValueError: it holds a search on other terms, or is none.
        """
        self._file, self._terms = file, terms
        self._data = _opened(file, {**asdict(terms), "candidates": list(candidates), "items": sorted(items)})
        self.scores: dict[str, dict[str, float]] = self._data["scores"]
        self.costs: dict[str, dict[str, float]] = self._data["costs"]
        self.left: dict[str, str] = self._data["left"]

    @property
    def seconds(self) -> float:
        return float(self._data["seconds"])

    @property
    def last(self) -> float:
        return float(self._data["last"])

    @property
    def first(self) -> float:
        return float(self._data["first"])

    @property
    def answers(self) -> int:
        return int(self._data["answers"])

    def add(self, items: Sequence[str], told: Mapping[str, Replies | str], seconds: float) -> None:
        """What some candidates, and the full model, said to the same items; on disk when this returns.

        Raises:
            OSError: it could not be written; what was told before is intact.
        """
        for key, one in told.items():
            if isinstance(one, str):
                self.left[key] = one
                continue
            if not all(map(math.isfinite, (*one.scores, one.cost))):
                raise ValueError(f"{key}: scores and costs must be finite numbers; got {one}")
            self.scores.setdefault(key, {}).update(zip(items, map(float, one.scores), strict=True))
            if key != FULL:
                self.costs.setdefault(key, {})[items[0]] = float(one.cost)
        self._data["seconds"] += seconds
        self._data["last"] = seconds
        self._data["first"] = self._data["first"] or seconds
        self._data["answers"] += len(items) * len(told)
        self.write()

    def write(self) -> None:
        write_json(self._file, self._data)

    def decided(self, name: str, decide: Callable[[], Any]) -> Any:
        """A decision that depends on time, as it was taken when it was first asked for."""
        if name not in self._data["decided"]:
            self._data["decided"][name] = decide()
        return self._data["decided"][name]

    def knows(self, key: str, items: Sequence[str]) -> bool:
        known = self.scores.get(key, {})
        return all(i in known for i in items)

    def worthless(self, items: Sequence[str]) -> bool:
        """Whether the full model scores nothing on these."""
        return sum(self.scores[FULL][i] for i in items) <= 0

    def kept(self, key: str, items: Sequence[str]) -> Kept:
        """What a candidate keeps on some items."""
        ours, full = self.scores[key], self.scores[FULL]
        spread = self._spread(items)
        return kept([ours[i] for i in items], [full[i] for i in items], self._terms.goal, spread, self._terms.seed)

    def stand(self, keys: Sequence[str], items: Sequence[str]) -> dict[str, Standing]:
        """How candidates stand by those of these items that each was asked, the most hopeful first."""
        seen, costs = {}, {}
        for key in keys:
            asked = [i for i in items if i in self.scores.get(key, {})]
            if asked and not self.worthless(asked):
                seen[key] = self.kept(key, asked)
                costs[key] = tuple(self.costs[key][i] for i in asked if i in self.costs[key])
        hope = hopes({key: (median(costs[key]), seen[key].chance) for key in seen})
        out = {key: Standing(median(costs[key]), costs[key], seen[key], None, hope[key]) for key in seen}
        return dict(sorted(out.items(), key=lambda pair: (-pair[1].hope, -pair[1].seen.share, pair[1].cost)))

    def _spread(self, items: Sequence[str]) -> float:
        """The largest change of a score by any candidate."""
        full, wanted = self.scores[FULL], set(items)
        far = [abs(x - full[i]) for told in self.scores.values() for i, x in told.items() if i in wanted]
        return max(far) or max(full[i] for i in items)


def doubt(chance: float) -> float:
    """What a chance of keeping the goal leaves to costlier candidates: all, while it is not more likely than not."""
    return min(1.0, 2 - 2 * chance)


def hopes(standing: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """By candidate the chance that it keeps the goal, times the doubt whether a cheaper one does.

    Args:
        standing: by candidate its cost and its chance of keeping the goal, which are taken as independent. Of those whose costs
            are within ``NEAR`` the one with the best chance counts as the cheapest. One that costs no less than the full model
            has no hope.
    """
    out = dict.fromkeys(standing, 0.0)
    ranked = sorted((cost, key) for key, (cost, _) in standing.items() if cost < 1)
    left, start = 1.0, 0
    while start < len(ranked):
        end = next((i for i, (c, _) in enumerate(ranked) if c > ranked[start][0] * (1 + NEAR)), len(ranked))
        for key in sorted((k for _, k in ranked[start:end]), key=lambda k: (-standing[k][1], k)):
            out[key] = left * standing[key][1]
            left *= doubt(standing[key][1])
        start = end
    return out


def mark(value: Any) -> str:
    """A fingerprint of a value that JSON can hold."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _opened(file: Path, terms: dict[str, Any]) -> dict[str, Any]:
    """What a file holds of a search on the same terms, or a fresh one."""
    terms = json.loads(json.dumps(terms))
    if not file.exists():
        fresh: dict[str, Any] = {
            "scores": {},
            "costs": {},
            "left": {},
            "decided": {},
            "seconds": 0.0,
            "first": 0.0,
            "last": 0.0,
            "answers": 0,
        }
        return {"format": FORMAT, "terms": terms, **fresh}
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no search: {error}") from error
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise ValueError(f"{file} is no search of this version (its format is not {FORMAT!r}); choose another folder")
    old, new = ({**t, **t["about"], "about": None} for t in (held["terms"], terms))
    changed = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
    if changed:
        told = ", ".join(_change(k, old.get(k), new.get(k)) for k in changed)
        raise ValueError(f"{file} holds a search on other terms ({told}); choose another folder, or delete it")
    return held


def _change(name: str, old: Any, new: Any) -> str:
    short = all(not isinstance(x, (list, dict)) for x in (old, new))
    return f"{name}: {old!r} there, {new!r} asked for" if short else name
