"""Plan: which methods run where, with which budgets; a JSON file that can be shared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tokensieve.method import Method
from tokensieve.parts import budget
from tokensieve.parts.place import POLICIES
from tokensieve.registry import check_names, make

SITES = ("encoder", "handoff", "prefill", "focus", "cross", "cache", "vectors")
FORMAT = "tokensieve.plan.1"
WHERE = ("site", "layers", "positions", "every", "prefill")
"""Keywords of a stage that may stand among the options of its method."""


@dataclass(frozen=True)
class Stage:
    """One method at one site.

    Args:
        method: a :class:`Method`, or a registered name.
        keep: the budget (see :class:`Keep`); None keeps every token.
        site: one of ``SITES``; the method's own by default.
        layers: encoder: the blocks after which tokens are reduced (by default every block, in equal steps); prefill: the one
            language-model layer before which tokens leave (by default the method's); focus: the layers that are limited (by
            default all); cache: the layers that evict (by default all that see every token). A float between 0 and 1 is a share
            of the depth, so that a plan fits models of any depth.
        positions: "original" or "compact": the position ids of the survivors in the language model.
        every: cache: also evict whenever so many tokens have been decoded; 0 for never.
        prefill: cache: whether to evict behind every pass over a prompt (or a chunk of one).

    Raises:
        ValueError: an unknown site or policy, a site the method cannot run at, a budget outside its range.
    """

    method: Method
    keep: budget.Budget
    site: str = ""
    layers: tuple[int | float, ...] | None = None
    positions: str = "original"
    every: int = 0
    prefill: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.method, str):
            object.__setattr__(self, "method", make(self.method))
        object.__setattr__(self, "site", self.site or self.method.site)
        if isinstance(self.layers, (int, float)):
            object.__setattr__(self, "layers", (self.layers,))
        object.__setattr__(self, "layers", None if self.layers is None else tuple(self.layers))
        if self.site not in self.method.sites:
            raise ValueError(f"site={self.site!r}; {self.method.name} runs at {', '.join(self.method.sites)}")
        if self.site == "prefill" and self.layers is not None and len(self.layers) != 1:
            raise ValueError(
                f"layers={self.layers}; a prefill stage has one layer (use several stages for several layers)"
            )
        if self.positions not in POLICIES:
            raise ValueError(f"positions={self.positions!r}; it must be one of {', '.join(POLICIES)}")
        if self.site == "focus" and isinstance(self.keep, budget.Keep):
            raise ValueError(f"keep={self.keep}; at site='focus' pass keep=64 (a number) or keep=0.5 (a share)")
        self._check_cache()
        if not isinstance(self.keep, budget.Keep):
            object.__setattr__(self, "keep", budget.check(self.keep))

    def _check_cache(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 0:
            raise ValueError(f"every={self.every!r}; it must be a number of tokens, or 0 for never")
        if self.site != "cache":
            if self.every or not self.prefill:
                raise ValueError(
                    f"every={self.every}, prefill={self.prefill} at site={self.site!r}; they go with site='cache'"
                )
            return
        if not self.prefill and not self.every:
            raise ValueError("prefill=False and every=0: nothing would ever leave; give every=<tokens>")
        if self.positions != "original":
            raise ValueError(
                f"positions={self.positions!r}; at site='cache' keys have their positions already: 'original'"
            )

    @property
    def layer(self) -> int | float:
        """The language-model layer of a prefill stage, or the share of the depth at which it lies."""
        return self.layers[0] if self.layers else self.method.layer

    def to_json(self) -> dict[str, Any]:
        keep = {"Keep": asdict(self.keep)} if isinstance(self.keep, budget.Keep) else self.keep
        return {
            "method": self.method.name,
            "options": asdict(self.method),
            "keep": keep,
            "site": self.site,
            "layers": None if self.layers is None else list(self.layers),
            "positions": self.positions,
        } | ({"every": self.every, "prefill": self.prefill} if self.site == "cache" else {})

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Stage:
        keep = data["keep"]
        known = {f.name for f in fields(cls)} | {"options"}
        if set(data) - known:
            raise ValueError(f"a stage holds unknown entries {sorted(set(data) - known)}; known are {sorted(known)}")
        return cls(
            method=make(data["method"], **_tuples(data.get("options", {}))),
            keep=budget.Keep(**keep["Keep"]) if isinstance(keep, dict) else keep,
            site=data.get("site", ""),
            layers=None if data.get("layers") is None else tuple(data["layers"]),
            positions=data.get("positions", "original"),
            every=data.get("every", 0),
            prefill=data.get("prefill", True),
        )


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
        if sum(s.site == "encoder" for s in made) > 1:
            raise ValueError("a plan holds at most one encoder stage (it may list several layers)")
        if len({s.keep.per if isinstance(s.keep, budget.Keep) else "image" for s in made}) > 1:
            raise ValueError(
                "budgets of a plan are all per image or all per prompt; write Keep(..., per='prompt') in each"
            )
        met = sorted(made, key=_order)
        object.__setattr__(self, "stages", tuple(met))

    def save(self, path: str | Path) -> None:
        """Write as JSON (to a temporary name first, then renamed)."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read what :meth:`save` wrote."""
        return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "stages": [s.to_json() for s in self.stages]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        if data.get("format") != FORMAT:
            raise ValueError(f"not a plan: format is {data.get('format')!r}, expected {FORMAT!r}")
        return cls([Stage.from_json(s) for s in data["stages"]])


def method(name: str | Method, keep: budget.Budget, **where: Any) -> Stage:
    """A stage: ``ts.method("tome", keep=0.5)``; keywords are `site`, `layers`, `positions`, `every`, `prefill` or options of
    the method."""
    placed = {k: where.pop(k) for k in WHERE if k in where}
    if isinstance(name, Method):
        if where:
            raise ValueError(f"options {sorted(where)} belong to the method; it is already made")
        return Stage(name, keep, **placed)
    check_names(name, where, WHERE)
    return Stage(make(name, **where), keep, **placed)


def plan(name: str | Method, keep: budget.Budget, **where: Any) -> Plan:
    """The plan of a method as published: all its stages where it has several, and one stage otherwise.

    Args:
        where: as for :func:`method`; ``site`` or ``layers`` ask for the method alone, as one stage.
    """
    alone = method(name, keep, **where)
    if "site" in where or "layers" in where:
        return Plan(alone)
    several = alone.method.stages(keep)
    return Plan([replace(s, positions=alone.positions) for s in several] or alone)


def descent(made: Method, keep: budget.Budget, layers: Sequence[float]) -> list[Stage]:
    """One method inside the language model at several shares of its depth, which together reach the mean ``keep``."""
    return [
        Stage(made, budget.mean(keep, len(layers) - i), site="prefill", layers=(layer,))
        for i, layer in enumerate(sorted(layers))
    ]


def _order(stage: Stage) -> tuple[int, bool, float]:
    layer = stage.layer if stage.site == "prefill" else 0
    return SITES.index(stage.site), isinstance(layer, float), layer


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
