"""Registry: things of one kind by name: methods, vector formats, sketches, stores, encoders, columns, blocks."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from tokensieve.core.errors import near

T = TypeVar("T")
PLUGINS = "tokensieve.plugins"
"""The entry point group of other packages: each entry names a module that registers when it is imported."""

REGISTRIES: dict[str, Registry[Any]] = {}


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered thing.

    Attributes:
        name: what it is called by.
        thing: the class, function or object.
        facts: what else was said when it was registered (``systems=(380,)``).
    """

    name: str
    thing: T
    facts: Mapping[str, Any]

    @property
    def summary(self) -> str:
        """The first paragraph of its docstring, in one line."""
        return (inspect.getdoc(self.thing) or "").split("\n\n")[0].replace("\n", " ").replace("``", "")

    @property
    def home(self) -> str:
        """The module it comes from."""
        return str(getattr(self.thing, "__module__", ""))


class Registry(Generic[T]):
    """Things of one kind by name, in the order in which they were registered.

    Args:
        kind: what they are, for errors: "method", "vector format".
        package: a package whose modules all register when they are imported, which happens at the first question.

    Example:
        >>> FORMATS = Registry("vector format")  # doctest: +SKIP
        >>> @FORMATS.register("float8")
        ... class Float8(VectorFormat): ...
    """

    def __init__(self, kind: str, package: str = ""):
        self.kind, self._package = kind, package
        self._entries: dict[str, Entry[T]] = {}
        self._old: dict[str, str] = {}
        self._loaded = False
        REGISTRIES[kind] = self

    def register(self, name: str, **facts: Any) -> Callable[[T], T]:
        """A decorator that gives a thing its name.

        Raises:
            ValueError: the name is taken by something else; it says by what. The same definition may register again.
        """

        def add(thing: T) -> T:
            taken = self._entries.get(name)
            if taken is not None and _origin(taken.thing) != _origin(thing):
                raise ValueError(
                    f"the {self.kind} {name!r} is taken by {_origin(taken.thing)}; register {_origin(thing)} under another name"
                )
            self._entries[name] = Entry(name, thing, facts)
            return thing

        return add

    def forget(self, name: str) -> None:
        """Take a name out again."""
        del self._entries[name]

    def deprecate(self, old: str, new: str) -> None:
        """Have an old name mean a new one, with a warning."""
        self._old[old] = new

    def entry(self, name: str) -> Entry[T]:
        """What is registered under a name.

        Raises:
            ValueError: nothing is; the message offers the nearest names, or the kind that has it.
        """
        self._load()
        if name in self._old:
            warnings.warn(
                f"the {self.kind} {name!r} is now called {self._old[name]!r}", DeprecationWarning, stacklevel=3
            )
            name = self._old[name]
        if name not in self._entries:
            other = next((r for r in REGISTRIES.values() if r is not self and name in r._entries), None)
            hint = f"{name!r} is a {other.kind}" if other else f"did you mean {near(name, self._entries)}?"
            raise ValueError(f"no {self.kind} is called {name!r}; {hint}")
        return self._entries[name]

    def get(self, name: str) -> T:
        """The thing itself; see :meth:`entry`."""
        return self.entry(name).thing

    def names(self, pattern: str = "*", **facts: Any) -> list[str]:
        """Registered names that fit a pattern ("snap*"), and whose facts are as given; sorted.

        A fact that holds several values fits where one of them is given: ``names(systems=380)``.
        """
        self._load()
        return sorted(e.name for e in self._entries.values() if fnmatchcase(e.name, pattern) and _fits(e.facts, facts))

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._entries)

    def __len__(self) -> int:
        self._load()
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        if self._package:
            root = importlib.import_module(self._package)
            for found in pkgutil.walk_packages(root.__path__, root.__name__ + "."):
                importlib.import_module(found.name)
        plugins()


@cache
def plugins() -> dict[str, str]:
    """Import what other packages registered under the entry point group :data:`PLUGINS`.

    One that raises is named in a warning and left out; all others work.

    Returns:
        By the name of each entry point, "" or why it was left out.
    """
    found = {}
    for point in entry_points(group=PLUGINS):
        try:
            point.load()
            found[point.name] = ""
        except Exception as problem:
            found[point.name] = f"{type(problem).__name__}: {problem}"
            warnings.warn(
                f"the plugin {point.name!r} ({point.value}) is left out: {found[point.name]}",
                RuntimeWarning,
                stacklevel=2,
            )
    return found


def _origin(thing: Any) -> str:
    name = getattr(thing, "__qualname__", None)
    return f"{thing.__module__}.{name}" if name else repr(thing)


def _fits(facts: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    def one(held: Any, want: Any) -> bool:
        return want in held if isinstance(held, (tuple, list, frozenset, set)) else held == want

    return all(want is None or one(facts.get(name), want) for name, want in asked.items())
