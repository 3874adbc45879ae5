"""Order: tokens that are alike are ranked by their place, alike in any batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.signals import Signals
from tokensieve.testing import draw
from tokensieve.testing.trial import B, N, Trial, expect, slots

LENGTH, WIDTH, PADDED = 45, 77, 8
"""Sizes that are no multiples of a kernel's: what is left over is summed up in another order."""
KEEPS = (3, 11, 24, 40)


def check_alike_tokens_keep_their_order(trial: Trial) -> None:
    """Of identical tokens the earlier ones stay, unless the method says why place matters (``positional``)."""
    if trial.cls.positional or trial.extras:
        return
    for seed in (0, 1):
        x, given, kind = repeated(trial, seed)
        for keep in KEEPS:
            r = trial.run(x, keep, given)
            gone = torch.ones_like(kind, dtype=torch.bool).scatter_(1, r.kept, False)
            _in_order(kind, gone, ~gone, f"of identical tokens the earlier ones to stay, for keep={keep}")


def check_alike_scores_keep_their_order(trial: Trial) -> None:
    """Where a method keeps by its score, of equal scores the earlier ones stay, but for those that are safe."""
    if trial.cls.reduce is not Method.reduce:
        return
    for seed in (0, 1):
        x, given, _ = repeated(trial, seed)
        s = Signals.of(x, **given)
        score = trial.made.score(s)
        assert score is not None
        for keep in KEEPS:
            r = trial.run(x, keep, given)
            always_keep = trial.made.always_keep(s, r.counts)
            gone = torch.ones_like(always_keep).scatter_(1, r.kept, False)
            _in_order(score, gone, ~gone & ~always_keep, f"of equal scores the earlier ones to stay, for keep={keep}")


def check_alike_tokens_in_any_batch(trial: Trial) -> None:
    """A row that repeats tokens keeps the same ones alone and in a padded batch."""
    for seed in (0, 1):
        x, given, _ = repeated(trial, seed)
        front, end = seed * PADDED, LENGTH + PADDED
        place = torch.arange(front, front + LENGTH)
        mask = torch.zeros(B, end, dtype=torch.bool)
        mask[:, place] = True
        mask[1] = True
        wide, all_given = trial.draw(B, end, WIDTH, seed + 5)
        wide[:, place] = x
        # Padding, too, repeats tokens of the row.
        wide[:, ~mask[0]] = x[:, :PADDED]
        for name, value in given.items():
            if draw.of_text(name):
                all_given[name] = value
            else:
                axis = draw.axis(name)
                all_given[name].movedim(axis, 0)[place] = value.movedim(axis, 0)
        for keep in KEEPS:
            together = trial.run(wide, keep, all_given, mask=mask)
            for b in (0, 2):
                row = slice(b, b + 1)
                alone = trial.run(x[row], keep, draw.rows(given, row))
                got, want = (r.kept[0, : int(r.counts[0])].tolist() for r in (together.rows(row), alone))
                got = [i - front for i in got]
                expect(got == want, f"a row of repeated tokens to keep {want} in a padded batch too; it keeps {got}")


def check_tokens_that_are_all_alike(trial: Trial) -> None:
    """A blank image: ties everywhere, and still an exact budget and finite values; the first tokens stay."""
    x, given = trial.draw()
    x = torch.ones_like(x)
    level = {k: torch.ones_like(v) / N if v.is_floating_point() else v for k, v in given.items()}
    r = trial.run(x, 9, level)
    expect(trial.made.adaptive or r.counts.tolist() == [9] * B, f"9 tokens of a blank image; got {r.counts.tolist()}")
    slots(r)
    expect(r.apply(x).isfinite().all(), "finite tokens from a blank image")
    r = trial.run(0 * x, 9, {k: v if k == "spot" else 0 * v for k, v in level.items()})
    expect(r.apply(x).isfinite().all(), "finite tokens from zeros")


def repeated(trial: Trial, seed: int) -> tuple[Tensor, dict[str, Any], Tensor]:
    """Tokens of which most are repeated (blank patches, line ends), their signals, and ``(B, N)`` which is like which."""
    x, given = trial.draw(B, LENGTH, WIDTH, seed)
    place = torch.arange(LENGTH)
    # Every ninth is a line end, a third are blank, some come twice, the rest are of their own.
    kind = torch.where(place % 9 == 8, 8, torch.where(place % 3 == 0, 0, torch.where(place % 7 < 3, place % 15, place)))
    kept: Mapping[str, Any] = {k: v for k, v in given.items() if k not in (*trial.extras, "spot", "word")}
    same = draw.tokens({"features": x, **kept}, kind)
    return same.pop("features"), {**given, **same}, kind.expand(B, -1)


def _in_order(kind: Tensor, gone: Tensor, stays: Tensor, what: str) -> None:
    """No token that is gone has one of its kind behind it that stays."""
    later = torch.ones(kind.shape[1], kind.shape[1], dtype=torch.bool).triu(1)
    wrong = gone[:, :, None] & stays[:, None] & (kind[:, :, None] == kind[:, None]) & later
    if wrong.any():
        row, i, j = wrong.nonzero()[0].tolist()
        expect(False, f"{what}; in row {row} token {i} left and token {j} stayed")
