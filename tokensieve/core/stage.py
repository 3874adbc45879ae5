"""Stage: one method at one site, with its budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from tokensieve.core import budget, denoising
from tokensieve.core.denoising import Denoising
from tokensieve.core.method import CacheMethod, FocusMethod, Method
from tokensieve.core.method_registry import check_names, get_method, method_class
from tokensieve.core.needs import Need, with_reads

POLICIES = ("original", "compact")
READOUTS = ("restored", "merged")
SCHEDULES = ("constant", "decreasing", "once")
SITES = ("prompt", "patch", "encoder", "handoff", "prefill", "focus", "cross", "cache", "vectors", "diffusion")
INSIDE = ("tower", "readout", "between", "schedule", "back")
"""Keywords of a stage at ``site="encoder"`` and ``site="patch"``."""
WHERE = ("site", "layers", "positions", "every", "prefill", *INSIDE)
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
        every: cache: also evict whenever so many tokens have been decoded; 0 for never. What the method reads is then noted of
            decoded tokens too, and stays: of each layer ``window`` x H x d numbers of the model's precision where it reads the
            last queries, H x d (d + 3) / 2 of 4 bytes where it reads their moments.
        prefill: cache: whether to evict behind every pass over a prompt (or a chunk of one).
        tower: encoder: which of a model's towers, "vision", "text" or "audio", where it has two.
        readout: encoder: what reads the states behind the last block finds every token, a merged one with the state of its own
            ("restored"), or, where it attends to them, those that are left, weighed by size ("merged").
        between: encoder: whether tokens leave between a block's attention and its MLP, or behind the block; None: as the method
            does it (ToMe: between, where the block has a place for it that is known).
        schedule: encoder: equal numbers leave in each block ("constant"), ever fewer ("decreasing"), or all in the first
            ("once"); None: as the method does it.
        back: encoder: the block in front of which all stand in their places again, merged ones in the state of theirs, and those
            that left in the one in which they did; None: as the method does it, in most behind the last.
        denoising: diffusion: in which form and in which steps of a run it acts; there, ``layers`` are the self-attention modules
            (form "attention", by default all) or the one block in front of which tokens leave (form "stream", by default 1).

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
    tower: str = ""
    readout: str = "restored"
    between: bool | None = None
    schedule: str | None = None
    back: int | float | None = None
    denoising: Denoising | None = None

    def __post_init__(self) -> None:
        if isinstance(self.method, str):
            object.__setattr__(self, "method", get_method(self.method))
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
        self._check_inside()
        self._check_cache()
        self._check_denoising()
        if not isinstance(self.keep, budget.Keep):
            object.__setattr__(self, "keep", budget.check(self.keep))

    def _check_inside(self) -> None:
        for name, known in (("readout", READOUTS), ("schedule", (None, *SCHEDULES))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}; it must be one of {', '.join(map(repr, known))}")
        if self.between not in (None, True, False):
            raise ValueError(f"between={self.between!r}; it must be True, False or None (as the method does it)")
        if self.back is not None and self.readout == "merged":
            raise ValueError(
                f"back={self.back} and readout='merged': once tokens are back, none is merged that could be read"
            )
        if self.site == "patch":
            wrong = next((n for n in ("layers", "between", "schedule") if getattr(self, n) is not None), None)
            wrong = "r" if getattr(self.keep, "r", None) is not None else wrong
            if wrong is not None:
                raise ValueError(f"{wrong} at site='patch': there tokens leave once, in front of the first block")
        elif self.site != "encoder" and (self._inside or getattr(self.keep, "r", None) is not None):
            what = next(iter(self._inside), "r")
            raise ValueError(f"{what} goes with site='encoder'; this stage stands at site={self.site!r}")

    @property
    def _inside(self) -> dict[str, Any]:
        """The keywords of an encoder that are not as by default."""
        usual = {f.name: f.default for f in fields(self) if f.name in INSIDE}
        return {k: getattr(self, k) for k, v in usual.items() if getattr(self, k) != v}

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

    def _check_denoising(self) -> None:
        if self.site != "diffusion":
            if self.denoising is not None:
                raise ValueError(f"denoising={self.denoising} at site={self.site!r}; it goes with site='diffusion'")
            return
        if self.denoising is None:
            object.__setattr__(self, "denoising", Denoising(**self.method.denoises))
        if self.method.adaptive:
            raise ValueError(
                f"{self.method.name} keeps as many tokens as it likes; at site='diffusion' rows keep equally many"
            )
        if self.positions != "original":
            raise ValueError(f"positions={self.positions!r}; at site='diffusion' tokens keep their places: 'original'")

    @property
    def layer(self) -> int | float:
        """The language-model layer of a prefill stage, or the share of the depth at which it lies."""
        return self.layers[0] if self.layers else self.method.layer

    @property
    def needs(self) -> tuple[Need, ...]:
        """What is read at its site: the method's needs, and those of what computes one of them there."""
        return with_reads(self.method.needs, self.site)

    @property
    def cache_method(self) -> CacheMethod:
        """The method of a stage at ``site="cache"``, whatever class it was made from."""
        return cast(CacheMethod, self.method)

    @property
    def focus_method(self) -> FocusMethod:
        """The method of a stage at ``site="focus"``, likewise."""
        return cast(FocusMethod, self.method)

    @property
    def in_encoder(self) -> bool:
        """Whether tokens leave an encoder: in front of its first block, or in its blocks."""
        return self.site in ("patch", "encoder")

    @property
    def pace(self) -> str:
        """The schedule: the one asked for, or the method's."""
        return self.schedule or self.method.schedule

    @property
    def whole(self) -> bool:
        """Whether all is kept: the share 1.0, where the number 1 is a single one."""
        return budget.whole(self.keep)

    def to_json(self) -> dict[str, Any]:
        keep = {"Keep": _unit(self.keep)} if isinstance(self.keep, budget.Keep) else self.keep
        return (
            {
                "method": self.method.name,
                "options": asdict(self.method),
                "keep": keep,
                "site": self.site,
                "layers": None if self.layers is None else list(self.layers),
                "positions": self.positions,
            }
            | ({"every": self.every, "prefill": self.prefill} if self.site == "cache" else self._inside)
            | ({} if self.denoising is None else {"denoising": self.denoising.to_json()})
        )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Stage:
        keep = data["keep"]
        known = {f.name for f in fields(cls)} | {"options"}
        if set(data) - known:
            raise ValueError(f"a stage holds unknown entries {sorted(set(data) - known)}; known are {sorted(known)}")
        return cls(
            method=get_method(data["method"], **_tuples(data.get("options", {}))),
            keep=budget.Keep(**keep["Keep"]) if isinstance(keep, dict) else keep,
            site=data.get("site", ""),
            layers=None if data.get("layers") is None else tuple(data["layers"]),
            positions=data.get("positions", "original"),
            every=data.get("every", 0),
            prefill=data.get("prefill", True),
            denoising=Denoising(**_tuples(data["denoising"])) if data.get("denoising") else None,
            **{name: data[name] for name in INSIDE if name in data},
        )


