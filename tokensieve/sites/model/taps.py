"""Attention taps: see queries, keys and values as the attention kernel gets them, and weigh keys by size.

A tapped module's attention implementation is wrapped under a name of its own, registered together with the mask builder of the
implementation it wraps (a name without one would make the model pass no mask at all). The kernel itself stays what it was.
What a module does is kept on the module, so that models never share state.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokensieve.sites.model import checkpointing, masks
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.compatibility import (
    ALL_ATTENTION_FUNCTIONS,
    ALL_MASK_ATTENTION_FUNCTIONS,
    AttentionInterface,
    AttentionMaskInterface,
)

PREFIX = "tokensieve_"
STATE = "_tokensieve_taps"


@dataclass(frozen=True)
class Call:
    """What the attention kernel was called with; q ``(B, H, q, d)``, k and v ``(B, G, kv, d)``, after RoPE.

    ``neurons`` is ``(B, q, F)``, the activations of the feed-forward network behind it, where they are listened to; ``terms``
    names what the model adds to its attention beside that.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    causal: bool
    neurons: Tensor | None = None
    terms: tuple[str, ...] = ()

    def restricted_to(self, index: Tensor) -> Call:
        """The same call over some of its tokens (``(B, l)``, -1 at padding) and all cached ones before them."""
        past = self.key.shape[2] - self.query.shape[2]
        cached = torch.arange(past, device=index.device).expand(len(index), -1)
        columns = torch.cat([cached, torch.where(index >= 0, index + past, -1)], 1)
        holes = bool((index < 0).any())
        key, value = masks.gather(self.key, columns, 2), masks.gather(self.value, columns, 2)
        # Without a mask and with holes, a mask of keys is enough: order alone makes it causal.
        mask = masks.attention(self.mask, index, columns, self.key.shape[2], holes, "flash", self.query)
        assert not isinstance(mask, dict)
        neurons = None if self.neurons is None else masks.gather(self.neurons, index, 1)
        return Call(masks.gather(self.query, index, 2), key, value, mask, self.scale, self.causal, neurons, self.terms)


Observer = Callable[[Call], None]
Mask = Callable[[Tensor | None, Tensor], Tensor | None]
Limit = Callable[[Call], tuple[Tensor | None, Tensor | None]]
Own = Callable[[Call], Tensor]
Kernel = Callable[[Call, dict[str, Any]], Own | None]


@dataclass
class Taps:
    ahead: list[Observer]
    observers: list[Observer]
    masks: list[Mask]
    limits: list[Limit]
    kernels: list[Kernel]


class Answer(NamedTuple):
    """What the taps of a call say.

    Attributes:
        mask: the mask that the kernel gets.
        heads: what its output is multiplied by, ``(B, q, H)`` each.
        own: computes the output in place of the kernel; None where the kernel does.
    """

    mask: Tensor | None
    heads: tuple[Tensor, ...] = ()
    own: Own | None = None


# By the id of a config (they do not hash): the config, kept alive while tapped, its plain implementation, and its taps.
_attached: dict[int, tuple[Any, str | None, int]] = {}


def kind(config: Any) -> str:
    """The attention implementation of a config, whether tapped or not."""
    return str(config._attn_implementation or "eager").removeprefix(PREFIX)


def attach(
    module: nn.Module,
    observe: Observer | None = None,
    ahead: Observer | None = None,
    mask: Mask | None = None,
    limit: Limit | None = None,
    kernel: Kernel | None = None,
) -> Detach:
    """Tap an attention module; returns the function that takes the tap away again.

    Args:
        observe: called with every :class:`Call`, behind the kernel.
        ahead: the same, in front of all else; what it raises ends the run.
        mask: maps (mask, keys) to the mask the kernel gets.
        limit: maps a :class:`Call` to the mask the kernel gets, and what its output is multiplied by, ``(B, q, H)`` or None.
        kernel: maps a :class:`Call` and the kernel's other arguments to a function from the call to the output
            ``(B, q, H, d)``, which holds all else that it reads; or to None where the plain kernel is to run.
    """
    taps = module.__dict__.setdefault(STATE, Taps([], [], [], [], []))
    _wrap(module.config)
    pairs: list[tuple[list[Any], Any]] = [
        (taps.observers, observe), (taps.ahead, ahead), (taps.masks, mask), (taps.limits, limit), (taps.kernels, kernel)
    ]  # fmt: skip
    given = [(held, one) for held, one in pairs if one is not None]
    for held, one in given:
        held.append(one)

    def detach() -> None:
        for held, one in given:
            held.remove(one)
        if not any((taps.ahead, taps.observers, taps.masks, taps.limits, taps.kernels)):
            module.__dict__.pop(STATE, None)
        _unwrap(module.config)

    return detach


