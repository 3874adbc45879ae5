"""Ledger: one pass at a time, in one thread, and the one place that counts which stages ran in it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.sites.model import calls, compatibility, guards, supply
from tokensieve.sites.model.structure import Anatomy

PICTURES = ("pixel_values", "mm_encoder", "image_patches")
"""How the names of arguments that bring pictures begin."""


def pictured(kwargs: Mapping[str, Any]) -> bool:
    """Whether the arguments of a model bring pictures."""
    return any(v is not None for k, v in kwargs.items() if k.startswith(PICTURES))


class Ledger:
    """Stands around a model's forward, wherever that is entered (the model, the one inside it, its language model).

    Where a stage that was to run did not, the pass is an error: nothing is answered by the plain model in silence. Passes that
    bring no pictures (for stages that thin them), or one token (for most that evict), call for none.

    Attributes:
        visual: the stages that run in passes that bring pictures; late: those that run in passes of several tokens;
            every: those that run in each pass.
        feeds: what passes bring in which those of ``every`` run, by any of these names; none for all passes.
        models: where a pass may be entered, besides the model itself; encoders: what may run ahead of one.
        model: the whole model, once it is attached.
        anatomy: where pictures have their place in a prompt; None where that is not asked.
    """

    def __init__(self, seeds: Mapping[int, int], handed: Mapping[int, Mapping[str, Any]] | None = None):
        self.visual: list[Stage] = []
        self.late: list[Stage] = []
        self.every: list[Stage] = []
        self.feeds: frozenset[str] = frozenset()
        self.models: list[nn.Module] = []
        self.encoders: list[nn.Module] = []
        self.model: nn.Module | None = None
        self.anatomy: Anatomy | None = None
        self._seeds, self._handed = seeds, handed or {}
        self._busy: dict[str, int] = {}  # "thread": the one that runs the model; setdefault() asks and takes at once
        self._outer: nn.Module | None = None
        self._given: dict[str, Any] = {}
        self._ran: set[int] = set()
        self._encoded = self._warned = self._whole = False

    def seed(self, stage: Stage) -> int:
        """That of the sieve which the stage is of."""
        return self._seeds[id(stage)]

    def handed(self, stage: Stage) -> Mapping[str, Any]:
        """Signals that were given to the sieve which the stage is of."""
        return self._handed.get(id(stage), {})

    def ran(self, stage: Stage) -> None:
        """A stage ran in this pass; a method that keeps all of a small prompt did, too."""
        self._ran.add(id(stage))

    def completed(self, stage: Stage, signals: Signals) -> Signals:
        """The signals of a stage with those that are computed from others (see :func:`supply.completed`)."""
        return supply.completed(signals, stage.method.needs, stage.site, self.model)

    @property
    def elsewhere(self) -> bool:
        """Whether another thread is running the model."""
        return self._busy.get("thread", get_ident()) != get_ident()

    def attach(self, model: nn.Module) -> list[calls.Detach]:
        """Stand around a model and the models inside it, in front of all hooks that are there, and around the encoders."""
        out, self.model = [], model
        for module in {id(m): m for m in (model, *self.models)}.values():
            out.append(calls.before(module, self._begin, prepend=True))
            out.append(module.register_forward_hook(self._end, always_call=True).remove)
        for module in self.encoders:
            out.append(module.register_forward_pre_hook(self._encode, prepend=True).remove)
            out.append(module.register_forward_hook(self._encoded_by, always_call=True).remove)
        return out

    @contextmanager
    def whole(self) -> Iterator[None]:
        """A call of `generate`, whose passes go together: no other thread runs the model between them."""
        self._take()
        outer, self._whole = not self._whole, True
        try:
            yield
        finally:
            if outer:
                self._whole, self._outer = False, None
                del self._busy["thread"]

    def _take(self) -> None:
        if self._busy.setdefault("thread", get_ident()) != get_ident():
            raise guards.refusal("threads")

    def _encode(self, module: nn.Module, args: Any) -> None:
        """An encoder runs: in a pass, or ahead of one."""
        self._take()
        if self._outer in (None, module):
            self._outer, self._encoded = module, True

    def _encoded_by(self, module: nn.Module, args: Any, output: Any) -> None:
        self._release(module)

    def _release(self, module: nn.Module) -> bool:
        """What began at this module is over; False where it did not begin there."""
        if module is not self._outer or self.elsewhere:
            return False
        self._outer = None
        if not self._whole:
            del self._busy["thread"]
        return True

    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._take()
        if self._outer not in (None, module):
            return
        self._outer, self._given, self._encoded, ahead = module, kwargs, False, self._encoded
        self._ran.clear()
        cache = compatibility.cache_of(kwargs)
        if cache is not None and not isinstance(cache, compatibility.Cache):
            raise guards.refusal("continuous")
        if self.visual and ahead and kwargs.get("inputs_embeds") is not None and not pictured(kwargs):
            raise guards.refusal("merged")

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._release(module):
            return
        given, self._given = self._given, {}
        if output is None:  # it broke off
            return
        idle = [s for s in self.every if id(s) not in self._ran]
        if self.feeds and all(given.get(name) is None for name in self.feeds):
            idle = []  # what an encoder has put out comes with it, or what it takes does not
        idle += (
            [s for s in self.visual if id(s) not in self._ran]
            if pictured(given) and _shown(self.anatomy, given)
            else []
        )
        if idle:
            raise guards.refusal("compiled", stages=_names(idle))
        idle = [s for s in self.late if id(s) not in self._ran] if _length(given) > 1 else []
        if idle and compatibility.cache_in(output) is not None:
            raise guards.refusal("compiled", stages=_names(idle))
        if idle and not self._warned:
            self._warned = True
            warnings.warn(guards.UNCACHED.format(stages=_names(idle)), stacklevel=2)


def _names(stages: Sequence[Stage]) -> str:
    return " and ".join(f"{s.method.name!r} at site={s.site!r}" for s in stages)


def _length(given: Mapping[str, Any]) -> int:
    """Tokens of a pass."""
    x = given.get("inputs_embeds") if given.get("input_ids") is None else given["input_ids"]
    return x.shape[1] if isinstance(x, Tensor) else 0


def _shown(anatomy: Anatomy | None, given: Mapping[str, Any]) -> bool:
    """Whether the prompt has a place for the pictures of a pass."""
    if anatomy is None or anatomy.base is None:
        return True
    kinds = anatomy.placeholders(given.get("input_ids"), given.get("inputs_embeds"))
    return any(bool(kind.any()) for kind in kinds.values())
