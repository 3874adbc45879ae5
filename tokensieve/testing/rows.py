"""Rows: no row of a batch has an influence on another, and padding has none on any."""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.reduction import Reduction
from tokensieve.core.signal_table import signal
from tokensieve.core.signals import Signals
from tokensieve.testing import draw
from tokensieve.testing.trial import B, N, Trial, close, expect, same, slots


def check_rows_are_independent(trial: Trial) -> None:
    """A row alone is reduced as in the batch."""
    x, given = trial.draw()
    for keep in (1, 9, 30):
        together = trial.run(x, keep, given)
        for b in range(B):
            row = slice(b, b + 1)
            alone = trial.run(x[row], keep, draw.rows(given, row))
            same(together.rows(row), alone, f"row {b} in a batch as alone for keep={keep}")


def check_rows_in_turn(trial: Trial) -> None:
    """Long rows whose pairs are compared are taken one after the other, and give what the batch gives."""
    if not trial.made.pairs:
        return
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[1, -5:], mask[2, -30:] = False, False
    x, given = trial.draw()
    home = sys.modules[Method.__module__]
    for keep in (9, 5):
        batch = trial.run(x, keep, given, mask=mask)
        with patch.object(home, "LONG", 1):
            same(trial.run(x, keep, given, mask=mask), batch, f"rows in turn as in a batch for keep={keep}")


def check_padding_is_as_if_it_were_not_there(trial: Trial) -> None:
    """Rows of different lengths with padding on the left, inside, on the right, and of a single token."""
    mask = torch.zeros(4, 20, dtype=torch.bool)
    mask[0, 6:] = mask[1, :13] = mask[3, 11] = True
    mask[2] = torch.arange(20) % 3 != 1
    for seed in (0, 1):
        clean, known = trial.draw(4, 20, seed=seed)
        x, given = _spoilt(clean, known, mask)
        for keep in (1, 4, 0.5, 11):
            r = trial.run(x, keep, given, grid=(4, 5), mask=mask)
            slots(r)
            expect((r.owner[~mask] == -1).all(), "padding to belong to no slot")
            expect(not (r.dense() * ~mask[:, None]).any(), "padding to weigh nothing in any slot")
            kept = torch.zeros_like(mask).scatter_(1, r.kept, True)
            expect(not (kept & ~mask).any(), "no padding to be kept")
            same(
                r,
                trial.run(clean, keep, known, grid=(4, 5), mask=mask),
                f"the same whatever padding holds for keep={keep}",
            )
            flat = trial.run(x, keep, given, mask=mask)
            for b in range(4):
                _as_alone(trial, x, given, mask, b, keep, flat)
        _scores(trial, x, given, mask)


def _as_alone(
    trial: Trial, x: Tensor, given: dict[str, Any], mask: Tensor, b: int, keep: int | float, flat: Reduction
) -> None:
    place = mask[b].nonzero()[:, 0]
    alone = trial.run(x[b : b + 1, place], keep, draw.tokens(draw.rows(given, slice(b, b + 1)), place))
    padded, count = flat.rows(slice(b, b + 1)), int(alone.counts)
    what = f"row {b} with padding as without it for keep={keep}"
    expect(int(padded.counts) == count, f"{what}: {int(padded.counts)} and {count} tokens are kept")
    kept = place[alone.kept]
    expect(torch.equal(padded.kept[:, :count], kept), f"{what}: {padded.kept.tolist()}, {kept.tolist()} are kept")
    expect(torch.equal(padded.owner[:, place], alone.owner), f"{what}: tokens go to other slots")
    expect(close(padded.dense()[:, :count, place], alone.dense()), f"{what}: weights differ")


def _scores(trial: Trial, x: Tensor, given: dict[str, Any], mask: Tensor) -> None:
    whole = trial.made.score(Signals.of(x, mask=mask, **given))
    for b, row in enumerate(() if whole is None else whole):
        place = mask[b].nonzero()[:, 0]
        one = Signals.of(x[b : b + 1, place], **draw.tokens(draw.rows(given, slice(b, b + 1)), place))
        alone = trial.made.score(one)
        assert alone is not None
        expect(close(row[place], alone[0]), f"scores of row {b} with padding as without it")


def _spoilt(x: Tensor, given: dict[str, Any], mask: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Padding that holds large numbers of either sign: it would win, or lose, wherever it took part."""
    sign = torch.where(torch.arange(mask.shape[1]) % 2 == 0, 30.0, -30.0).expand(mask.shape)
    out = {}
    for name, value in {"features": x, **given}.items():
        if not value.is_floating_point() or name == "spot" or draw.of_text(name):
            out[name] = value
            continue
        axis = draw.axis(name) % value.dim()
        shape = [1] * value.dim()
        shape[0], shape[axis] = mask.shape
        junk = sign.reshape(shape) * (1 + value.abs()) if signal(name).values != "number" else value.new_tensor(7.0)
        out[name] = torch.where(mask.reshape(shape), value, junk)
    return out.pop("features"), out


def check_padding_of_the_text(trial: Trial) -> None:
    """Text tokens that are padding change nothing, whatever they hold."""
    x, given = trial.draw()
    texts = [k for k in given if signal(k).text_axis is not None]
    if not texts or "text_text" in texts:  # rows of text over text end where the text does
        return
    mask = torch.ones(B, draw.TEXT, dtype=torch.bool)
    mask[0, -3:], mask[1, :2] = False, False
    spoilt = {k: given[k] for k in texts}
    for name, value in spoilt.items():
        axis = signal(name).text_axis or 1
        junk = value.roll(1, axis)
        gone = ~mask.view(B, *[1] * (axis % value.dim() - 1), -1, *[1] * (value.dim() - axis % value.dim() - 1))
        spoilt[name] = torch.where(gone, ~junk if junk.dtype == torch.bool else 3 * junk, value)
    for keep in (5, 17):
        a = trial.run(x, keep, given, text_mask=mask)
        b = trial.run(x, keep, {**given, **spoilt}, text_mask=mask)
        same(a, b, f"the same whatever text padding holds, for keep={keep}")
