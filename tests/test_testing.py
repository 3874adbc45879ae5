"""What an author outside the project gets: broken methods are caught, each by name, and a right one passes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import tokensieve as ts
from tokensieve.core.needs import CLSAttention, Keys
from tokensieve.core.options import option
from tokensieve.parts import budget, merge, score, select
from tokensieve.testing import check_method, method_checks, parametrize_with_checks


@dataclass(frozen=True)
class Right(ts.Method):
    """The most attended tokens stay, a share of the budget by attention alone; the rest joins the nearest."""

    share: float = option(0.5, "what goes to tokens whose own length decides", lo=0, hi=1, unit="share")

    @property
    def needs(self):
        return (CLSAttention(-2),)

    def score(self, s):
        return score.attention(s, self.needs[0])

    def reduce(self, s, keep):
        long = budget.fraction_of(keep, self.share)
        chosen = select.top(self.score(s), keep - long, s.valid)
        return ts.Reduction.keep(chosen | select.top(s.features.norm(dim=2), long, s.valid & ~chosen))


@dataclass(frozen=True)
class Sign(Right):
    """The sign of the score is wrong."""

    def score(self, s):
        return -super().score(s)


@dataclass(frozen=True)
class Padding(Right):
    """Padding takes part in the ranking."""

    def reduce(self, s, keep):
        return ts.Reduction.keep(select.top(self.score(s), keep, torch.ones_like(s.valid)))


@dataclass(frozen=True)
class Need(Right):
    """A need that is asked for and never read."""

    @property
    def needs(self):
        return (*super().needs, Keys(-2))


@dataclass(frozen=True)
class Option(Right):
    """An option that changes nothing."""

    def reduce(self, s, keep):
        return ts.Reduction.keep(select.top(self.score(s), keep, s.valid))


@dataclass(frozen=True)
class Ties(Right):
    """Ties are broken by a hash of the place."""

    def reduce(self, s, keep):
        noise = torch.arange(s.n) * 7919 % 101 * 1e-9
        return ts.Reduction.keep(select.top(s.features.norm(dim=2).double() + noise, keep, s.valid))


@dataclass(frozen=True)
class Rows(Right):
    """A row's score depends on the others of its batch."""

    def score(self, s):
        return super().score(s) - s.features.mean((0, 1)) @ s.features.transpose(1, 2)


@dataclass(frozen=True)
class Budget(Right):
    """One token too many."""

    def reduce(self, s, keep):
        return ts.Reduction.keep(select.top(self.score(s), keep + 1, s.valid))


@dataclass(frozen=True)
class Merges(Right):
    """Padding is merged into what stays."""

    def reduce(self, s, keep):
        chosen = select.top(self.score(s), keep, s.valid)
        return ts.Reduction.merge(chosen, merge.nearest(s.features, chosen)[0])


@dataclass(frozen=True)
class Longest(ts.Method):
    """Long tokens stay."""

    def score(self, s):
        return s.features.norm(dim=2)


@dataclass(frozen=True)
class Declared(Longest):
    """Long tokens stay."""

    favours = ("long",)


@dataclass(frozen=True)
class Idle(ts.Method):
    """The last 32 tokens stay: all that the budget holds at the contract's size."""

    positional = "the last tokens stay"

    @property
    def needs(self):
        return (CLSAttention(-2),)

    def score(self, s):
        return score.attention(s, self.needs[0])

    def always_keep(self, s, keep):
        return select.last(keep.clamp(max=32), s.valid)


def test_a_right_method_passes():
    check_method(Right)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (Sign, r"kept_outrank_dropped: expected kept tokens to have more cls_attention"),
        (Padding, r"(padding|budget)"),
        (Need, r"needs_matter: expected keys to change the result"),
        (Option, r"options_matter: expected option share to change something"),
        (Ties, r"alike_tokens_"),
        (Rows, r"(padding|rows_are_independent)"),
        (Budget, r"budget_is_exact: expected 1 of 36 tokens in every row for keep=1; got \[2, 2, 2\]"),
        (Merges, r"padding"),
    ],
)
def test_broken_methods_are_caught(method, says):
    """The error names the method, the check, and what was expected."""
    with pytest.raises(AssertionError, match=rf"{method.__name__} fails the check .*{says}"):
        check_method(method)


def test_what_raises_is_a_failed_check():
    class Raises(Right):
        """It raises."""

        def reduce(self, s, keep):
            raise KeyError("lost")

    with pytest.raises(AssertionError, match=r"Raises fails the check budget_is_exact: .*KeyError: 'lost'"):
        check_method(Raises)


def test_a_score_without_needs_says_what_it_favours():
    with pytest.raises(AssertionError, match=r"expected favours=\(\.\.\.\) to say what a high score means"):
        check_method(Longest)
    check_method(Declared)


def test_an_idle_algorithm_is_caught():
    with pytest.raises(AssertionError, match="expected cls_attention to change the result when it changes"):
        check_method(Idle)


def test_cases_of_pytest_are_named_by_method_and_check():
    mark = parametrize_with_checks([Right, "snapkv"])
    names = [case.id for case in mark.args[1]]
    assert "Right-budget_is_exact" in names
    assert {"snapkv-budget_is_exact", "snapkv-budget_is_exact-small", "snapkv-needs_matter-small"} <= set(names)
    assert "snapkv-needs_matter" not in names
    assert len(names) == len(set(names))
    assert [name for name, _ in method_checks("snapkv", slow=True)] == ["memory_of_many_tokens"]


@pytest.mark.parametrize(
    "name", ["divprune", "mmtok", "todre", "cdpruner", "g-prune", "scope", "greedyprune", "text-attention"]
)
@pytest.mark.parametrize("seed", range(3))
def test_line_ends_are_ranked_by_place_in_any_batch(name, seed):
    """As in an anyres picture: patches that differ, and at the end of each line the same embedding, unlike any patch."""
    made, high, wide, dim, front = ts.get_method(name), 5, 9, 77, 7
    n = high * wide
    draw = torch.Generator().manual_seed(seed)
    end = torch.arange(n) % wide == wide - 1
    x = 0.5 + torch.randn(2, n, dim, generator=draw)
    x[:, end] = -x[:1, -1:].abs()
    given = {"text": torch.randn(2, 4, dim, generator=draw), "cls_attention": torch.rand(2, 3, n, generator=draw)}
    given["cls_attention"][..., end] = 2.0
    mask = torch.ones(2, n + front, dtype=torch.bool)
    mask[0, :front] = mask[1, n:] = False
    padded = x.new_zeros(2, n + front, dim)
    padded[mask] = x.flatten(0, 1)
    attention = x.new_zeros(2, 3, n + front)
    for b in range(2):
        attention[b, :, mask[b]] = given["cls_attention"][b]
    for keep in (3, 11, 24):
        together = ts.reduce(padded, made, keep, mask=mask, text=given["text"], cls_attention=attention)
        for b in range(2):
            alone = ts.reduce(x[b], made, keep, text=given["text"][b], cls_attention=given["cls_attention"][b])
            kept = (together.kept[b] - (front if b == 0 else 0)).tolist()
            assert kept == alone.kept[0].tolist()
            ends = [i for i in kept if end[i]]
            assert ends == end.nonzero()[: len(ends), 0].tolist()
