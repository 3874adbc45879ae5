"""Equal cost: the plans of a bench, so that methods stand beside each other at the same mean tokens or FLOPs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from tokensieve.core.plan import Plan, applied, parted, plan
from tokensieve.core.stage import Stage
from tokensieve.methods.cache.sepllm import separators
from tokensieve.parts import budget
from tokensieve.parts.budget import Keep
from tokensieve.sites.cost import cost
from tokensieve.sites.sieve import Sieve

EQUAL = ("mean", "flops", "label")
"""What is made equal: the mean of visual tokens over the layers, the FLOPs of the language model's prefill, or the budget as it
is written."""
NEAR = 0.02
"""How far costs may be apart and still count as equal, as a share."""
FULL = "full"
RANDOM = "random"


@dataclass(frozen=True)
class Cell:
    """One line of a bench.

    Attributes:
        key: what it is found by; method, keep: as they are written, for the full model None.
        plan: what runs; None for the full model.
        unranked: why it cannot be compared at this budget; empty where it can.
        added: whether nobody asked for it: random at the cost of another.
    """

    key: str
    method: str
    keep: int | float | None
    plan: Plan | None
    unranked: str = ""
    added: bool = False

    def to_json(self) -> dict[str, Any]:
        made = None if self.plan is None else self.plan.to_json()
        return {"method": self.method, "keep": self.keep, "plan": made, "unranked": self.unranked, "added": self.added}


WHOLE = Cell(FULL, FULL, None, None)


@dataclass(frozen=True)
class Shape:
    """What a prompt is like, for budgets over layers.

    Attributes:
        visual: tokens of its images; text: all others.
    """

    visual: int
    text: int


def cells(
    model: nn.Module, methods: Sequence[str], budgets: Sequence[int | float], equal: str, shape: Shape
) -> tuple[list[Cell], dict[str, str]]:
    """The cells of methods at every budget, and by the name of each method that cannot run on this model why.

    Raises:
        ValueError: an unknown method or a budget outside its range.
    """
    out, left = [], {}
    for keep in budgets:
        for name in methods:
            try:
                out.append(_cell(model, name, keep, equal, shape))
            except NotHere as problem:
                left[name] = str(problem)
    return out, left


def cached(
    model: nn.Module, tokenizer: Any, methods: Sequence[str], budgets: Sequence[int | float]
) -> tuple[list[Cell], dict[str, str]]:
    """As :func:`cells`, of methods of the cache, which are compared by the bytes that they hold.

    Raises:
        ValueError: a method that does not act on the cache, or a budget outside its range.
    """
    out, left = [], {}
    for keep in budgets:
        for name in methods:
            given = {"separators": separators(tokenizer)} if name == "sepllm" else {}
            made = plan(name, keep, site="cache", **given)
            try:
                fits(model, made)
                out.append(Cell(f"{name}@{keep}", name, keep, made))
            except NotHere as problem:
                left[name] = str(problem)
    return out, left


class NotHere(ValueError):
    """A plan does not fit a model."""


def from_files(model: nn.Module, files: Sequence[Path]) -> list[Cell]:
    """A cell for each plan that was saved to a file, as it stands.

    Raises:
        ValueError: a file that is no plan, or a plan for another architecture.
    """
    out = []
    for file in files:
        try:
            made = Plan.load(file)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"--plan {file}: no such file") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"--plan {file}: it is no plan ({error})") from error
        try:
            fits(model, made)
        except NotHere as error:
            raise ValueError(f"--plan {file} is for another architecture: {error}") from error
        out.append(Cell(file.stem, file.stem, _label(made), made, "a saved plan, at a cost of its own"))
    return out


def _cell(model: nn.Module, name: str, keep: int | float, equal: str, shape: Shape) -> Cell:
    key = f"{name}@{keep}"
    made = at(name, keep, equal)
    fits(model, made)
    try:
        if shape.visual and _visual(made):
            cost(model, made, shape.visual, shape.text)
    except ValueError as error:
        if "cannot be met" not in str(error):
            raise
        found = re.search(r"least is ([\d.]+)", str(error))
        what = {"mean": "mean tokens", "flops": "of the FLOPs"}[equal]
        assert found is not None
        least = Plan([replace(s, keep=Keep(tokens=1)) if s.site == "prefill" else s for s in made.stages])
        return Cell(key, name, keep, least, f"cannot reach {keep} {what}, its least is {found[1]}")
    return Cell(key, name, keep, made)


def at(name: str, keep: int | float, equal: str) -> Plan:
    """The plan of a method at a budget which says its mean tokens ("mean"), its FLOPs ("flops") or what its label says ("label").

    Raises:
        ValueError: FLOPs as a number of tokens, or of a method that takes no such budget.
    """
    if equal == "label":
        return applied(name, keep)
    if equal == "flops":
        if isinstance(keep, int):
            raise ValueError(f"--keep {keep} with --equal flops: it must be a share, such as 0.25")
        made = applied(name, keep)
        if any(s.in_encoder for s in made.stages) or len(made.stages) > 1:
            raise NotHere(f"{name} takes no budget in FLOPs of the language model")
        return Plan([_flops(s, keep) for s in made.stages])
    made = plan(name, keep)
    return (
        Plan([replace(s, keep=budget.mean(keep)) if s.site == "prefill" else s for s in made.stages])
        if len(made.stages) == 1
        else made
    )


def _flops(stage: Stage, share: float) -> Stage:
    return replace(stage, keep=Keep(flops=share)) if stage.site in ("handoff", "prefill") else stage


def fits(model: nn.Module, made: Plan) -> None:
    """Raise NotHere where a plan cannot be attached to a model."""
    inside = parted(made)[1]
    try:
        if inside is not None:
            Sieve(model, inside)
    except ValueError as error:
        raise NotHere(str(error)) from error


def _label(made: Plan) -> int | float:
    """The number that a plan's first budget is written with."""
    keep = made.stages[0].keep if made.stages else 1.0
    if not isinstance(keep, Keep):
        return keep
    return next(n for n in (keep.tokens, keep.share, keep.average, keep.flops, keep.last) if n is not None)


