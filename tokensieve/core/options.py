"""Options: hyperparameters as dataclass fields that say what they mean and which values they take; checked when set."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

KINDS: dict[Any, str] = {bool: "True or False", int: "an int", float: "a finite number", str: "a string"}
PLURALS: dict[Any, str] = {bool: "bools", int: "ints", float: "finite numbers", str: "strings"}
"""What a value of a type is, in words, and what several are."""


@dataclass(frozen=True)
class Range:
    """The values that an option may take, each element of a tuple by itself."""

    lo: float | None = None
    hi: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    odd: bool = False

    def __contains__(self, value: Any) -> bool:
        if value is None:  # of an option whose type admits it
            return True
        if isinstance(value, tuple):
            return all(v in self for v in value)
        return not (
            (self.choices and value not in self.choices)
            or (self.lo is not None and value < self.lo)
            or (self.hi is not None and value > self.hi)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
            or (self.odd and value % 2 == 0)
        )

    def __str__(self) -> str:
        both = self.lo is not None and self.hi is not None
        told = {
            "odd": self.odd,
            f"{self.lo} to {self.hi}": both,
            f"at least {self.lo}": self.lo is not None and not both,
            f"above {self.above}": self.above is not None,
            f"at most {self.hi}": self.hi is not None and not both,
            f"below {self.below}": self.below is not None,
            f"one of {', '.join(map(str, self.choices))}": bool(self.choices),
        }
        return ", ".join(words for words, holds in told.items() if holds)


@dataclass(frozen=True)
class Option:
    """What is known of one option.

    Attributes:
        name: the field's.
        type: its annotation: "int", "float", "tuple[int, ...]", ...
        default: None where it must be given.
        range: the values it takes, in words; "" for any of its type.
        unit: what it counts: "tokens", "layers", "share", ...; "" for none.
        meaning: one line.
    """

    name: str
    type: str
    default: Any
    range: str
    unit: str
    meaning: str

    def __str__(self) -> str:
        """In one line: ``window (int, tokens, at least 1; default 32): the last tokens, which vote and stay``."""
        told = ", ".join(t for t in (self.type, self.unit, self.range) if t)
        return f"{self.name} ({told}; default {self.default!r}): {self.meaning}"


def option(
    default: Any,
    meaning: str,
    *,
    lo: float | None = None,
    hi: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Iterable[Any] = (),
    odd: bool = False,
    unit: str = "",
    was: str = "",
) -> Any:
    """A field of a frozen dataclass that is an option: ``window: int = option(32, "the last tokens", lo=1, unit="tokens")``.

    Args:
        default: what it is if not given. A tuple may be set to an empty one only where its default is empty.
        meaning: one line for the card, the command line, the reference and errors.
        lo, hi: the least and the greatest value; above, below: bounds that are no values themselves.
        choices: all values, where they are few.
        odd: whether it must be an odd number.
        unit: what it counts: "tokens", "layers", "share", ...
        was: an earlier name, under which it may still be given.
    """
    span = Range(lo, hi, above, below, tuple(choices), odd)
    return field(default=default, metadata={"meaning": meaning, "unit": unit, "range": span, "was": was})


def earlier_names(cls: Any) -> dict[str, str]:
    """The names of today by the earlier ones of a dataclass's options."""
    return {f.metadata["was"]: f.name for f in fields(cls) if f.metadata.get("was")}


