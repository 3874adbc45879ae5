"""Signals: what a method may read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokensieve.core.checks import each, expect, finite, widened
from tokensieve.core.needs import Need
from tokensieve.core.noise import noise
from tokensieve.core.signal_table import SIGNALS, TABLE, Signal, signal

LayerTensor = Tensor | Mapping[int, Tensor]
"""One tensor, or one per encoder layer: ``{-2: a, -1: b}``."""


class MissingSignal(ValueError):
    """A method needs a signal that was not given."""


@dataclass(frozen=True, eq=False)
class Signals:
    """What is known about the N tokens of each of B rows; everything but ``features`` is optional.

    What each one is called, its shape and its meaning stand in the table of signals (`tokensieve signals`). Signals that were
    registered from outside are read like the others, as attributes or by :meth:`get`, and made by :meth:`of`. Half-precision
    tensors are widened to float32 for selection. Tensors are batch first.
    """

    features: Tensor
    mask: Tensor | None = None
    grid: tuple[int, int] | None = None
    cls_attention: LayerTensor | None = None
    received_attention: LayerTensor | None = None
    cls_similarity: LayerTensor | None = None
    pagerank: Tensor | None = None
    text_attention: Tensor | None = None
    text_text: Tensor | None = None
    last_attention: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    paired: Tensor | None = None
    keys: LayerTensor | None = None
    values: LayerTensor | None = None
    window_attention: Tensor | None = None
    accumulated_attention: Tensor | None = None
    expected_logits: Tensor | None = None
    probe_attention: Tensor | None = None
    visual: Tensor | None = None
    visual_share: Tensor | None = None
    token_ids: Tensor | None = None
    relevance: Tensor | None = None
    entropy: Tensor | None = None
    ranking: Tensor | None = None
    neurons: Tensor | None = None
    text_neurons: Tensor | None = None
    idf: Tensor | None = None
    stop: Tensor | None = None
    word: Tensor | None = None
    sizes: Tensor | None = None
    crop: Tensor | None = None
    head: Tensor | None = None
    frame: Tensor | None = None
    spot: Tensor | None = None
    passage: Tensor | None = None
    shift: Tensor | None = None
    surprisal: Tensor | None = None
    change: Tensor | None = None
    staleness: Tensor | None = None
    classes: Tensor | None = None
    foreground: Tensor | None = None
    prior: Tensor | None = None
    seed: int = 0
    """For methods that draw."""
    more: Mapping[str, LayerTensor] = field(default_factory=dict)
    """Signals registered from outside, by name."""

    @classmethod
    def of(cls, features: Tensor, **signals: Any) -> Signals:
        """Signals by name, those registered from outside among them.

        Raises:
            ValueError: a name that no signal has, beside what the constructor refuses.
        """
        own, more = _parted(signals)
        return cls(features, **own, more=more)

    def __post_init__(self) -> None:
        if self.features.dim() != 3:
            raise ValueError(f"features must have shape (B, N, D); got {tuple(self.features.shape)}")
        b, n, d = self.features.shape
        if n == 0 or b == 0:
            raise ValueError(f"features hold no token: shape {tuple(self.features.shape)}")
        if self.mask is not None:
            expect("mask", self.mask, (b, n))
            if not self.mask.any(1).all():
                raise ValueError("mask leaves a row without any token; every row must hold at least one")
        if self.grid is not None and self.grid[0] * self.grid[1] != n:
            raise ValueError(f"grid={self.grid} holds {self.grid[0] * self.grid[1]} tokens; features hold {n}")
        for name in self.more:
            if name in TABLE:
                raise ValueError(f"more={{{name!r}: ...}}: {name} is a field of its own")
        object.__setattr__(self, "more", {k: widened(v) for k, v in self.more.items() if v is not None})
        given = self.given
        for name, value in given.items():
            for one in each(value):
                if not signal(name).fits(tuple(one.shape), b, n):
                    raise ValueError(
                        f"{name} has shape {tuple(one.shape)}; pass {signal(name).how}, here B={b}, N={n}, D={d}"
                    )
        self._check_text(given)
        for name, value in given.items():
            for one in each(value):
                finite(name, one, self.mask)
            if name not in self.more:
                object.__setattr__(self, name, widened(value))

    def _check_text(self, given: Mapping[str, Any]) -> None:
        b, _, d = self.features.shape
        if self.text is not None and (self.text.dim() != 3 or self.text.shape[0] != b or self.text.shape[2] != d):
            raise ValueError(f"text has shape {tuple(self.text.shape)}; pass {signal('text').how}, here B={b}, D={d}")
        lengths = {
            name: value.shape[axis]
            for name, value in sorted(given.items())
            if isinstance(value, Tensor) and (axis := signal(name).text_axis)
        }
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the text signals hold different numbers of tokens: {lengths}")

    @property
    def batch(self) -> int:
        return self.features.shape[0]

    @property
    def n(self) -> int:
        return self.features.shape[1]

    @property
    def device(self) -> torch.device:
        return self.features.device

    @cached_property
    def valid(self) -> Tensor:
        """``(B, N)`` bool: tokens that are not padding."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.features.shape[:2], dtype=torch.bool, device=self.device)

    @cached_property
    def weight(self) -> Tensor:
        """``(B, N)`` float: sizes, or ones."""
        return self.valid.to(self.features.dtype) if self.sizes is None else self.sizes

    @cached_property
    def heads(self) -> Tensor:
        """``(B, N)`` long: :attr:`head`, or one head for all."""
        return torch.zeros_like(self.valid, dtype=torch.long) if self.head is None else self.head

    @cached_property
    def spots(self) -> Tensor | None:
        """``(B, N, 2)``: :attr:`spot`, or the centres of the grid's cells; None where there is neither."""
        if self.spot is not None or self.grid is None:
            return self.spot
        y, x = ((torch.arange(n, device=self.device) + 0.5) / n for n in self.grid)
        return torch.cartesian_prod(y, x).to(self.features.dtype).expand(self.batch, -1, -1)

    @property
    def given(self) -> dict[str, Any]:
        """The signals that are there, by name."""
        own = {name: value for name in TABLE if (value := getattr(self, name)) is not None}
        return own | dict(self.more) if self.more else own

    def has(self, name: str) -> bool:
        """Whether a signal is there.

        Raises:
            ValueError: no signal is called so.
        """
        return self._read(name) is not None

    def get(self, need: Need, layer: int | None = None) -> tuple[str, Tensor]:
        """The signal a need asks for, or the first stand-in that is present: (its name, its tensor).

        Raises:
            MissingSignal: neither is there; the message says how to pass it.
        """
        for name in (need.name, *need.instead):
            value = self._read(name)
            if value is not None:
                return name, _at(name, value, layer)
        ways = " or ".join(signal(name).how for name in (need.name, *need.instead))
        meaning = signal(need.name).meaning
        raise MissingSignal(f"this method needs the signal {need.name!r}; pass {ways} ({need.name}: {meaning})")

    def metric(self, need: Need, layer: int | None = None) -> Tensor:
        """Keys or values as ``(B, N, D')``, heads joined; their stand-in otherwise."""
        _, x = self.get(need, layer)
        return x if x.dim() == 3 else x.transpose(1, 2).flatten(2)

    def noise(self, salt: int = 0) -> Tensor:
        """``(B, N)`` uniform in [0, 1), drawn from the seed and the row's own contents: the same in any batch (see
        :func:`tokensieve.core.noise.noise`)."""
        return noise(self.features, self.mask, self.seed * 7919 + salt)

    def over(self, **changes: Any) -> Signals:
        """A copy with some signals replaced."""
        own, more = _parted(changes)
        return replace(self, **own, more={**self.more, **more})

    def row(self, index: int) -> Signals:
        """One row of the batch, as a batch of one."""

        def of(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {layer: of(tensor) for layer, tensor in value.items()}
            return value[index : index + 1] if isinstance(value, Tensor) else value

        made = object.__new__(Signals)  # what the batch was checked for holds for its rows
        made.__dict__.update({f.name: of(getattr(self, f.name)) for f in fields(self)})
        return made

    def _read(self, name: str) -> LayerTensor | None:
        return getattr(self, name) if name in TABLE else self.more.get(signal(name).name)

    if not TYPE_CHECKING:  # a name that is mistyped stays an error of types

        def __getattr__(self, name: str) -> Any:
            """A signal from outside; None where it is not given."""
            if name.startswith("_") or name not in SIGNALS:
                raise AttributeError(f"{type(self).__name__} has no attribute or signal {name!r}")
            return self.__dict__.get("more", {}).get(name)


def register_signal(name: str, shape: str, meaning: str, **row: Any) -> Signal:
    """Add a signal to the table: `tokensieve.reduce` then takes it by its name, `Signals` checks and carries it.

    Args:
        name, shape, meaning, row: the fields of :class:`~tokensieve.core.signal_table.Signal`. With ``compute`` and ``sites``,
            `tokensieve.sieve` has it computed there, in a model, for methods that need it.

    Raises:
        ValueError: a name that is taken, a shape that does not begin with B, sites without ``compute`` or the reverse, a site
            that computes nothing for others, or a signal among ``reads`` that is not known.

    Example:
        >>> register_signal("depth", "(B, N)", "how far away each patch is, in metres")  # doctest: +SKIP
        >>> ts.reduce(x, MyMethod(), keep=64, depth=d)                                   # doctest: +SKIP
    """
    made = Signal(name, shape, meaning, **row)
    if any(words[0] != "B" for words in made.shapes):
        raise ValueError(f"shape={shape!r} of the signal {name!r} must begin with B, the rows: '(B, N)'")
    if name in RESERVED or (name not in TABLE and hasattr(Signals, name)):
        raise ValueError(f"{name!r} means something else in tokensieve.reduce or of Signals; choose another name")
    if bool(made.sites) != (made.compute is not None) or not set(made.sites) <= set(COMPUTING):
        raise ValueError(
            f"sites={made.sites!r} of the signal {name!r}: name those, of {', '.join(COMPUTING)}, at which compute= (a function "
            "of the signals and the model) gives it; without it, leave sites out"
        )
    for read in made.reads:
        signal(read.name)
    return SIGNALS.register(name)(made)


COMPUTING = ("encoder", "handoff", "prefill", "cross", "cache")
"""Sites that have signals from outside computed."""
RESERVED = ("x", "method", "keep", "seed", "more")


def _parted(signals: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those that are fields of Signals, and those from outside."""
    own = {k: v for k, v in signals.items() if k in Signals.__dataclass_fields__}
    more = {signal(k).name: v for k, v in signals.items() if k not in own}
    return own, more


def _at(name: str, value: LayerTensor, layer: int | None) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if layer is None:
        return value[max(value)]
    if layer not in value:
        raise MissingSignal(f"this method reads {name} at layer {layer}; {name} holds layers {sorted(value)}")
    return value[layer]
