"""Extras: optional parts of this package, and how they are installed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import Any

from packaging.requirements import Requirement

NAME = "tokensieve"
TOOLS = ("dev", "docs")
"""Extras of those who work on this package itself."""


def install(extra: str) -> str:
    """The command that installs an extra, and where: no index has this package, and what one had by its name would be another."""
    return f"in the checkout of {NAME}: pip install '.[{extra}]'"


class Lazy:
    """A module of an extra, imported when something of it is first asked for.

    Args:
        module: its dotted name.
        extra: the extra that it belongs to.

    Raises:
        ImportError: at that first question, where it cannot be imported; it says how the extra is installed.
    """

    def __init__(self, module: str, extra: str):
        self._module, self._extra = module, extra

    def __getattr__(self, name: str) -> Any:
        try:
            module = import_module(self._module)
        except ImportError as error:
            raise ImportError(f"{self._module} cannot be imported ({error}); {install(self._extra)}") from error
        return getattr(module, name)


@dataclass(frozen=True)
class Extra:
    """An extra as it is here.

    Attributes:
        name: its name.
        missing: what is not installed of it, or in a version that it does not take.
        install: the command that installs it, and where it is given; empty where nothing is missing.
    """

    name: str
    missing: tuple[str, ...]
    install: str


def extras() -> tuple[Extra, ...]:
    """Each extra that users may want, from the metadata of the installed package."""
    needed = [Requirement(line) for line in requires(NAME) or ()]
    out = []
    for name in metadata(NAME).get_all("Provides-Extra") or ():
        if name in TOOLS:
            continue
        own = [r for r in needed if r.marker is not None and r.marker.evaluate({"extra": name})]
        missing = tuple(f"{r.name}{r.specifier}" for r in own if not _there(r))
        out.append(Extra(name, missing, install(name) if missing else ""))
    return tuple(out)


def _there(needed: Requirement) -> bool:
    try:
        return needed.specifier.contains(version(needed.name), prereleases=True)
    except PackageNotFoundError:
        return False