def renamed(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options by their names of today, with a warning for each that has an earlier one.

    Raises:
        ValueError: an option is given by both names.
    """
    now = earlier_names(cls)
    for old in now.keys() & given.keys():
        if now[old] in given:
            raise ValueError(
                f"{old}={given[old]!r} and {now[old]}={given[now[old]]!r} are the same option; give the second"
            )
        warnings.warn(f"the option {old} is now called {now[old]}", DeprecationWarning, stacklevel=3)
    return {now.get(name, name): value for name, value in given.items()}


def options_of(cls: type) -> tuple[Option, ...]:
    """The options of a dataclass, in the order of its fields; a field that is no :func:`option` has no meaning or range."""
    return tuple(known for known, _, _ in _declared(cls))


def check_options(instance: Any) -> None:
    """Check every option of a dataclass's instance; lists become tuples, and NumPy's numbers plain ones.

    Raises:
        ValueError: a wrong type (a bool is no number, an int is a float, NaN and infinity are neither), or a value out of
            range; it names the method, the option, the value, what it may be, and what it means.
    """
    for known, hint, span in _declared(instance.__class__):
        value, wanted = getattr(instance, known.name), known.range
        try:
            plain = _fitted(value, hint)
            fits = plain in span and not (plain == () and known.default)
        except TypeError:
            fits, wanted = False, known.range if span.choices else ", ".join(filter(None, (_kind(hint), known.range)))
        if not fits:
            who = getattr(instance, "name", "") or type(instance).__name__
            what = ": ".join(filter(None, (known.unit, known.meaning)))
            raise ValueError(f"{who}: {known.name}={value!r}; it must be {wanted}" + (f" ({what})" if what else ""))
        if plain is not value:
            object.__setattr__(instance, known.name, plain)


def documented(cls: type) -> str:
    """The docstring of a dataclass with what its options mean behind it, as a section "Attributes" (where it has none)."""
    text, lines = inspect.cleandoc(cls.__doc__ or ""), [f"    {known}" for known in options_of(cls)]
    return "\n".join([text, "", "Attributes:", *lines]) if lines and "\nAttributes:" not in text else text


@cache
def _declared(cls: Any) -> tuple[tuple[Option, Any, Range], ...]:
    hints, out = get_type_hints(cls), []
    for f in fields(cls):
        hint, span = hints[f.name], f.metadata.get("range", Range())
        default = None if f.default is MISSING else f.default
        name = hint.__name__ if isinstance(hint, type) else str(hint).removeprefix("typing.")
        said = str(span)
        if _is_row(hint):
            said = ", ".join(["not empty"] * bool(default) + [f"each {said}"] * bool(said))
        told = Option(f.name, name, default, said, f.metadata.get("unit", ""), f.metadata.get("meaning", ""))
        out.append((told, hint, span))
    return tuple(out)


def _fitted(value: Any, hint: Any) -> Any:
    """``value`` as a plain one of the type ``hint``; a type that is no class and no ``tuple[x, ...]`` takes anything.

    Raises:
        TypeError: it is none.
    """
    inner = _beside_none(hint)
    if inner is not None:
        return None if value is None else _fitted(value, inner)
    if type(value) is hint and (hint is not float or math.isfinite(value)):
        return value
    if hint in (int, float):
        number = Integral if hint is int else Real
        if isinstance(value, bool) or not isinstance(value, number) or not math.isfinite(value):
            raise TypeError
        if type(value) in (int, float):
            return value
        return int(value) if isinstance(value, Integral) else float(value)
    if _is_row(hint):
        if not isinstance(value, (tuple, list)):
            raise TypeError
        return tuple(_fitted(v, get_args(hint)[0]) for v in value)
    if hint is not Any and isinstance(hint, type) and not isinstance(value, hint):
        raise TypeError
    return value


def _is_row(hint: Any) -> bool:
    return get_origin(hint) is tuple and get_args(hint)[1:] == (...,)


def _beside_none(hint: Any) -> Any:
    """The type that a value has where it is not None, of a type that admits None; None for all others."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    return kinds[0] if isinstance(hint, UnionType) and NoneType in get_args(hint) and len(kinds) == 1 else None


def _kind(hint: Any) -> str:
    """What a value of this type is, in words."""
    inner = _beside_none(hint)
    if inner is not None:
        return f"{_kind(inner)} or None"
    if _is_row(hint):
        return f"a tuple of {PLURALS.get(get_args(hint)[0], 'values')}"
    return KINDS.get(hint, f"of type {getattr(hint, '__name__', hint)}")
