"""Settings: what a method declares for its checks, and the values of its options that are tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field
from typing import Any

from tokensieve.method import Method


def small(cls: type[Method]) -> Mapping[str, Any]:
    """Options with which the algorithm acts on a few dozen tokens."""
    return getattr(cls, "small", {})


def inert(cls: type[Method]) -> Mapping[str, str]:
    """Options, and needs, that change nothing there, with the reason."""
    return getattr(cls, "inert", {})


def unranked(cls: type[Method]) -> str:
    """Why kept tokens need not outrank dropped ones."""
    return getattr(cls, "unranked", "")


def others(field: Field[Any], value: Any) -> list[Any]:
    """Values of an option other than ``value``, as its type and its declared range allow."""
    span = field.metadata.get("range")
    choices = tuple(getattr(span, "choices", ())) or tuple(field.metadata.get("tries", ()))
    if choices:
        return [c for c in choices if c != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        tried: list[Any] = [value + 2, value + 1, value * 4, value // 2, value - 1, 1, 0]
    elif isinstance(value, float):
        tried = [value / 2, value * 2, (1 + value) / 2, 0.0, 1.0, 0.1, -value, value * 20]
    elif isinstance(value, tuple) and value and isinstance(value[0], (int, float)):
        whole = isinstance(value[0], int)
        tried = [value[:1], tuple(v - 1 if whole else v / 2 for v in value)]
    elif isinstance(value, tuple):
        tried = [(0,), (1,), (0, 1, 2, 3)]
    else:
        tried = []
    return [v for v in dict.fromkeys(tried) if v != value and (span is None or v in span)]
