"""Docstrings: a retrieval collection of real text that every Python installation carries.

The first line of a docstring is a query, what follows is the passage that answers it. The two never overlap. Sources are parsed,
not imported.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

STDLIB = "stdlib"
SKIPPED = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "turtledemo"}
LEAST_QUERY, LEAST_BODY, MOST_BODY = 4, 15, 128
"""Words of a query and of a passage; longer passages lose their end."""
Node = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Passage:
    """A docstring: where it stands, its first line, and the rest."""

    name: str
    query: str
    body: str

    @property
    def held_out(self) -> bool:
        """Half of the queries are held out: nothing is chosen by them."""
        return sha256(self.query.encode()).digest()[0] % 2 == 1


@dataclass(frozen=True)
class Collection:
    """Passages in a fixed order, and what they were read from."""

    passages: tuple[Passage, ...]
    sources: tuple[str, ...]

    @property
    def bodies(self) -> list[str]:
        return [p.body for p in self.passages]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all texts: results are of one collection."""
        return sha256("\0".join(f"{p.query}\0{p.body}" for p in self.passages).encode()).hexdigest()

    def queries(self, held_out: bool) -> tuple[list[str], list[int]]:
        """Queries of one half, and the place of the passage that answers each."""
        found = [(p.query, i) for i, p in enumerate(self.passages) if p.held_out == held_out]
        return [q for q, _ in found], [i for _, i in found]


def collect(packages: Sequence[str] = (STDLIB, "numpy")) -> Collection:
    """Passages from the standard library and from installed packages; of those with equal texts, the first.

    Raises:
        ValueError: a package is not installed, or is no package of Python sources.
    """
    queries: set[str] = set()
    bodies: set[str] = set()
    out, sources = [], []
    for package in packages:
        root, source = _root(package)
        sources.append(source)
        for name, text in _texts(root, "" if package == STDLIB else package):
            made = passage(name, text)
            if made is None or made.query.casefold() in queries or _plain(made.body) in bodies:
                continue
            queries.add(made.query.casefold())
            bodies.add(_plain(made.body))
            out.append(made)
    return Collection(tuple(out), tuple(sources))


def passage(name: str, text: str) -> Passage | None:
    """The passage of a docstring; None where it is too short, or says its first line again."""
    first, _, rest = inspect.cleandoc(text).partition("\n")
    query, body = " ".join(first.split()), rest.strip()
    cut = re.match(rf"(?:\S+\s+){{{MOST_BODY - 1}}}\S+", body)
    body = cut.group() if cut else body
    if len(query.split()) < LEAST_QUERY or len(body.split()) < LEAST_BODY or _plain(query) in _plain(body):
        return None
    return Passage(name, query, body)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _root(package: str) -> tuple[Path, str]:
    if package == STDLIB:
        return Path(sysconfig.get_paths()["stdlib"]), f"Python {sys.version.split()[0]} standard library"
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ValueError(
            f"{package!r} is no installed package of Python sources; {STDLIB!r} names the standard library"
        )
    return Path(next(iter(found.submodule_search_locations))), f"{package} {version(package)}"


def _texts(root: Path, prefix: str) -> Iterator[tuple[str, str]]:
    """Names and docstrings, in the order of files and lines."""
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if SKIPPED & set(parts):
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # files of other Python versions, kept as data
            continue
        named = ".".join(p for p in (prefix, *parts) if p and p != "__init__")
        yield from _inside(tree, named)


def _inside(node: Node, name: str) -> Iterator[tuple[str, str]]:
    text = ast.get_docstring(node, clean=False)
    if text:
        yield name, text
    for child in node.body:
        if isinstance(child, Node):
            yield from _inside(child, f"{name}.{child.name}")
