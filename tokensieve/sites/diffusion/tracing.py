"""Tracing: attention rows of a denoiser, computed in blocks from the queries and keys of its own attention, under any kernel."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from tokensieve.parts.attention.rows import attend
from tokensieve.sites.diffusion import latents, modules
from tokensieve.sites.diffusion.running import disabled
from tokensieve.sites.diffusion.subject import subject
from tokensieve.sites.model.calls import Detach, around, before, names_of

KINDS = ("text", "received")
BLOCK = 1024
"""Queries whose rows are held at once."""
EAGER = ("AttnProcessor", "SlicedAttnProcessor", "XFormersAttnProcessor")
"""Processors that call another kernel; in their place the one of SDPA is asked for queries and keys."""


@dataclass(frozen=True)
class AttentionMap:
    """Rows of one module in one call of the denoiser.

    Attributes:
        module: its name.
        call: which call since the trace began, from 0.
        kind: "text", ``(B, T, N)``: how much of its attention each of the N image tokens gives to each of T text tokens; or
            "received", ``(B, N)``: what each image token receives, on average over the image tokens that attend.
        grid: rows and columns of the N tokens, where they are known.
        values: means over heads.
    """

    module: str
    call: int
    kind: str
    grid: tuple[int, int] | None
    values: Tensor = field(repr=False)


class AttentionTrace:
    """A context manager under which a pipeline, or a denoiser, runs as it does without, and its attention is written down.

    Attributes:
        maps: in the order in which they were computed.
        without: modules that have no rows, since their attention is no softmax; where nobody named them, that is a warning.
    """

    def __init__(self, given: Any, kinds: Sequence[str], layers: Sequence[str] | None):
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown or not kinds:
            raise ValueError(f"rows={tuple(kinds)!r}; they are some of {', '.join(KINDS)}")
        self._kinds = tuple(kinds)
        self._denoisers = subject(given).denoisers
        self._modules = [_attentions(d, layers) for d in self._denoisers]
        self.maps: list[AttentionMap] = []
        self.without: list[str] = []
        self._named = layers is not None
        self._undo: list[Detach] = []
        self._calls = 0
        self._now: latents.Latents | None = None
        self._orders: dict[int, bool] = {}

    def __enter__(self) -> AttentionTrace:
        self.maps.clear()
        self._calls = 0
        for denoiser, held in zip(self._denoisers, self._modules, strict=True):
            self._undo.append(before(denoiser, disabled(self._begin)))
            self._undo.append(denoiser.register_forward_hook(disabled(self._end), always_call=True).remove)
            self._undo += [around(m, "forward", self._wrap(name, m)) for name, m in held.items()]
        return self

    def __exit__(self, *_: object) -> None:
        while self._undo:
            self._undo.pop()()

    def of(self, kind: str, module: str | None = None) -> list[AttentionMap]:
        """The maps of a kind, of one module or of all."""
        return [m for m in self.maps if m.kind == kind and module in (None, m.module)]

    def heat(self, kind: str = "text") -> Tensor:
        """The mean of all maps of a kind on the finest grid among them: ``(B, T, rows, columns)``, or ``(B, rows, columns)``.

        Raises:
            ValueError: there is none whose grid is known.
        """
        found = [m for m in self.of(kind) if m.grid is not None]
        if not found:
            raise ValueError(
                f"no map of kind {kind!r} lies on a known grid; of({kind!r}) has {len(self.of(kind))} maps"
            )
        size = max((m.grid for m in found if m.grid), key=lambda g: g[0] * g[1])
        total: Any = 0
        for m in found:
            assert m.grid is not None
            flat = m.values if m.values.dim() == 3 else m.values[:, None]
            # What a token of a coarser grid holds is spread over those that it covers.
            share = m.grid[0] * m.grid[1] / (size[0] * size[1]) if kind == "received" else 1.0
            total = total + share * interpolate(flat.unflatten(2, m.grid), size, mode="bilinear")
        mean: Tensor = total / len(found)
        return mean if kind == "text" else mean[:, 0]

    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._now = latents.read(getattr(module, "config", None), kwargs)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._now = None
        if output is not None:
            self._calls += 1

    def _wrap(self, name: str, module: nn.Module) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        places = names_of(module)

        def wrap(plain: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                if self._now is not None:
                    given = {**dict(zip(places, args, strict=False)), **kwargs}
                    self._look(self._now, name, module, plain, given)
                return plain(*args, **kwargs)

            return disabled(forward)

        return wrap

    @torch.no_grad()
    def _look(
        self, now: latents.Latents, name: str, module: nn.Module, plain: Callable[..., Any], given: dict[str, Any]
    ) -> None:
        x = next(iter(given.values()))
        text = next((k for k in modules.TEXT if isinstance(given.get(k), Tensor) and given[k] is not x), None)
        first = next(iter(given))
        row = modules.row_of(module, first, given, now, True)
        if row is None:
            return
        try:
            seen = _captured(module, plain, given)
        except _NoSoftmax as error:
            if self._named:
                raise
            if name not in self.without:
                self.without.append(name)
                warnings.warn(str(error), stacklevel=2)
            return
        if len(seen.query) != len(x):
            raise ValueError(
                f"{type(module).__name__} ({name}) attends row by row; trace a batch of one, without guidance"
            )
        n, extra = row.n, seen.key.shape[2] - row.n
        if extra < 0 or (text is not None and seen.key.shape[2] == given[text].shape[1]):
            if "text" in self._kinds:  # cross-attention: all keys are of the text
                self._keep(now, name, "text", row.grid, _rows(seen, slice(0, n), slice(0, None)).transpose(1, 2))
            return
        text_first = self._text_first(module, plain, given, seen, n, row.inside) if extra else True
        image = slice(extra, None) if text_first else slice(0, n)
        words = slice(0, extra) if text_first else slice(n, None)
        asking = image if seen.query.shape[2] > n else slice(0, n)
        if "text" in self._kinds and extra:
            self._keep(now, name, "text", row.grid, _rows(seen, asking, words).transpose(1, 2))
        if "received" in self._kinds:
            self._keep(now, name, "received", row.grid, _rows(seen, asking, image, mean=True))

    def _keep(self, now: latents.Latents, name: str, kind: str, grid: tuple[int, int] | None, values: Tensor) -> None:
        self.maps.append(AttentionMap(name, self._calls, kind, grid, values))

    def _text_first(
        self, module: nn.Module, plain: Callable[..., Any], given: dict[str, Any], seen: _Seen, n: int, inside: bool
    ) -> bool:
        """Whether the text stands in front: the keys of a text that is another one differ there alone. Asked once a module."""
        if id(module) not in self._orders:
            text = next((k for k in modules.TEXT if isinstance(given.get(k), Tensor)), None)
            if inside or text is None:
                self._orders[id(module)] = modules.text_first(
                    next(d for d in self._denoisers if module in set(d.modules()))
                )
            else:
                other = _captured(module, plain, {**given, text: given[text] + 1})
                self._orders[id(module)] = torch.equal(other.key[:, :, -n:], seen.key[:, :, -n:])
        return self._orders[id(module)]


@dataclass(frozen=True)
class _Seen:
    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float


class _NoSoftmax(ValueError):
    """A module has no rows of attention."""


class _Stop(Exception):
    """Queries and keys are known; nothing more is to be computed."""


class _Watch(TorchFunctionMode):
    """Notes what the first softmax attention is asked, and stops there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: _Seen | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            query, key = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(("query", "key")))
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            scale = kwargs.get("scale") or query.shape[-1] ** -0.5
            self.seen = _Seen(query, key, mask, scale)
            raise _Stop
        return func(*args, **kwargs)


