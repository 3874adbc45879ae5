"""Settings: the values of an option that are tried."""

from __future__ import annotations

from dataclasses import Field
from typing import Any

from tokensieve.core import method_registry


def others(field: Field[Any], value: Any) -> list[Any]:
    """Values of an option other than ``value``, as its type and its declared range allow."""
    span = field.metadata.get("range")
    tried: list[Any] = []
    if span is not None and span.choices and not isinstance(value, tuple):
        tried = list(span.choices)
    elif value is None:
        tried = [2, 3]
    elif isinstance(value, str):
        tried = method_registry.list_methods()  # a name of no choices is a method's
    elif isinstance(value, bool):
        tried = [not value]
    elif isinstance(value, int):
        tried = [value + 2, value + 1, value * 4, value // 2, value - 1, 1, 0, 5]
    elif isinstance(value, float):
        tried = [value / 2, value * 2, (1 + value) / 2, 0.0, 1.0, 0.1, -value, value * 20]
    elif isinstance(value, tuple):
        number = [v for v in value if isinstance(v, (int, float))]
        tried = [value[:1], tuple(v - 1 if isinstance(v, int) else v / 2 for v in number), (0,), (0.5,)]
    return [v for v in dict.fromkeys(tried) if v != value and (span is None or v in span)]
