"""Running: all checks of a method, one after the other, or as cases of pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from tokensieve.core import method_registry
from tokensieve.core.method import Method
from tokensieve.testing import (
    bad_input,
    budgets,
    draw,
    elsewhere,
    meaning,
    memory,
    order,
    pinned,
    precision,
    rows,
    values,
)
from tokensieve.testing.trial import Trial, reads, reduces

Check = Callable[[Trial], None]

ALWAYS: tuple[Check, ...] = (
    budgets.check_budget_is_exact,
    rows.check_padding_is_as_if_it_were_not_there,
    rows.check_rows_are_independent,
    rows.check_padding_of_the_text,
    order.check_alike_tokens_in_any_batch,
    order.check_alike_tokens_keep_their_order,
    order.check_alike_scores_keep_their_order,
    order.check_tokens_that_are_all_alike,
    budgets.check_keeping_all_is_the_identity,
    budgets.check_few_tokens,
    budgets.check_rows_of_other_lengths,
    rows.check_rows_in_turn,
    precision.check_precisions,
    precision.check_strides,
    precision.check_inputs_are_left_as_they_were,
    values.check_a_seed_repeats,
    values.check_gradients_flow,
    meaning.check_kept_outrank_dropped,
    meaning.check_score_is_a_map,
    elsewhere.check_focus,
    elsewhere.check_group_of_queries,
)
"""Run with the defaults, with small options where the method has them, and with all that it reads where that is given."""

SMALL: tuple[Check, ...] = (
    meaning.check_kept_outrank_dropped_under_options,
    meaning.check_kept_outrank_dropped_by_stand_ins,
    meaning.check_needs_matter,
    meaning.check_options_matter,
)
"""Run with small options, or the defaults of methods that have none: the algorithm must act."""

PADDED: tuple[Check, ...] = (rows.check_padding_is_as_if_it_were_not_there, rows.check_padding_of_the_text)
"""Run also with every stand-in in the place of a need."""

ONCE: tuple[Check, ...] = (
    bad_input.check_missing_signals_are_named,
    bad_input.check_stand_ins_serve,
    bad_input.check_what_is_not_finite_is_refused,
    budgets.check_budgets_out_of_range_are_refused,
    values.check_card,
    values.check_methods_are_values,
    values.check_restore,
    values.check_saved_and_loaded,
    pinned.check_pinned,
    memory.check_memory_is_not_quadratic,
)
"""Run with the defaults."""

HIDING: tuple[Check, ...] = (
    elsewhere.check_focus,
    elsewhere.check_needs_of_focus,
    meaning.check_score_is_a_map,
    pinned.check_pinned,
    values.check_card,
    values.check_methods_are_values,
)
"""All that is run, with the defaults and with small options, for methods that hide tokens and remove none."""

SLOW: tuple[Check, ...] = (memory.check_memory_of_many_tokens,)


def method_checks(method: str | type[Method], slow: bool = False) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a method: the name of each, and what runs it and raises AssertionError.

    Args:
        method: a registered name, or a subclass of :class:`Method`, registered or not.
        slow: the checks of very many tokens, in the place of all others.
    """
    cls = method_registry.method_class(method) if isinstance(method, str) else method
    small = dict(cls.small)
    plans: list[tuple[str, dict[str, Any], tuple[Check, ...]]] = [("", {}, SLOW if slow else (*ALWAYS, *ONCE))]
    if not reduces(cls):
        plans = [] if slow else [("", {}, HIDING), *([("small", small, HIDING)] if small else [])]
    elif not slow:
        if small:
            plans.append(("small", small, (*SMALL, *ALWAYS)))
        else:
            plans.append(("", {}, SMALL))
        plans.extend((name, small, ALWAYS) for name in draw.EXTRAS)
        others = dict.fromkeys(other for need in cls(**small).needs for other in need.instead)
        plans.extend((f"by_{other}", small, PADDED) for other in others)
    for kind, options, checks in plans:
        trial = Trial(cls, options, (kind,) if kind in draw.EXTRAS else (), kind[3:] if kind.startswith("by_") else "")
        for check in checks:
            name = check.__name__.removeprefix("check_") + (f"-{kind}" if kind else "")
            yield name, _bound(trial, check, name)


def check_method(method: str | type[Method], slow: bool = False) -> None:
    """Run every check of a method; arguments as for :func:`method_checks`.

    Raises:
        AssertionError: the first check that fails; it names the check, the method, and what was expected.

    Example:
        >>> from tokensieve.testing import check_method
        >>> check_method("divprune")
    """
    for _, check in method_checks(method, slow):
        check()


def parametrize_with_checks(methods: Iterable[str | type[Method]], slow: bool = False) -> Any:
    """A decorator of pytest: the test runs once for every check of every method, and calls its argument ``check``.

    Example:
        >>> @parametrize_with_checks([MyMethod])
        ... def test_contract(check):
        ...     check()
    """
    import pytest

    cases = []
    for method in methods:
        name = method if isinstance(method, str) else method.name or method.__name__
        cases += [pytest.param(check, id=f"{name}-{what}") for what, check in method_checks(method, slow)]
    return pytest.mark.parametrize("check", cases)


def _bound(trial: Trial, check: Check, name: str) -> Callable[[], None]:
    def run() -> None:
        cls, options = trial.cls, tuple(trial.options.items())
        who = cls.name or cls.__name__
        try:
            if all(reads(cls, options, extra) for extra in trial.extras):
                check(replace(trial))  # nothing of an earlier run stays with it
        except AssertionError as e:
            raise AssertionError(f"{who} fails the check {name}: {e}") from None
        except Exception as e:
            what = f"{who} fails the check {name}: expected a result; got {type(e).__name__}: {e}"
            raise AssertionError(what) from e

    return run
