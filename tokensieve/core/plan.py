"""Plan: which methods run where, with which budgets; a JSON file that can be shared."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokensieve.core import budget
from tokensieve.core.files import write_json
from tokensieve.core.method import Method
from tokensieve.core.registry import Registry
from tokensieve.core.stage import SITES, Stage, stage

FORMAT = "tokensieve.plan.1"
FILE = "tokensieve.json"
"""The name of a plan's file in a model's folder, beside the weights."""

PLANS: Registry[Callable[[Any, budget.Budget], Sequence[Stage]]] = Registry("plan", "tokensieve.methods")
"""By the name of a method that is published as several stages, what makes them (see :func:`register_plan`)."""


@dataclass(frozen=True)
class Plan:
    """Stages; they run in the order in which a token meets them (encoder, handoff, prefill by layer, cache). In the list, shares
    of the depth stand behind layers that are numbered.

    Raises:
        ValueError: more than one encoder stage, or budgets per image beside budgets per prompt.
    """

    stages: tuple[Stage, ...]

    def __init__(self, stages: Sequence[Stage] | Stage):
        made = (stages,) if isinstance(stages, Stage) else tuple(stages)
        if sum(s.in_encoder for s in made) > 1:
            raise ValueError(
                "a plan holds at most one encoder stage (at site='patch', or at 'encoder', where it may list several layers)"
            )
        if len({s.keep.per if isinstance(s.keep, budget.Keep) else "image" for s in made}) > 1:
            raise ValueError(
                "budgets of a plan are all per image or all per prompt; write Keep(..., per='prompt') in each"
            )
        met = sorted(made, key=_order)
        object.__setattr__(self, "stages", tuple(met))

    def save(self, path: str | Path) -> None:
        """Write as JSON (whole or not at all); into a folder as ``tokensieve.json``, where ``tokensieve.load_model`` looks."""
        write_json(_file(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read what :meth:`save` wrote, from a file or a folder.

        Raises:
            ValueError: it is not JSON, or not a plan.
        """
        file = _file(path)
        try:
            return cls.from_json(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "stages": [s.to_json() for s in self.stages]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        said = data.get("format") if isinstance(data, dict) else None
        if said != FORMAT:
            raise ValueError(f"not a plan: format is {said!r}, expected {FORMAT!r}")
        return cls([Stage.from_json(s) for s in data["stages"]])


def register_plan(name: str) -> Callable[[Any], Any]:
    """Decorator of the function that makes the stages of a method which is published as several.

    The function takes the method and the budget, which is the mean over the language model's layers, so that systems compare at
    the same cost (see ``Method.ends`` for ``tokensieve.sieve``). It returns all stages: the method at its site first, others
    behind it; none where a single stage is meant. Subclasses of the method have the same stages, unless they register their own.

    Args:
        name: the method's.
    """
    return PLANS.register(name)


def stages_of(method: Method, keep: budget.Budget) -> Sequence[Stage]:
    """The stages of a method that is published as several; none for all others.

    Args:
        keep: the mean over the language model's layers.
    """
    if hasattr(method, "stages"):  # defined by a subclass, as before 0.2
        return method.stages(keep)
    names = (vars(cls).get("name") for cls in type(method).__mro__)
    found = next((name for name in names if name in PLANS), None)
    return PLANS.get(found)(method, keep) if found else ()


def plan(name: str | Method, keep: budget.Budget | Callable[[float], float], **where: Any) -> Plan:
    """The plan of a method as published: all its stages where it has several, and one stage otherwise.

    Args:
        where: as for :func:`stage`; ``site`` or ``layers`` ask for the method alone, as one stage.
    """
    alone = stage(name, keep, **where)
    if "site" in where or "layers" in where:
        return Plan(alone)
    return Plan([replace(s, positions=alone.positions) for s in stages_of(alone.method, alone.keep)] or alone)


def applied(name: str | Method, keep: budget.Budget | Callable[[float], float], **where: Any) -> Plan:
    """What ``tokensieve.sieve(model, name, keep)`` runs: as :func:`plan`, but of methods that say so (``Method.ends``) ``keep``
    is what the last stage leaves, not the mean over the layers."""
    made = stage(name, keep, **where).method
    if made.ends and not callable(keep) and not {"site", "layers"} & set(where):
        keep = budget.last(keep)
    return plan(name, keep, **where)


def parted(plan: Plan) -> tuple[Plan | None, Plan | None]:
    """A plan's stages in front of a model (site "prompt"), and those in it; None where there are none."""
    front = [s for s in plan.stages if s.site == "prompt"]
    inside = [s for s in plan.stages if s.site != "prompt"]
    return Plan(front) if front else None, Plan(inside) if inside else None


def descent(made: Method, keep: budget.Budget, layers: Sequence[float]) -> list[Stage]:
    """One method inside the language model at several shares of its depth, which together reach the mean ``keep``
    (or, of ``Keep(last=...)``, the end)."""
    return [
        Stage(made, budget.mean(keep, len(layers) - i), site="prefill", layers=(layer,))
        for i, layer in enumerate(sorted(layers))
    ]


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / FILE if path.is_dir() else path


def _order(stage: Stage) -> tuple[int, bool, float]:
    layer = stage.layer if stage.site == "prefill" else 0
    return SITES.index(stage.site), isinstance(layer, float), layer