def _visual(made: Plan) -> bool:
    return any(s.in_encoder or s.site in ("handoff", "prefill") for s in made.stages)


def by_bytes(made: Plan) -> bool:
    """Whether a plan is compared by the bytes that the cache holds: it takes from that, or from text in front of the model."""
    return all(s.site in ("prompt", "cache") for s in made.stages)


def random_beside(costs: Mapping[str, float], cells: Sequence[Cell]) -> list[Cell]:
    """Random cells at the costs of those that have none near: what each method has to beat.

    Args:
        costs: by key, what a cell costs as a share of the full model's, cells of the same kind together.
    """
    out: list[Cell] = []
    known = [costs[c.key] for c in cells if c.method == RANDOM and c.key in costs]
    label = next((c for c in cells if c.method == RANDOM and c.key in costs), None)
    for cell in cells:
        share = costs.get(cell.key)
        if cell.plan is None or cell.method == RANDOM or share is None or share >= 1 - NEAR:
            continue
        if any(abs(k - share) <= NEAR * share for k in known):
            continue
        known.append(share)
        out.append(random_at(_share(share, label, costs), by_bytes(cell.plan)))
    return out


def random_at(share: float, cache: bool) -> Cell:
    """A random cell at a share of the tokens, or of the cache's entries."""
    keep = round(share, 4)
    where = {"site": "cache"} if cache else {}
    return Cell(f"{RANDOM}{' cache' if cache else ''}@={keep}", RANDOM, keep, plan(RANDOM, keep, **where), added=True)


def _share(target: float, label: Cell | None, costs: Mapping[str, float]) -> float:
    """The share of entries at which random costs ``target``, from what it costs at a share that was measured."""
    if label is None or not isinstance(label.keep, float):
        return target
    return min(1.0, target * label.keep / costs[label.key])


def nearest_random(cell: Cell, costs: Mapping[str, float], cells: Sequence[Cell]) -> Cell | None:
    """The random cell that a cell is held against: the one whose cost is nearest, if it counts as equal."""
    share = costs.get(cell.key)
    others = [c for c in cells if c.method == RANDOM and c.key in costs and c.key != cell.key]
    if cell.plan is None or cell.method == RANDOM or share is None or not others:
        return None
    best = min(others, key=lambda c: abs(costs[c.key] - share))
    return best if abs(costs[best.key] - share) <= 2 * NEAR * share else None
