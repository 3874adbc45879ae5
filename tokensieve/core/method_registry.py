"""Methods by name: they register themselves, and are found, made and described here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tokensieve.core.errors import close
from tokensieve.core.method import Method
from tokensieve.core.options import Option, documented, earlier_names, options_of, renamed
from tokensieve.core.registry import Registry

T = TypeVar("T", bound=type[Method])

METHODS: Registry[type[Method]] = Registry("method", "tokensieve.methods")


@dataclass(frozen=True)
class Card:
    """What is known about a registered method; ``options`` by name, each with type, default, range, unit and meaning."""

    name: str
    family: str
    site: str
    sites: tuple[str, ...]
    needs: tuple[str, ...]
    systems: tuple[int, ...]
    summary: str
    options: dict[str, Option]


def register_method(name: str, systems: Sequence[int] = ()) -> Callable[[T], T]:
    """Class decorator: give a method its name, and the ids of the published systems it answers to.

    What its options mean is put behind its docstring, for ``help()``.

    Raises:
        ValueError: the name is taken by another class.
    """

    def add(cls: T) -> T:
        METHODS.register(name, systems=tuple(systems))(cls)
        cls.name = name
        cls.__doc__ = documented(cls)
        return cls

    return add


def method_class(name: str) -> type[Method]:
    """The class registered under a name.

    Raises:
        ValueError: no such name; the message offers the nearest ones.
    """
    return METHODS.get(name)


def get_method(name: str, **options: Any) -> Method:
    """A method with its options.

    Raises:
        ValueError: an unknown name or option, or a value out of an option's range.
    """
    check_names(name, options)
    cls = method_class(name)
    return cls(**renamed(cls, options))


def check_names(name: str, given: Iterable[str], beside: Sequence[str] = ()) -> None:
    """Refuse keywords that are no options of a method.

    Args:
        given: the keywords.
        beside: other keywords that the caller takes.

    Raises:
        ValueError: an unknown one; the message offers those nearest to it.
    """
    cls = method_class(name)
    known = [option.name for option in options_of(cls)]
    unknown = set(given) - {*known, *earlier_names(cls), *beside}
    if unknown:
        wrong = min(unknown)
        near = close(wrong, [*known, *beside])
        meant = f", did you mean {near}?" if near else ";"
        more = f", beside {', '.join(beside)}" if beside else ""
        raise ValueError(f"{name} has no option {wrong}{meant} its options are {', '.join(known) or 'none'}{more}")


def list_methods(pattern: str = "*", *, site: str | None = None, family: str | None = None) -> list[str]:
    """Registered names, sorted.

    Args:
        pattern: what they look like: "snap*".
        site: only those that can run there, the first choice of their paper or not.
        family: only those of a room of ``tokensieve.methods``: "handoff", "cache", ...; "user" for those from outside.
    """
    found = (method_card(name) for name in METHODS.names(pattern))
    return [c.name for c in found if (site is None or site in c.sites) and (family is None or family == c.family)]


def method_card(name: str) -> Card:
    """The card of a method: family, sites, needs, systems, the first line of its docstring, its options."""
    entry = METHODS.entry(name)
    cls = entry.thing
    options = {option.name: option for option in options_of(cls)}
    needs = tuple(n.name for n in cls().needs)
    home = entry.home.split(".")
    family = home[2] if home[:2] == ["tokensieve", "methods"] else "user"
    return Card(entry.name, family, cls.site, cls.sites, needs, entry.facts["systems"], entry.summary, options)
