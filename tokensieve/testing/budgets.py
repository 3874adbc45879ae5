"""Budgets: as many tokens stay as were asked for, and budgets that mean nothing are refused."""

from __future__ import annotations

from functools import partial

import torch

from tokensieve.testing.bad_input import refused
from tokensieve.testing.trial import B, N, Trial, expect, slots

KEEPS = (1, 2, 5, 17, N - 1, 0.25, 0.5, 0.999)
BAD = (0, -3, 0.0, 1.5, float("nan"), float("inf"), "9", True, None, (9,))


def check_budget_is_exact(trial: Trial) -> None:
    """Each row keeps exactly the budget; at most it where the method is adaptive."""
    x, given = trial.draw()
    for keep in KEEPS:
        r = trial.run(x, keep, given)
        want, got = keep if isinstance(keep, int) else int(keep * N + 0.5), r.counts.tolist()
        if trial.made.adaptive:
            expect(max(got) <= want, f"at most {want} of {N} tokens for keep={keep}; got {got}")
        else:
            expect(got == [want] * B, f"{want} of {N} tokens in every row for keep={keep}; got {got}")
        slots(r)
        expect(r.apply(x).shape == (B, r.m, x.shape[2]), f"an output of shape {(B, r.m, x.shape[2])}")


def check_keeping_all_is_the_identity(trial: Trial) -> None:
    """A budget that holds every token changes nothing, bit for bit."""
    x, given = trial.draw()
    for keep in (N, N + 100, 1.0):
        r = trial.run(x, keep, given)
        expect(r.is_identity, f"the identity for keep={keep} of {N} tokens")
        expect(torch.equal(r.apply(x), x), f"the tokens as they were for keep={keep}")
        expect(torch.equal(r.restore(r.apply(x)), x), f"the tokens back as they were for keep={keep}")


def check_few_tokens(trial: Trial) -> None:
    """Rows of one, two or three tokens."""
    for n in (1, 2, 3):
        x, given = trial.draw(n=n)
        r = trial.run(x, 1, given, grid=(1, n))
        expect(r.counts.tolist() == [1] * B, f"one of {n} tokens in every row; got {r.counts.tolist()}")


def check_rows_of_other_lengths(trial: Trial) -> None:
    """A row that fills the end of a padded batch keeps as many as alone; one that fits its budget stays whole."""
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, :10] = False
    x, given = trial.draw(2, 20)
    for keep in (19, 5, 1):
        r = trial.run(x, keep, given, mask=mask)
        slots(r)
        want = [keep, min(keep, 10)]
        expect(trial.made.adaptive or r.counts.tolist() == want, f"{want} tokens; got {r.counts.tolist()}")
    short = torch.arange(6) < torch.tensor([[4], [2]])
    x, given = trial.draw(2, 6)
    r = trial.run(x, 5, given, mask=short)
    expect(r.counts.tolist() == [4, 2], f"rows of 4 and 2 tokens whole for keep=5; got {r.counts.tolist()}")


def check_budgets_out_of_range_are_refused(trial: Trial) -> None:
    x, given = trial.draw()
    for keep in BAD:
        refused(
            partial(trial.run, x, keep, given),
            r"keep=.*must be an int of at least 1 .* or a float in \(0, 1\]",
        )
