"""Recomputation: under gradient checkpointing a layer runs again in the backward pass, and does there what it did at first.

By then the pass it belongs to is over: other passes may have followed, the sieve may be gone, and the backward pass runs in
threads of autograd's. So every call that is checkpointed carries what was answered inside it, and answers the same again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import nn

from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.calls import Detach

CHECKPOINT = "_gradient_checkpointing_func"


class Run:
    """One checkpointed call of a layer; called once in the forward pass, and again for every recomputation.

    Attributes:
        again: whether the call that is under way is a recomputation.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.again, self._ran = False, False
        self._answers: dict[nn.Module, list[Any]] = {}
        self._around: dict[nn.Module, Callable[[], Detach]] = {}
        self._calls: dict[nn.Module, int] = {}

    def __call__(self, *args: Any) -> Any:
        self.again, self._ran, self._calls = self._ran, True, {}
        token = _now.set(self)
        undo = [around() for around in self._around.values()] if self.again else []
        try:
            return self.function(*args)
        finally:
            _now.reset(token)
            for take_off in undo:
                take_off()

    def note(self, module: nn.Module, answer: Any, around: Callable[[], Detach]) -> None:
        """Keep what a call of ``module`` was answered; ``around`` is called before a recomputation, and what it returns after."""
        self._answers.setdefault(module, []).append(answer)
        self._around[module] = around

    def told(self, module: nn.Module) -> Any:
        """What the same call of ``module`` was answered at first; None where nothing was."""
        at = self._calls[module] = self._calls.get(module, -1) + 1
        known = self._answers.get(module, [])
        return known[at] if at < len(known) else None


_now: ContextVar[Run | None] = ContextVar("tokensieve_run", default=None)


def run() -> Run | None:
    """The checkpointed call that this code runs in; None outside of any."""
    return _now.get()


def again() -> bool:
    """Whether this code runs in a recomputation."""
    now = _now.get()
    return now is not None and now.again


def attach(stack: Stack) -> list[Detach]:
    """Have the layers of a stack run under a :class:`Run` wherever they are checkpointed."""

    def enter(module: nn.Module, args: Any) -> None:
        for layer in stack.layers if module.training else ():
            plain = getattr(layer, CHECKPOINT, None)
            if getattr(layer, "gradient_checkpointing", False) and not isinstance(plain, _Once):
                layer.__dict__[CHECKPOINT] = _Once(layer, plain)

    return [stack.root.register_forward_pre_hook(enter).remove]


class _Once:
    """Stands for a layer's checkpointing function in its next call, and then goes."""

    def __init__(self, layer: nn.Module, plain: Any):
        self.layer, self.plain = layer, plain

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        layer, plain = self.layer, self.plain
        layer.__dict__[CHECKPOINT] = plain
        if getattr(getattr(function, "func", None), "__self__", None) is not layer:
            return plain(Run(function), *args)
        # Some releases checkpoint the whole call, hooks included: these run once, around what is checkpointed.
        own, forward = layer.__dict__.get("forward"), layer.forward
        layer.__dict__["forward"] = lambda *a, **k: plain(Run(partial(forward, **k)), *a)
        try:
            return function(*args)
        finally:
            layer.__dict__.pop("forward")
            if own is not None:
                layer.__dict__["forward"] = own
