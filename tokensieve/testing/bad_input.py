"""Bad input: what is missing, broken or unknown is refused by an error that names it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from tokensieve.core.signals import MissingSignal
from tokensieve.testing import draw
from tokensieve.testing.trial import B, N, Trial, expect


def refused(call: Callable[[], Any], text: str, error: type[Exception] = ValueError) -> None:
    """The call raises the error, and its message holds ``text``, a regular expression."""
    try:
        call()
    except error as e:
        expect(re.search(text, str(e)), f"an error that says {text!r}; it says {str(e)!r}")
    else:
        expect(False, f"{error.__name__} that says {text!r}; nothing was raised")


def check_what_is_not_finite_is_refused(trial: Trial) -> None:
    """NaN and infinity, in the features and in every signal."""
    x, given = trial.draw()
    for name in ("features", *(k for k, v in given.items() if v.is_floating_point())):
        for bad in (float("nan"), float("inf"), -float("inf")):
            parts = {"features": x, **given}
            parts[name] = parts[name].clone()
            parts[name][1, ..., 3] = bad
            spoilt = parts.pop("features")
            refused(
                partial(trial.run, spoilt, 9, parts),
                rf"{name} holds NaN or infinite values: first in row 1",
            )


def check_missing_signals_are_named(trial: Trial) -> None:
    """Without a need and its stand-ins, the error names the need and how to pass it."""
    made = trial.made
    x, given = trial.draw()
    for need in made.needs:
        ways = (need.name, *need.instead)
        left = {k: v for k, v in given.items() if k not in ways}
        if "features" in ways:
            expect(trial.run(x, 9, left).m <= 9, f"the features to stand in for {need.name}")
            continue
        lacking = "|".join(n.name for n in made.needs if not {n.name, *n.instead} & {*left, "features"})
        wanted = rf"needs the signal '({lacking})'; pass ({lacking})="
        refused(partial(trial.run, x, 9, left), wanted, MissingSignal)


def check_stand_ins_serve(trial: Trial) -> None:
    """Each need is met by any one of its stand-ins alone."""
    needs = trial.made.needs
    x, _ = trial.draw()
    for i, need in enumerate(needs):
        for other in need.instead:
            rest = [n for j, n in enumerate(needs) if j != i and n.name != need.name]
            given = draw.signals(draw.Asks([replace(need, name=other), *rest]), B, N)
            expect(trial.run(x, 9, given).m <= 9, f"{other} to stand in for {need.name}")
