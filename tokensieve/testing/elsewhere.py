"""Elsewhere: methods that take no token away, but leave a layer less to look at, or have prompts read fewer keys."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from tokensieve.core.focus import Focus
from tokensieve.core.method import CacheMethod, FocusMethod
from tokensieve.core.signals import MissingSignal, Signals
from tokensieve.parts import budget
from tokensieve.testing import draw
from tokensieve.testing.bad_input import refused
from tokensieve.testing.trial import B, H, N, Trial, W, close, expect


def check_focus(trial: Trial) -> None:
    """At ``site="focus"``: as much is left as was asked for, rows are independent, and padding is seen by none."""
    if "focus" not in trial.cls.sites:
        return
    x, given = trial.draw()
    for keep in (1, 5, 0.5):
        whole = _focus(trial, x, given, keep)
        for name, part in _parts(whole).items():
            if name != "visual":  # a window around each token, which the picture's edge cuts
                want = budget.counts(keep, torch.ones_like(part.flatten(0, -2), dtype=torch.bool))
                expect((part.flatten(0, -2).sum(1) == want).all(), f"{int(want[0])} of {name} left for keep={keep}")
            else:
                most = int(budget.counts(keep, torch.ones(1, N, dtype=torch.bool)))
                expect((part.sum(2) <= most).all() and part.any(2).all(), f"1 to {most} of {name} seen for keep={keep}")
        for b in range(B):
            row = slice(b, b + 1)
            alone = _parts(_focus(trial, x[row], draw.rows(given, row), keep))
            for name, part in _parts(whole).items():
                expect(torch.equal(alone[name], part[row]), f"{name} of row {b} alone as in the batch for keep={keep}")
    mask = torch.arange(N) % 3 != 1
    seen = _parts(_focus(trial, x, given, 0.5, mask=mask.expand(B, -1)))
    for name in ("text", "visual"):
        expect(name not in seen or not seen[name][..., ~mask].any(), f"no padding among what is seen ({name})")


def check_needs_of_focus(trial: Trial) -> None:
    """At ``site="focus"``: without a need and its stand-ins the error names it, stand-ins serve, and each need matters."""
    made = trial.made
    if "focus" not in trial.cls.sites:
        return
    x, given = trial.draw()
    for i, need in enumerate(made.needs):
        left = {k: v for k, v in given.items() if k not in (need.name, *need.instead)}
        refused(partial(_focus, trial, x, left, 5), rf"needs the signal '{need.name}'", MissingSignal)
        rest = [n for j, n in enumerate(made.needs) if j != i]
        for name in (need.name, *need.instead):
            asks = draw.Asks([replace(need, name=name), *rest])
            one = _parts(_focus(trial, x, draw.signals(asks, B, N), 5))
            again = {**draw.signals(asks, B, N), name: draw.signals(asks, B, N, seed=5)[name]}
            other = _parts(_focus(trial, x, again, 5))
            expect(any(not torch.equal(one[k], other[k]) for k in one), f"{name} to change what is seen")


def check_group_of_queries(trial: Trial) -> None:
    """Where queries of a prompt read a few keys: rows are independent, and keys that they look at are worth most."""
    made = cast(CacheMethod, trial.made)
    size = made.query_block_size if "cache" in made.sites else 0
    if not 0 < size <= N:  # with small options
        return
    dim, front = 8, 24
    n = front + size
    query, key = (
        draw.features(B, 2 * size, dim).unflatten(1, (2, size)),
        draw.features(B, 2 * n, dim, 1).unflatten(1, (2, n)),
    )
    real = torch.ones(B, n, dtype=torch.bool)
    real[1, :5] = False
    worth = made.key_scores(query, key, dim**-0.5, real)
    expect(worth.shape == (B, 2, front), f"a worth of shape {(B, 2, front)}; got {tuple(worth.shape)}")
    for b in range(B):
        row = slice(b, b + 1)
        alone = made.key_scores(query[row], key[row], dim**-0.5, real[row])
        expect(close(alone, worth[row]), f"row {b} of queries alone as in the batch")
    expect((worth[1, :, :5] < 0).all(), "padding to be read by none")
    junk = torch.where(real[:, None, :, None], key, 7 * key.roll(1, 2))
    expect(close(made.key_scores(query, junk, dim**-0.5, real), worth), "the same whatever padding holds")
    look = (query.mean(2, keepdim=True) @ key[:, :, :front].transpose(2, 3))[:, :, 0]
    rest = worth.isfinite()
    high = rest & (look > look.masked_fill(~rest, 0).mean(2, keepdim=True))
    expect(
        worth[high].mean() > worth[rest & ~high].mean(), "keys that the queries look at to be worth more than others"
    )


def _focus(trial: Trial, x: Tensor, given: dict[str, Any], keep: int | float, **more: Any) -> Focus:
    return cast(FocusMethod, trial.made).focus(Signals.of(x, grid=(H, W), **given, **more), keep)


def _parts(focus: Focus) -> dict[str, Tensor]:
    return {k: v for k in ("text", "visual", "neurons") if isinstance(v := getattr(focus, k), Tensor)}