def stage(name: str | Method, keep: budget.Budget | Callable[[float], float], **where: Any) -> Stage:
    """A stage: ``ts.stage("tome", keep=0.5)``; keywords are the fields of :class:`Stage` or options of
    the method; at ``site="diffusion"`` `form`, `steps`, `shared` and `cached` too, and ``keep`` may be a function of progress."""
    kind = name if isinstance(name, Method) else method_class(name)
    site = where.get("site") or kind.site
    keywords = (*WHERE, *denoising.KEYWORDS) if site == "diffusion" else WHERE
    placed = {k: where.pop(k) for k in keywords if k in where}
    if site == "diffusion":
        told = {k: placed.pop(k) for k in denoising.KEYWORDS if k in placed}
        placed["denoising"] = Denoising(**{**kind.denoises, **told}, schedule=keep if callable(keep) else None)
        keep = 1.0 if callable(keep) else keep
    if callable(keep):
        raise ValueError(f"keep is a function; of progress, it goes with site='diffusion', and this is site={site!r}")
    if isinstance(name, Method):
        if where:
            raise ValueError(f"options {sorted(where)} belong to the method; it is already made")
        return Stage(name, keep, **placed)
    check_names(name, where, keywords)
    return Stage(get_method(name, **{**kind.sited.get(site, {}), **where}), keep, **placed)


def _unit(keep: budget.Keep) -> dict[str, Any]:
    """A budget's fields; ``r`` only where it is given, so that files of other budgets are read by older releases too."""
    return {k: v for k, v in asdict(keep).items() if k != "r" or v is not None}


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