def show(module: nn.Module, call: Call) -> None:
    """Show a call to those who observe a module, as if its kernel had just been called so."""
    taps = module.__dict__.get(STATE)
    for observe in () if taps is None else taps.observers:
        observe(call)


def _around(config: Any) -> Detach:
    """Have the attention of modules with this config tapped until the function that this returns is called."""
    _wrap(config)
    return partial(_unwrap, config)


def _wrap(config: Any) -> None:
    _, plain, count = _attached.get(id(config), (config, config._attn_implementation, 0))
    if count == 0:
        name = PREFIX + (plain or "eager")
        AttentionInterface.register(name, _tapped)
        builders = ALL_MASK_ATTENTION_FUNCTIONS
        AttentionMaskInterface.register(name, builders[plain if plain in builders else "eager"])
        config._attn_implementation = name
    _attached[id(config)] = (config, plain, count + 1)


def _unwrap(config: Any) -> None:
    _, plain, count = _attached.pop(id(config))
    if count > 1:
        _attached[id(config)] = (config, plain, count - 1)
    else:
        config._attn_implementation = plain


def _tapped(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    inner = kind(module.config)
    function = ALL_ATTENTION_FUNCTIONS[inner] if inner != "eager" else _eager(module)
    taps, run = module.__dict__.get(STATE), checkpointing.run()
    again = run is not None and run.again
    if taps is None and not again:
        return function(module, query, key, value, attention_mask, **kwargs)
    scale = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    causal = kwargs.get("is_causal", getattr(module, "is_causal", False))
    call = Call(query, key, value, attention_mask, scale, bool(causal), terms=_terms(kwargs))
    if again:
        assert run is not None
        answer = run.told(module) or Answer(attention_mask)
    else:
        assert taps is not None
        for look in taps.ahead:
            look(call)
        answer = _answer(taps, call, kwargs)
        if run is not None and (taps.masks or taps.limits or answer.own is not None):
            run.note(module, answer, partial(_around, module.config))
    if answer.own is not None:
        out, weights = answer.own(call), None
    else:
        out, weights = function(module, query, key, value, answer.mask, **kwargs)
    for heads in answer.heads:
        out = out * heads[..., None].to(out.dtype)
    if taps is not None and taps.observers and not again:
        for part in segments(call, kwargs.get("cu_seq_lens_q")):
            for observe in taps.observers:
                observe(part)
    return out, weights


def _answer(taps: Taps, call: Call, kwargs: dict[str, Any]) -> Answer:
    mask, working = call.mask, []
    for change in taps.masks:
        mask = change(mask, call.key)
    for limit in taps.limits:
        mask, heads = limit(replace(call, mask=mask))
        working += [] if heads is None else [heads]
    own = (kernel(call, kwargs) for kernel in taps.kernels)
    return Answer(mask, tuple(working), next((found for found in own if found is not None), None))


def refuse(kwargs: dict[str, Any], index: int, what: str) -> None:
    """Raise ValueError where a kernel of our own would leave out a term that the model adds to its attention."""
    odd = _terms(kwargs)
    if odd:
        raise ValueError(f"layer {index} computes attention with {odd[0]}, which {what}")


def _terms(kwargs: dict[str, Any]) -> tuple[str, ...]:
    return tuple(k for k in ("position_bias", "s_aux", "sinks", "softcap") if kwargs.get(k) is not None)


def segments(call: Call, borders: Tensor | None) -> list[Call]:
    """The sequences that stand in one row, a call each, as other kernels are called: flash attention is told their borders."""
    if borders is None or call.causal or call.query.shape[0] != 1:
        return [call]
    lengths = (borders[1:] - borders[:-1]).tolist()
    parts = zip(*(x.split(lengths, dim=2) for x in (call.query, call.key, call.value)), strict=True)
    return [Call(q, k, v, None, call.scale, call.causal) for q, k, v in parts]


def _eager(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The eager attention of the file that the module's class comes from."""
    for cls in type(module).__mro__:
        found = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    raise ValueError(
        f"{type(module).__name__} has no eager attention of its own; load the model with attn_implementation='sdpa'"
    )
