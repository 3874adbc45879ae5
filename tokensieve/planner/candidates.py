"""Candidates: the plans that a search for one model chooses among."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from tokensieve.bench.equal import Cell, NotHere, Shape, cached, cells, fits
from tokensieve.bench.run import BASELINES
from tokensieve.core.method_registry import get_method, list_methods
from tokensieve.core.plan import applied, plan
from tokensieve.planner.runtimes import Served

SITES = ("encoder", "handoff", "prefill", "cache")
"""Where plans may act."""
BUDGETS = (0.25, 0.5, 0.125, 0.375, 0.0625)
"""Shares that stay, in the order in which they are tried."""
EARLY = (
    *("fastervlm", "visionzip", "divprune", "fastv", "pyramiddrop", "sparsevlm", "tome", "vscan", "dart", "aim"),
    *("snapkv", "keydiff", "adakv", "zipcache"),
)
"""Methods that are tried before the others, where time does not suffice for all: those that people ask for."""
FAMILIES = ("encoder", "handoff", "prefill", "multistage")
"""Of methods for images."""


@dataclass(frozen=True)
class Candidates:
    """What may be chosen.

    Attributes:
        cells: by key, in the order in which they are tried.
        left: why methods are not among them.
    """

    cells: dict[str, Cell]
    left: dict[str, str]


def candidates_of(
    model: nn.Module,
    tokenizer: Any,
    sites: Sequence[str],
    methods: Sequence[str] | None,
    budgets: Sequence[int | float],
    shape: Shape,
    served: Served,
) -> Candidates:
    """The plans of methods at every budget that act at these sites alone and that a runtime can serve; random, uniform and pool
    among them.

    Args:
        methods: names; None for all that are known.
        budgets: means over the language model's layers; of the cache, shares of its entries.
        shape: of a prompt.

    Raises:
        ValueError: an unknown method, or a budget outside its range; or nothing is left to choose from.
    """
    made: dict[str, Cell] = {}
    left: dict[str, str] = {}
    known: set[str] = set()
    names = _named(sites) if methods is None else list(methods)
    for name in names:
        get_method(name)
    for group in ([*BASELINES, *(n for n in names if n in EARLY)], [n for n in names if n not in EARLY]):
        for keep in budgets:
            for name in dict.fromkeys(group):
                for cell in _cells(model, tokenizer, name, keep, sites, shape, left):
                    assert cell.plan is not None
                    plan_ = served(cell.plan)
                    if isinstance(plan_, str):
                        left.setdefault(name, plan_)
                        continue
                    mark = json.dumps(plan_.to_json(), sort_keys=True)
                    if mark not in known:
                        known.add(mark)
                        made.setdefault(cell.key, replace(cell, plan=plan_))
    here = {cell.method for cell in made.values()}
    left = {name: why for name, why in left.items() if name not in here}
    if not made:
        told = "; ".join(f"{name}: {why}" for name, why in list(left.items())[:3])
        raise ValueError(f"there is no plan to choose from at {', '.join(sites)}: {told or 'no method acts there'}")
    return Candidates(made, left)


def _named(sites: Sequence[str]) -> list[str]:
    """All methods that may act at these sites, those first that are tried early."""
    images = {n for f in FAMILIES for n in list_methods(family=f)} if set(sites) - {"cache"} else set()
    cache = set(list_methods(family="cache")) if "cache" in sites else set()
    every = images | cache
    return [*(n for n in EARLY if n in every), *sorted(every - set(EARLY))]


def _cells(
    model: nn.Module,
    tokenizer: Any,
    name: str,
    keep: int | float,
    sites: Sequence[str],
    shape: Shape,
    left: dict[str, str],
) -> list[Cell]:
    """A method at one budget: at its own sites, where these are among those asked for; a baseline at each."""
    if name in BASELINES:
        return [c for site in sites if (c := _baseline(model, name, keep, site)) is not None]
    acts = {stage.site for stage in applied(name, keep).stages}
    if not acts <= set(sites):
        left[name] = f"it acts at {', '.join(sorted(acts))}, and --sites says {', '.join(sites)}"
        return []
    if acts == {"cache"}:
        made, bad = cached(model, tokenizer, [name], [keep])
    else:
        made, bad = cells(model, [name], [keep], "mean", shape)
    left |= bad
    return made


def _baseline(model: nn.Module, name: str, keep: int | float, site: str) -> Cell | None:
    if site not in get_method(name).sites:
        return None
    made = plan(name, keep, site=site)
    try:
        fits(model, made)
    except NotHere:
        return None
    where = "" if site == get_method(name).site else f" {site}"
    return Cell(f"{name}{where}@{keep}", name, keep, made)
