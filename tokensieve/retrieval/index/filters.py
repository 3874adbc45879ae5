"""Filters: which documents a search may see, by their metadata; the same words in Python, on the command line and over HTTP."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any

import numpy as np

Where = Mapping[str, Any]
"""Conditions that must all hold, by metadata field: a value to equal, a list of values to be one of, or operators,
``{"year": {"ge": 2020, "lt": 2024}, "lang": ["en", "de"], "tags": {"has": "io"}}``. ``a.b`` is field b of field a. A field that
is absent equals None. ``{"$or": [{...}, {...}]}`` and ``{"$and": [...]}`` take conditions, ``{"$not": {...}}`` takes one. Kinds
of JSON are kept apart (true is not 1); strings that are ISO dates are compared as moments."""


def _ordered(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compare(value: Any, limit: Any) -> bool:
        if _number(value) and _number(limit):
            return test(value, limit)
        if not isinstance(value, str) or not isinstance(limit, str):
            return False
        moments = _moment(value), _moment(limit)
        return test(*moments) if None not in moments else test(value, limit)

    return compare


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda value, limit: same(value, limit),
    "ne": lambda value, limit: not same(value, limit),
    "lt": _ordered(operator.lt),
    "le": _ordered(operator.le),
    "gt": _ordered(operator.gt),
    "ge": _ordered(operator.ge),
    "in": lambda value, many: any(same(value, one) for one in many),
    "has": lambda value, one: (
        any(same(member, one) for member in value) if isinstance(value, list)
        else isinstance(value, str) and isinstance(one, str) and one in value
    ),
    "prefix": lambda value, start: isinstance(value, str) and value.startswith(start),
    "exists": lambda value, there: (value is not None) == there,
}  # fmt: skip
JOINS = ("$or", "$and", "$not")
DEEPEST = 16


def same(a: Any, b: Any) -> bool:
    """Whether two values of JSON are equal, and of one kind: true is not 1, 1 is 1.0."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return (type(a) is type(b) and a == b) or (_number(a) and _number(b) and a == b)


def check(where: Where, depth: int = 0) -> None:
    """Refuse what is no condition; it names the field."""
    if depth > DEEPEST:
        raise ValueError(f"where holds conditions in conditions, more than {DEEPEST} deep")
    if not isinstance(where, Mapping):
        raise ValueError(f"where must be a dict of metadata fields to conditions, not {where!r}")
    for field, condition in where.items():
        if not isinstance(field, str):
            raise ValueError(f"where[{field!r}]: names of metadata fields are strings")
        if field.startswith("$"):
            _check_join(field, condition, depth + 1)
            continue
        for name, limit in condition.items() if isinstance(condition, Mapping) else [("eq", condition)]:
            _check_test(field, name, limit)


def _check_join(name: str, condition: Any, depth: int) -> None:
    if name not in JOINS:
        raise ValueError(f"where[{name!r}]: unknown operator {name!r}; there are {', '.join(JOINS)}")
    if name == "$not":
        check(condition, depth)
        return
    if not isinstance(condition, (list, tuple)) or not condition:
        raise ValueError(f"where[{name!r}]: {name} takes a list of conditions, not {condition!r}")
    for one in condition:
        check(one, depth)


def _check_test(field: str, name: str, limit: Any) -> None:
    if name not in OPERATORS:
        raise ValueError(f"where[{field!r}]: unknown operator {name!r}; there are {', '.join(OPERATORS)}")
    if name == "in" and not isinstance(limit, (list, tuple, set)):
        raise ValueError(f"where[{field!r}]: in takes a list of values, not {limit!r}; eq compares with one")
    if name == "prefix" and not isinstance(limit, str):
        raise ValueError(f"where[{field!r}]: prefix takes a string, not {limit!r}")
    if name == "exists" and not isinstance(limit, bool):
        raise ValueError(f"where[{field!r}]: exists takes true or false, not {limit!r}")
    for value in limit if isinstance(limit, (list, tuple, set)) else [limit]:
        if isinstance(value, (date, datetime)):
            raise ValueError(f"where[{field!r}]: {value!r} is no value of JSON; pass {value.isoformat()!r}")
        if value is not None and not isinstance(value, (str, bool, int, float, list, tuple, Mapping)):
            raise ValueError(f"where[{field!r}]: {value!r} is no value of JSON")


def fields(where: Where) -> Iterator[str]:
    """The metadata fields that conditions speak of."""
    for field, condition in where.items():
        if field == "$not":
            yield from fields(condition)
        elif field in JOINS:
            yield from (name for one in condition for name in fields(one))
        else:
            yield field


def value_of(metadata: Mapping[str, Any], field: str) -> Any:
    """The value of a field, None where it is absent; one of that very name before one of a field's field."""
    if field in metadata or "." not in field:
        return metadata.get(field)
    value: Any = metadata
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def matches(where: Where, metadata: Mapping[str, Any]) -> bool:
    """Whether one document's metadata meets the conditions."""
    column = lambda field: ([value_of(metadata, field)], np.zeros(1, np.int32))  # noqa: E731
    return bool(allowed(where, column, 1)[0])


def allowed(where: Where, column: Callable[[str], tuple[list[Any], np.ndarray]], docs: int) -> np.ndarray:
    """``(D,)`` bool; conditions are evaluated once for each distinct value of a column."""
    out = np.ones(docs, bool)
    for field, condition in where.items():
        if field == "$not":
            out &= ~allowed(condition, column, docs)
        elif field in JOINS:
            each = [allowed(one, column, docs) for one in condition]
            out &= np.any(each, 0) if field == "$or" else np.all(each, 0)
        else:
            values, codes = column(field)
            out &= np.array([_holds(condition, v) for v in values], bool)[codes]
    return out


def _holds(condition: Any, value: Any) -> bool:
    if isinstance(condition, Mapping):
        return all(OPERATORS[name](value, limit) for name, limit in condition.items())
    if isinstance(condition, (list, tuple, set)):
        return OPERATORS["in"](value, condition)
    return same(value, condition)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _moment(text: str) -> datetime | None:
    """A date, or a date and a time, as ISO 8601 writes them; without a zone it is of UTC."""
    if len(text) < 10 or text[4:5] != "-":
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
