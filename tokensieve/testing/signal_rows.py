"""What methods rely on in a signal of the table, built in or from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokensieve.core.method import Method
from tokensieve.core.needs import Need
from tokensieve.core.reduce import reduce
from tokensieve.core.signal_table import Signal, signal
from tokensieve.core.signals import MissingSignal, Signals
from tokensieve.sites.model.supply import completed
from tokensieve.testing import draw
from tokensieve.testing.bad_input import refused
from tokensieve.testing.trial import B, N, close, expect

FRAME = ("features", "mask", "grid")
"""Rows of the table that every method has, and no method asks for."""


def check_signal(name: str, model: nn.Module | None = None) -> None:
    """Check a signal of the table.

    It is drawn at random as its shape says; `tokensieve.reduce` takes it; a method that needs it reads it as it was given, in
    single precision, for one row as for many, per layer where it may come so; without it the error names it; another number of
    tokens or rows, NaN and infinity are refused by its name. What computes it gives, at each of its sites, a tensor that fits,
    the same every time, and for a row alone as among others.

    Args:
        model: what the function that computes it is given; features are then as wide as its language model's states.

    Raises:
        ValueError: no signal is called so.
        AssertionError: naming what does not hold.
    """
    row = signal(name)
    expect(name not in FRAME, f"a signal that methods ask for; {name} is in every call")
    expect(row.meaning and not row.meaning.endswith("."), f"{name} to have a meaning, without a full stop")
    expect(name in row.how, f"what tells how to pass {name} to name it: {row.how!r}")
    for other in row.instead:
        signal(other)
    x, probe = draw.features(B, N), _reader(name)
    value = draw.signals(draw.Asks([Need(name)]), B, N)[name]
    expect(
        tuple(value.shape) == draw.shape(row, B, N), f"{name} drawn in the shape {row.shape}; got {tuple(value.shape)}"
    )

    def run(given: Any, tokens: Tensor = x, mask: Tensor | None = None) -> Tensor:
        reduce(tokens, probe, N // 2, mask=mask, **{name: given})
        return probe.seen[-1]

    expect(torch.equal(run(value), value), f"a method to read {name} as it was given")
    expect(torch.equal(run(value[0], x[0]), value[:1]), f"{name} of one row to be taken without its batch axis")
    if row.layers:
        expect(torch.equal(run({-2: value, -1: 2 * value}), 2 * value), f"{name} to be taken by layer")
    s = Signals.of(x, **{name: value})
    expect(s.has(name) and not Signals(x).has(name), f"has({name!r}) to tell whether it is there")
    expect(torch.equal(s.row(1).get(Need(name))[1], value[1:2]), f"a row of the batch to hold its own {name}")
    expect(not s.over(**{name: None}).has(name), f"over({name}=None) to take it out")
    refused(lambda: reduce(x, probe, 9), rf"needs the signal '{name}'; pass {name}=", MissingSignal)
    refused(lambda: run(value[:-1]), rf"{name} has shape")
    if row.axis is not None:
        refused(lambda: run(value.narrow(row.axis or 0, 0, N - 1)), rf"{name} has shape")
    if value.is_floating_point():
        _numbers(name, value, run)
    if row.compute is not None:
        _computed(row, model)


def _computed(row: Signal, model: nn.Module | None) -> None:
    width = 16 if model is None else int(model.config.get_text_config().hidden_size)  # type: ignore[operator, union-attr]
    x = draw.features(B, N, width)
    given = draw.signals(draw.Asks(row.reads), B, N, width)

    def made(rows: slice, site: str) -> Tensor:
        s = Signals.of(x[rows], **draw.rows(given, rows))
        return completed(s, [Need(row.name)], site, model).get(Need(row.name))[1]

    for site in row.sites:
        whole = made(slice(None), site)
        expect(torch.equal(whole, made(slice(None), site)), f"what computes {row.name} to give the same every time")
        for i in range(B):
            alone = made(slice(i, i + 1), site)
            expect(
                close(alone, whole[i : i + 1]),
                f"what computes {row.name} to give a row alone what it gives it among others",
            )


def _numbers(name: str, value: Tensor, run: Callable[..., Tensor]) -> None:
    half = run(value.half())
    expect(half.dtype == torch.float32, f"{name} in half precision to be read in single; got {half.dtype}")
    axis = draw.axis(name)
    for bad in (float("nan"), float("inf"), -float("inf")):
        spoilt = value.clone()
        spoilt[1].select(axis, 3).fill_(bad)
        says = rf"{name} holds NaN or infinite values: first in row 1"
        refused(lambda spoilt=spoilt: run(spoilt), says)  # type: ignore[misc]
        if not draw.of_text(name):
            mask = torch.ones(B, N, dtype=torch.bool)
            mask[1, 3] = False
            says = rf"{name} holds NaN or infinite values at padding"
            refused(lambda spoilt=spoilt, mask=mask: run(spoilt, mask=mask), says)  # type: ignore[misc]


@dataclass(frozen=True)
class _Reader(Method):
    """A method that needs one signal and remembers what it read."""

    wanted: ClassVar[str] = ""
    seen: ClassVar[list[Tensor]] = []

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need(self.wanted),)

    def score(self, s: Signals) -> Tensor:
        self.seen.append(s.get(self.needs[0])[1])
        return s.features.norm(dim=-1)


def _reader(name: str) -> _Reader:
    return type("_Reader", (_Reader,), {"wanted": name, "seen": []})()
