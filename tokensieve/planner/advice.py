"""Advice: what a search has found, in one sentence, and what the sentence is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tokensieve.bench.equal import FULL, Cell
from tokensieve.bench.measure import break_even
from tokensieve.bench.paired import LEVEL, interval
from tokensieve.bench.rounds import Pass
from tokensieve.core.plan import Plan
from tokensieve.planner.advise_config import TARGETS, AdviseConfig
from tokensieve.planner.asking import COSTS
from tokensieve.planner.halving import Outcome
from tokensieve.planner.kept import Kept, sure


@dataclass(frozen=True)
class Advice:
    """Which plan, what it loses and what it saves; or why there is none.

    Attributes:
        sentence: all of it, in words.
        plan: what to attach; None where there is no advice. It is in ``plan.json`` in ``out``.
        name: what the plan is called; quality: what it keeps of the full model's score, on items that the search did not see.
        saved: what it costs as shares of the full model's: "latency", "prefill", "memory", and "flops" of questions and images.
        why: "" or why there is no plan (see :class:`tokensieve.planner.halving.Outcome`).
        outcome: what the search found; out: the folder with the page, ``advice.html``.
    """

    sentence: str
    plan: Plan | None
    name: str | None
    quality: Kept | None
    saved: Mapping[str, float]
    why: str
    outcome: Outcome
    out: Path

    def __str__(self) -> str:
        return self.sentence

    def to_json(self) -> dict[str, Any]:
        """What a program reads: the sentence, the plan, what it keeps and costs, and how all others stand."""
        return {
            "sentence": self.sentence,
            "why": self.why,
            "name": self.name,
            "plan": None if self.plan is None else self.plan.to_json(),
            "quality": None if self.quality is None else self.quality.to_json(),
            "saved": dict(self.saved),
            "standings": {key: asdict(s) for key, s in self.outcome.standings.items()},
            "untried": self.outcome.untried,
            "left": self.outcome.left,
            "seconds": self.outcome.seconds,
            "out": str(self.out),
        }


Passes = Mapping[str, Mapping[str, Pass]]
"""What batches cost, by plan and the first item of each batch."""


def told(outcome: Outcome, asked: AdviseConfig, items: int, cells: Mapping[str, Cell], passes: Passes) -> str:
    """The sentence.

    Args:
        items: how many there were to ask.
    """
    if outcome.chosen is not None:
        return _chosen(outcome, asked, cells[outcome.chosen], passes)
    return _WHY[outcome.why](outcome, asked, items)


def label(cell: Cell, passes: Sequence[Pass]) -> str:
    """A plan as people say it: "fastervlm at 144"."""
    if passes and passes[0].get("visual") and passes[0]["mean_tokens"] < passes[0]["visual"]:
        mean, whole = (sum(p["count"] * p[k] for p in passes) / sum(p["count"] for p in passes) for k in _TOKENS)
        sites = {s.site for s in cell.plan.stages} if cell.plan else set()
        over = ", the mean over layers," if "prefill" in sites else ""
        return f"{cell.key.rpartition('@')[0]} at {mean:.0f}{over} of {whole:.0f} visual tokens"
    keep = f"{100 * cell.keep:g}%" if isinstance(cell.keep, float) else f"{cell.keep} entries"
    return f"{cell.method} at {keep} of the cache"


_TOKENS = ("mean_tokens", "visual")


def saved(key: str, passes: Passes) -> dict[str, float]:
    """What a plan costs as a share of the full model's: medians over what was asked together."""
    both = [(passes[key][first], passes[FULL][first]) for first in passes[key]]
    out = {name: median(of(ours) / of(full) for ours, full in both) for name, of in COSTS.items() if _has(both, name)}
    return out | {"prefill": median(_prefill(ours) / _prefill(full) for ours, full in both)}


def pays(key: str, passes: Passes) -> dict[str, Any] | None:
    """From how many visual tokens on, and up to how many tokens of an answer, a plan pays (see ``bench.measure``)."""
    both = [(passes[key][first], passes[FULL][first]) for first in passes[key]]
    both = [(o, f) for o, f in both if o.get("visual") and o["mean_tokens"] < o["visual"]]
    if not both:
        return None
    ours, full = ({k: median(p[i]["ms"][k] or 0.0 for p in both) for k in _PARTS} for i in (0, 1))
    tokens = (median(p[0][k] for p in both) for k in ("visual", "mean_tokens"))
    return break_even(full, ours, *tokens)


_PARTS = ("encoder", "selection", "prefill", "decode")


def _has(both: Sequence[tuple[Pass, Pass]], name: str) -> bool:
    return name != "flops" or all(p.get("flops") for pair in both for p in pair)


def _prefill(facts: Pass) -> float:
    return float(facts["ms"]["prefill"] + facts["ms"]["selection"])


def percent(kept: Kept) -> str:
    """A share with its interval: "98.6% (97.1 to 99.4)"."""
    return f"{100 * kept.share:.1f}% ({100 * kept.low:.1f} to {100 * kept.high:.1f})"


def likely(chance: float) -> str:
    """A chance that was told from some items: never none, and never certainty."""
    return "below 1%" if chance < 0.005 else "above 99%" if chance >= 0.995 else f"{100 * chance:.0f}%"


