"""Shared encoding: what an encoder makes of some pictures is computed once, for all plans that leave the encoder as it is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.core.needs import Need
from tokensieve.core.plan import Plan
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.clock import Clock, device, now
from tokensieve.sites.model.structure import find, pretrained
from tokensieve.sites.visual.encoder_listener import KINDS, SHARED, Listener, around
from tokensieve.sites.visual.layout import EncoderPass


@dataclass(frozen=True)
class Known:
    """A call of the encoder, as one listener heard it.

    Attributes:
        out: what the model made of the pictures; look: what was heard; None where nothing can be told of it.
    """

    out: Any
    look: EncoderPass | None


@dataclass(frozen=True)
class EncoderCall:
    """A call of the encoder.

    Attributes:
        given: its arguments; out: what came out.
        known: what was heard, and the seconds that listening took, by what listeners ask for.
    """

    kind: str
    given: dict[str, Any]
    out: Any
    known: dict[tuple[Need, ...], tuple[EncoderPass | None, float]]


class SharedEncoding:
    """While it is attached, a vision-language model encodes the same pictures once, whatever sieve is attached to it.

    Sieves are told what the encoder said, as if it had run under them. Plans that reduce tokens inside the encoder run their
    own. Calls are kept until :meth:`forget`.

    Args:
        plans: those under which the model will run.

    Attributes:
        seconds: that the encoder itself has taken so far, listening not counted.
        plain: by kind, what encodes pictures.

    Example:
        >>> with SharedEncoding(model, plans) as shared:  # doctest: +SKIP
        ...     for plan in plans:
        ...         with ts.sieve(model, plan):
        ...             model.generate(**inputs)
    """

    def __init__(self, model: nn.Module, plans: Iterable[Plan]):
        self._model = pretrained(model)
        self.anatomy = find(self._model)
        # What reads features alone may always come.
        self._asked = {
            (),
            *(_needs(plan) for plan in plans if all(not s.in_encoder for s in plan.stages)),
        }
        self._calls: list[EncoderCall] = []
        self._undo: list[Detach] = []
        self.seconds = 0.0
        self.plain: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> SharedEncoding:
        base: Any = self.anatomy.base
        if SHARED in base.__dict__:
            raise RuntimeError("what this model's encoder says is shared already; use the one that is attached")
        for kind in KINDS:
            name = f"get_{kind}_features"
            if hasattr(base, name):
                self.plain[kind] = getattr(base, name)
                self._undo += around(base, name, functools.partial(self._out, kind))
        base.__dict__[SHARED] = self
        return self

    def __exit__(self, *_: object) -> None:
        base: Any = self.anatomy.base
        base.__dict__.pop(SHARED, None)
        while self._undo:
            self._undo.pop()()
        self.forget()

    def forget(self) -> None:
        """Let go of all pictures so far."""
        self._calls = []

    def heard(self, needs: Sequence[Need], kind: str, args: Any, kwargs: dict[str, Any]) -> tuple[Known, float]:
        """What a listener with these needs would have heard in a call, and the seconds that it would have listened.

        Raises:
            ValueError: no plan with these needs was named.
        """
        call = self._call(kind, args, kwargs)
        if tuple(needs) not in call.known:
            raise ValueError(
                "this plan is not among those that the encoding is shared by; name all of them when it is made"
            )
        look, seconds = call.known[tuple(needs)]
        return Known(call.out, look), seconds

    def _out(self, kind: str, plain: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        return self._call(kind, args, kwargs).out

    def _call(self, kind: str, args: Any, kwargs: dict[str, Any]) -> EncoderCall:
        given = inspect.signature(self.plain[kind]).bind_partial(*args, **kwargs).arguments
        found = next((c for c in self._calls if c.kind == kind and _same(c.given, given)), None)
        if found is None:
            found = self._encode(kind, given, args, kwargs)
            self._calls.append(found)
        return found

    def _encode(self, kind: str, given: dict[str, Any], args: Any, kwargs: dict[str, Any]) -> EncoderCall:
        """Have the encoder run once, with a listener for each of the needs."""
        base: Any = self.anatomy.base
        clocks = {needs: Clock(self._model) for needs in self._asked}
        listeners = {needs: Listener(self.anatomy, needs, None, clock) for needs, clock in clocks.items()}
        undo: list[Detach] = []
        call = self.plain[kind]
        towers = [stack.root for stack in (self.anatomy.vision, self.anatomy.video_tower) if stack is not None]
        began: list[float] = []

        def spent() -> float:
            return now(device(self._model)) - sum(clock.seconds for clock in clocks.values())

        def stop(*_: Any) -> None:
            self.seconds += spent() - began.pop()

        base.__dict__.pop(SHARED)
        try:
            for clock in clocks.values():
                clock.on = True
            for root in towers:
                undo.append(root.register_forward_pre_hook(lambda *_: began.append(spent())).remove)
                undo.append(root.register_forward_hook(stop).remove)
            for listener in listeners.values():
                undo += listener.listen()
                call = _through(listener, kind, call)
            out = call(*args, **kwargs)
        finally:
            base.__dict__[SHARED] = self
            while undo:
                undo.pop()()
        return EncoderCall(kind, given, out, {n: (_look(x, out), clocks[n].seconds) for n, x in listeners.items()})


def _needs(plan: Plan) -> tuple[Need, ...]:
    return tuple(need for stage in plan.stages if stage.site == "handoff" for need in stage.method.needs)


def _through(listener: Listener, kind: str, encode: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(encode)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return listener.look(kind, encode, args, kwargs)

    return wrapped


def _look(listener: Listener, out: Any) -> EncoderPass | None:
    pictures = listener.remembered.find(out)
    return pictures[0][0] if pictures else None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        both = isinstance(one, Tensor) and isinstance(other, Tensor)
        return both and (
            one is other or (one.shape == other.shape and one.device == other.device and torch.equal(one, other))
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
