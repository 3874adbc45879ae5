"""Cells: the lines of a bench of prompts; the whole text, none of it, its ends and random parts are always among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokensieve.core.plan import Plan, parted
from tokensieve.core.stage import stage

FULL, NONE = "full", "none"
BASELINES = {
    "first": ("first-text", {}), "last": ("last-text", {}), "random sentences": ("random-text", {}),
    "random words": ("random-text", {"unit": "word"}),
}  # fmt: skip


@dataclass(frozen=True)
class PromptCell:
    """A line.

    Attributes:
        key: what it is found by; method, keep: as they are written, keep None for the whole text, for none, and for plans.
        plan: its stages in front of the model; None for the whole text and none of it.
        inside: its stages in the model; None where there are none.
    """

    key: str
    method: str
    keep: int | float | None
    plan: Plan | None
    inside: Plan | None = None

    @property
    def words(self) -> bool:
        """Whether words leave from the midst of sentences."""
        return self.plan is not None and any(getattr(s.method, "unit", "") == "word" for s in self.plan.stages)


def cells(methods: Sequence[str], budgets: Sequence[int | float], plans: Sequence[Path]) -> list[PromptCell]:
    """The lines, baselines first.

    Raises:
        ValueError: a name that is no method of the site, a budget outside its range, a file that is no plan with such a stage.
    """
    out = [PromptCell(FULL, FULL, None, None), PromptCell(NONE, NONE, None, None)]
    for keep in budgets:
        for name, (method, options) in BASELINES.items():
            out.append(PromptCell(f"{name}@{keep}", name, keep, Plan(stage(method, keep, **options))))
        for name in methods:
            method, _, unit = name.partition(":")
            made = stage(method, keep, **({"unit": unit} if unit else {}))
            if made.site != "prompt":
                raise ValueError(
                    f"--methods {name}: it runs at site={made.site!r}; `tokensieve methods --site prompt` lists others"
                )
            out.append(PromptCell(f"{name}@{keep}", name, keep, Plan(made)))
    return out + [_from_file(file) for file in plans]


def _from_file(file: Path) -> PromptCell:
    if not file.is_file():
        raise FileNotFoundError(f"--plan {file}: no such file")
    front, inside = parted(Plan.load(file))
    if front is None:
        raise ValueError(
            f"--plan {file}: it has no stage at site='prompt'; `tokensieve bench` compares what runs in a model"
        )
    return PromptCell(file.stem, file.stem, None, front, inside)