def _captured(module: Any, plain: Callable[..., Any], given: dict[str, Any]) -> _Seen:
    """Queries and keys of a call of an attention module, as its processor makes them.

    Raises:
        ValueError: its processor comes to no softmax attention that is known.
    """
    processor, watch = module.processor, _Watch()
    chooses = hasattr(processor, "_attention_backend")
    kernel = processor._attention_backend if chooses else None
    kind = type(processor).__name__
    stand_in = None
    if kind in EAGER:
        stand_in = sys.modules[type(processor).__module__].AttnProcessor2_0()  # type: ignore[attr-defined]
    try:
        if chooses:
            processor._attention_backend = "native"
        if stand_in is not None:
            module.processor = stand_in
        with watch:
            plain(**given)
    except _Stop:
        pass
    finally:
        if chooses:
            processor._attention_backend = kernel
        if stand_in is not None:
            module.processor = processor
    if watch.seen is None:
        raise _NoSoftmax(
            f"{kind} comes to no softmax attention over queries and keys, so that it has no rows; name other modules in layers="
        )
    return watch.seen


def _rows(seen: _Seen, queries: slice, keys: slice, mean: bool = False) -> Tensor:
    """Attention of some queries to some keys, ``(B, Q, K)``, means over heads; with ``mean`` over the queries too, ``(B, K)``."""
    asked = seen.query[:, :, queries]
    parts: list[Tensor] = []
    total: Any = 0
    for i, block in enumerate(asked.split(BLOCK, 2)):
        mask = seen.mask
        if mask is not None and mask.shape[-2] > 1:
            start = (queries.start or 0) + i * BLOCK
            mask = mask[..., start : start + block.shape[2], :]
        rows = attend(block, seen.key, seen.scale, mask)[..., keys].mean(1)
        if mean:
            total = total + rows.sum(1)
        else:
            parts.append(rows)
    return total / asked.shape[2] if mean else torch.cat(parts, 1)


def _attentions(denoiser: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Module]:
    found = {name: m for name, m in denoiser.named_modules() if callable(getattr(m, "processor", None))}
    if layers is None:
        return found
    missing = sorted(set(layers) - set(found))
    if missing:
        raise ValueError(f"layers={missing} are no attention of {type(denoiser).__name__}; its are {', '.join(found)}")
    return {name: found[name] for name in layers}


def trace(given: Any, rows: Sequence[str] | str = KINDS, *, layers: Sequence[str] | None = None) -> AttentionTrace:
    """Write down attention rows of a pipeline of diffusers, or of its unet or transformer, while it runs.

    Args:
        rows: "text" (each text token over the image) or "received" (what each image token receives), or both.
        layers: names of attention modules; all by default. Each costs its projections once more, and its rows.

    Returns:
        an :class:`AttentionTrace`, to be used in a ``with`` statement; nothing that the model computes changes.

    Example:
        >>> with ts.trace(pipe, "text") as t:  # doctest: +SKIP
        ...     pipe("a lighthouse")
        >>> t.heat("text").shape  # doctest: +SKIP
    """
    return AttentionTrace(given, (rows,) if isinstance(rows, str) else tuple(rows), layers)
