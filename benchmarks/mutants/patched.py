"""Patched: a function of the running program with a mutant's code in the place of its own, for as long as a check takes."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from benchmarks.mutants import helpers, operators
from benchmarks.mutants.operators import Mutant
from tokensieve.core.method import Method

ROOT = Path(__file__).parents[2]


def module(file: str) -> ModuleType:
    return importlib.import_module(file.removesuffix(".py").replace("/", "."))


def functions(home: ModuleType) -> dict[tuple[str, int], FunctionType]:
    """The functions of a module and of its classes, behind decorators, by qualified name and line."""
    found: dict[tuple[str, int], FunctionType] = {}

    def note(value: Any) -> None:
        value = getattr(value, "fget", None) or getattr(value, "__func__", value)
        while hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        if isinstance(value, FunctionType) and value.__module__ == home.__name__:
            found[value.__qualname__, value.__code__.co_firstlineno] = value

    for value in vars(home).values():
        note(value)
        if isinstance(value, type) and value.__module__ == home.__name__:
            for member in vars(value).values():
                note(member)
    return found


@contextmanager
def patched(mutant: Mutant, source: str) -> Iterator[None]:
    """The mutant is alive."""
    home = module(mutant.file)
    if mutant.operator == operators.INERT:
        with _inert(home, mutant.option):
            yield
        return
    function = functions(home)[mutant.function, mutant.begins]
    before = function.__code__
    code = compile(operators.changed(source, mutant), mutant.file, "exec")
    vars(home)[operators.HELPER] = helpers
    function.__code__ = _find(code, mutant.function, mutant.begins)
    try:
        yield
    finally:
        function.__code__ = before


def recompiled(file: str, source: str) -> int:
    """Every function of a file compiled anew, as mutants are, without a change; how many."""
    home, code = module(file), compile(ast.parse(source), file, "exec")
    found = functions(home)
    for (name, line), function in found.items():
        if "<locals>" not in name and not name.endswith("<lambda>") and (new := _find(code, name, line, None)):
            function.__code__ = new
    return len(found)


@contextmanager
def _inert(home: ModuleType, option: str) -> Iterator[None]:
    owner, name = option.split(".")
    cls: type[Method] = getattr(home, owner)
    default = next(f.default for f in fields(cls) if f.name == name)
    own, before = "__init__" in vars(cls), cls.__init__

    def init(self: Any, *args: Any, **given: Any) -> None:
        before(self, *args, **given)
        object.__setattr__(self, name, default)

    cls.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own:
            cls.__init__ = before  # type: ignore[method-assign]
        else:
            del cls.__init__


@contextmanager
def alive(home: ModuleType, tree: ast.Module, file: str) -> Iterator[None]:
    """All functions of a module have the code of a changed tree of its file."""
    code, found = compile(tree, file, "exec"), functions(home)
    before = {function: function.__code__ for function in found.values()}
    for (name, line), function in found.items():
        function.__code__ = _find(code, name, line, function.__code__)
    try:
        yield
    finally:
        for function, old in before.items():
            function.__code__ = old


def _find(code: CodeType, name: str, line: int, default: Any = ...) -> Any:
    for const in code.co_consts:
        if isinstance(const, CodeType):
            if const.co_qualname == name and const.co_firstlineno == line:
                return const
            if (found := _find(const, name, line, None)) is not None:
                return found
    if default is ...:
        raise LookupError(f"no code of {name} at line {line}")
    return default
