"""Candidates: the plans of an encoder that a search chooses among."""

from __future__ import annotations

from collections.abc import Sequence

from tokensieve.bench.run import BASELINES
from tokensieve.core.method_registry import get_method, list_methods
from tokensieve.core.plan import Plan
from tokensieve.core.stage import Stage
from tokensieve.planner.encoders.subject import EncoderSubject
from tokensieve.sites.sieve import Sieve

SHARES = (0.5, 0.75, 0.25, 0.9)
"""Of the tokens that may leave, what is there at the end; in the order in which they are tried."""
SCHEDULES = ("constant", "decreasing", "once")
PLAIN = ("constant",)
FIRST = ("tome", *BASELINES)
"""Methods that are tried first; all schedules are tried of the first one."""


def candidates(
    subject: EncoderSubject, methods: Sequence[str] | None = None, shares: Sequence[float] = SHARES
) -> tuple[dict[str, Plan], dict[str, str]]:
    """Plans by name, those that are tried first in front, and why methods are not among them; random, uniform and pool are.

    Raises:
        ValueError: a method is not known, or none of them can stand in this encoder.
    """
    known = list_methods(site="encoder")
    asked = [*dict.fromkeys([*FIRST, *known])] if methods is None else [*dict.fromkeys([*methods, *BASELINES])]
    found: list[tuple[tuple[int, int, int], str, Plan]] = []
    left: dict[str, str] = {}
    for number, name in enumerate(asked):
        for place, share in enumerate(shares):
            for late, schedule in enumerate(SCHEDULES if name == FIRST[0] else PLAIN):
                try:
                    made = get_method(name)
                    plan = Plan(Stage(made, share, "encoder", tower=subject.tower, schedule=schedule))
                    Sieve(subject.model, plan)
                except ValueError as error:
                    left[name] = str(error)
                    continue
                rank = 0 if name in FIRST else 1
                found.append(((rank, place + late, number), key(name, share, schedule), plan))
    if not found:
        raise ValueError(f"no method can stand in {subject.name}: {next(iter(left.values()))}")
    return {k: plan for _, k, plan in sorted(found, key=lambda row: row[0])}, left


def key(method: str, share: float, schedule: str = "constant") -> str:
    """What a plan is called."""
    return f"{method} {share:g}" + ("" if schedule == "constant" else f" {schedule}")
