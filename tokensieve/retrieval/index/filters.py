"""Filters: which documents a search may see, by their metadata."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "in": lambda value, many: value in many,
    "has": lambda value, one: isinstance(value, (list, str)) and one in value,
}

Where = Mapping[str, Any]
"""Conditions that must all hold, by metadata field: a value to equal, a list of values to be one of, or operators,
``{"year": {"ge": 2020, "lt": 2024}, "lang": ["en", "de"], "tags": {"has": "io"}}``. A field that is absent equals None."""


def check(where: Where) -> None:
    """Refuse operators that do not exist."""
    if not isinstance(where, Mapping):
        raise ValueError(f"where must be a dict of metadata fields to conditions, not {where!r}")
    for field, condition in where.items():
        if not isinstance(field, str):
            raise ValueError(f"where[{field!r}]: names of metadata fields are strings")
        for name, limit in condition.items() if isinstance(condition, Mapping) else ():
            if name not in OPERATORS:
                raise ValueError(f"where[{field!r}]: unknown operator {name!r}; there are {', '.join(OPERATORS)}")
            if name == "in" and not isinstance(limit, (list, tuple, set)):
                raise ValueError(f"where[{field!r}]: in takes a list of values, not {limit!r}; eq compares with one")


def matches(where: Where, metadata: Mapping[str, Any]) -> bool:
    """Whether one document's metadata meets the conditions."""
    return all(_holds(condition, metadata.get(field)) for field, condition in where.items())


def allowed(where: Where, column: Callable[[str], tuple[list[Any], np.ndarray]], docs: int) -> np.ndarray:
    """``(D,)`` bool; conditions are evaluated once for each distinct value of a column."""
    out = np.ones(docs, bool)
    for field, condition in where.items():
        values, codes = column(field)
        out &= np.array([_holds(condition, v) for v in values], bool)[codes]
    return out


def _holds(condition: Any, value: Any) -> bool:
    if isinstance(condition, Mapping):
        return all(_compare(OPERATORS[name], value, limit) for name, limit in condition.items())
    return value in condition if isinstance(condition, (list, tuple, set)) else value == condition


def _compare(test: Callable[[Any, Any], bool], value: Any, limit: Any) -> bool:
    try:
        return bool(test(value, limit))
    except TypeError:
        # A number is neither below nor above a word or nothing.
        return False