def _chosen(outcome: Outcome, asked: AdviseConfig, cell: Cell, passes: Passes) -> str:
    standing = outcome.standings[cell.key]
    held = standing.held
    assert held is not None
    ours = saved(cell.key, passes)
    parts = [_times(ours["prefill"]), _less(ours["memory"], "cache")]
    if "flops" in ours:
        parts.append(_less(ours["flops"], "FLOPs"))
    if asked.target == "latency":
        every = interval(standing.costs)
        spread = "" if every is None else f" ({every[0]:.2f} to {every[1]:.2f})"
        doubt = " (too few runs to tell it from 1)" if every is None or every[1] >= 1 else ""
        parts.insert(0, f"{standing.cost:.2f}{spread} of the {TARGETS['latency']}{doubt}")
    keeps, of = _KEEPS[asked.what]
    low, high = 100 * held.low, 100 * held.high
    return (
        f"{label(cell, list(passes[cell.key].values()))}: {', '.join(parts)}, {keeps} {100 * held.share:.1f}% of {of} "
        f"({low:.1f} to {high:.1f}), on {held.count} {asked.what} that the search did not see; at least {100 * asked.quality:g}% "
        f"with a chance of {likely(held.chance)}{_even(pays(cell.key, passes), asked)}."
    )


_KEEPS = {
    "questions": ("answers", "full"),
    "images": ("says", "the full model's words"),
    "texts": ("keeps", "full by bits per byte"),
}


def _times(share: float) -> str:
    return f"{1 / share:.2g} times faster prefill" if share < 1 else f"prefill takes {share:.2f} times as long"


def _less(share: float, what: str) -> str:
    change, fewer = round(100 * (share - 1)), "fewer" if what == "FLOPs" else "less"
    return f"no {fewer} {what}" if change == 0 else f"{abs(change)}% {fewer if change < 0 else 'more'} {what}"


def _even(found: Mapping[str, Any] | None, asked: AdviseConfig) -> str:
    if found is None:
        return ""
    if not found["pays"]:
        slow = "; its selection takes longer here than it saves of encoder and prefill"
        return slow if asked.target == "latency" else ""
    since = f"pays from {found['min_tokens']} visual tokens" if found["min_tokens"] else "pays"
    until = "" if found["max_answer"] is None else f" and below {found['max_answer']} answer tokens"
    return f"; {since}{until}"


def _few(outcome: Outcome, asked: AdviseConfig, items: int) -> str:
    some = "" if asked.what == "texts" else f", and {sure(asked.quality)} for the chance to be {100 * LEVEL:.0f}%"
    return (
        f"Nothing can be told: {items} {asked.what} are too few. A quality of {100 * asked.quality:g}% takes "
        f"{outcome.needed:.0f} at least{some}, where a plan loses none."
    )


def _wrong(outcome: Outcome, asked: AdviseConfig, items: int) -> str:
    return (
        f"No plan: the full model answers none of the {items} {asked.what} right by {asked.metric!r}, so that there is no "
        "quality to keep. Its answers are in answers.json; another --metric may fit them."
    )


def _late(outcome: Outcome, asked: AdviseConfig, items: int) -> str:
    less = "a smaller --window" if asked.what == "texts" else "fewer --new-tokens"
    return (
        f"Nothing can be told in {asked.minutes:g} minutes: to judge one plan on as many {asked.what} as are needed takes about "
        f"{_minutes(outcome.needed)} on this machine. Give more --minutes, or {less}, and another --out."
    )


def _minutes(needed: float) -> str:
    return f"{needed:.1f} minutes" if needed >= 0.1 else f"{60 * needed:.1f} seconds"


def _failed(outcome: Outcome, asked: AdviseConfig, items: int) -> str:
    name, why = next(iter(outcome.left.items()))
    return f"No plan could be asked; {name}: {why}."


def _costly(outcome: Outcome, asked: AdviseConfig, items: int) -> str:
    key, best = min(outcome.standings.items(), key=lambda pair: pair[1].cost)
    return (
        f"Nothing pays here: none of {len(outcome.standings)} plans takes less {TARGETS[asked.target]} than the full model; the "
        f"nearest, {key}, takes {best.cost:.2f} of it."
    )


def _short(outcome: Outcome, asked: AdviseConfig, items: int) -> str:
    stand = {k: s for k, s in outcome.standings.items() if s.cost < 1}
    judged = {k: s for k, s in stand.items() if s.held is not None}
    count = f"{len(stand)} plans that take less {TARGETS[asked.target]} than the full model"
    if judged:
        key = max(judged, key=lambda k: judged[k].held.share)  # type: ignore[union-attr]
        best = judged[key].held
        where = f"{asked.what} that the search did not see"
    else:
        key = max(stand, key=lambda k: stand[k].seen.share)
        best = stand[key].seen
        where = f"{asked.what}, on which it was seen to have next to no chance"
    assert best is not None
    return (
        f"Nothing was found that reaches {100 * asked.quality:g}%: of {count} none did. "
        f"The nearest, {key} at {stand[key].cost:.2f}, keeps "
        f"{percent(best)} on {best.count} {where}."
    )


_WHY = {
    "few": _few,
    "wrong": _wrong,
    "late": _late,
    "failed": _failed,
    "costly": _costly,
    "short": _short,
}
