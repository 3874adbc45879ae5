"""Names: methods register themselves; the table of published systems says what each one answers to."""

from __future__ import annotations

import csv
import difflib
import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from tokensieve.core.options import Option, documented, options_of
from tokensieve.method import Method

T = TypeVar("T", bound=type[Method])
_METHODS: dict[str, type[Method]] = {}
_SYSTEMS: dict[str, tuple[int, ...]] = {}


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


@dataclass(frozen=True)
class System:
    """A row of the table of published systems."""

    id: int
    name: str
    title: str
    family: str
    kind: str
    site: str
    delivers: str
    works_when: str
    tier: int


def register(name: str, systems: Sequence[int] = ()) -> Callable[[T], T]:
    """Class decorator: give a method its name, and the ids of the published systems it answers to.

    What its options mean is put behind its docstring, for ``help()``.
    """

    def add(cls: T) -> T:
        if name in _METHODS and _METHODS[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"the name {name!r} is taken by {_METHODS[name].__qualname__}")
        cls.name = name
        cls.__doc__ = documented(cls)
        _METHODS[name] = cls
        _SYSTEMS[name] = tuple(systems)
        return cls

    return add


@cache
def _load() -> None:
    root = importlib.import_module("tokensieve.methods")
    for found in pkgutil.walk_packages(root.__path__, root.__name__ + "."):
        importlib.import_module(found.name)


def get(name: str) -> type[Method]:
    """The class registered under a name.

    Raises:
        ValueError: no such name; the message offers the nearest ones.
    """
    _load()
    if name not in _METHODS:
        near = difflib.get_close_matches(name, _METHODS, n=3) or sorted(_METHODS)
        raise ValueError(
            f"no method is called {name!r}; did you mean {', '.join(near)}? `tokensieve methods` lists all"
        )
    return _METHODS[name]


def make(name: str, **options: Any) -> Method:
    """A method with its options.

    Raises:
        ValueError: an unknown name or option, or a value out of an option's range.
    """
    check_names(name, options)
    return get(name)(**options)


def check_names(name: str, given: Iterable[str], beside: Sequence[str] = ()) -> None:
    """Refuse keywords that are no options of a method.

    Args:
        given: the keywords.
        beside: other keywords that the caller takes.

    Raises:
        ValueError: an unknown one; the message offers those nearest to it.
    """
    known = [option.name for option in options_of(get(name))]
    unknown = [key for key in given if key not in known and key not in beside]
    if unknown:
        wrong = min(unknown)
        near = difflib.get_close_matches(wrong, [*known, *beside], n=3)
        meant = f", did you mean {', '.join(near)}?" if near else ";"
        more = f", beside {', '.join(beside)}" if beside else ""
        raise ValueError(f"{name} has no option {wrong}{meant} its options are {', '.join(known) or 'none'}{more}")


def methods(site: str | None = None, family: str | None = None) -> list[str]:
    """Registered names, sorted; only those that can run at ``site`` or belong to ``family``, where given."""
    _load()
    found = (card(name) for name in sorted(_METHODS))
    return [c.name for c in found if (site is None or site in c.sites) and (family is None or family == c.family)]


def card(name: str) -> Card:
    """The card of a method: family, sites, needs, systems, the first line of its docstring, its options."""
    cls = get(name)
    options = {option.name: option for option in options_of(cls)}
    needs = tuple(n.name for n in cls().needs)
    summary = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ").replace("``", "")
    home = cls.__module__.split(".")
    family = home[2] if home[:2] == ["tokensieve", "methods"] else "user"
    return Card(name, family, cls.site, cls.sites, needs, _SYSTEMS[name], summary, options)


def systems(family: str | None = None, tier: int | None = None) -> list[System]:
    """The rows of the table of published systems, in the order of their ids."""
    text = resources.files("tokensieve").joinpath("data/systems.tsv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    made = [System(**{**row, "id": int(row["id"]), "tier": int(row["tier"])}) for row in rows]  # type: ignore[arg-type]
    return [s for s in made if (family is None or s.family == family) and (tier is None or s.tier == tier)]


def entries(system: int) -> list[str]:
    """What answers to a published system: names of methods, then dotted paths of functions and modules that are none."""
    _load()
    return sorted(name for name, ids in _SYSTEMS.items() if system in ids) + _others().get(str(system), [])


@cache
def _others() -> dict[str, list[str]]:
    return json.loads(resources.files("tokensieve").joinpath("data/entries.json").read_text(encoding="utf-8"))


def record() -> dict[str, Any]:
    """What `make systems` last measured: ``rows`` by system id, each with status, check and numbers."""
    file = resources.files("tokensieve").joinpath("data/record.json")
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"rows": {}}


def as_dict(row: Card | System) -> dict[str, Any]:
    """A card or a system as plain data for JSON."""
    return asdict(row)
