"""`python -m benchmarks.mutants.quantizers`: quantizers broken on purpose, and whether `check_quantizer` notices.

Comparisons and arithmetic are swapped, and calls whose results nobody takes are left out, one at a time. A change is checked with
every quantizer that the file has a class of. An interrupted run goes on.
"""

from __future__ import annotations

import ast
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from benchmarks.mutants.patched import ROOT
from benchmarks.pages import fill, table
from tests.test_quantizers import CASES
from tokensieve.codec import QUANTIZERS, quantizer
from tokensieve.core.files import write_json
from tokensieve.testing import check_quantizer

OUT = ROOT / "out" / "mutants" / "quantizers.json"
HOME = ROOT / "tokensieve" / "codec" / "quantizers"
PASSED = ("losses", "__init__", "neighbours", "counts", "members", "set_bits", "follow")
"""Functions that no contract can know, and tests of their own hold: weights of losses, options, what one class alone has."""
SWAPS: dict[type, type] = {ast.Gt: ast.LtE, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.LtE: ast.Gt}
SIGNS: dict[type, type] = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


def changes(source: str) -> Iterator[tuple[str, str, ast.Module]]:
    """Every change of a file: its kind, the code and its line, and the tree."""
    count = len(list(ast.walk(ast.parse(source))))
    for at in range(count):
        tree = ast.parse(source)
        node = list(ast.walk(tree))[at]
        if _function(tree, node) in (None, *PASSED):
            continue
        where = f"{getattr(node, 'lineno', 0)}: {ast.unparse(node)[:60]}"
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            node.ops[0] = SWAPS[type(node.ops[0])]()
            yield "comparison swapped", where, tree
        elif isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
            node.op = SIGNS[type(node.op)]()
            yield "arithmetic swapped", where, tree
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            node.value = ast.Constant(None)
            yield "call left out", where, tree


def _function(tree: ast.Module, node: ast.AST) -> str | None:
    for function in (f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)):
        if any(inner is node for statement in function.body for inner in ast.walk(statement)):
            return function.name
    return None


def killer(file: Path, tree: ast.Module, names: list[str]) -> str:
    """The quantizer and the check that notice a change; "" where none does."""
    module: Any = import_module(f"tokensieve.codec.quantizers.{file.stem}")
    before = {
        k: (v, dict(vars(v)))
        for k, v in vars(module).items()
        if isinstance(v, type) and v.__module__ == module.__name__
    }
    space = dict(vars(module))
    space["register_quantizer"] = lambda *a, **k: lambda cls: cls
    exec(compile(ast.fix_missing_locations(tree), str(file), "exec"), space)
    try:
        for name, (cls, _) in before.items():
            for member, value in vars(space[name]).items():
                if callable(value) and member in vars(cls) and member not in ("__init__", "__doc__"):
                    setattr(cls, member, _at_home(value, cls, module))
        for name in names:
            for options in CASES[name]:
                try:
                    check_quantizer(quantizer(name, **options))
                except Exception as problem:
                    return f"{name}: {problem}"[:160]
    finally:
        for cls, members in before.values():
            for member, value in members.items():
                if callable(value) and member not in ("__class__", "__init__"):
                    setattr(cls, member, value)
    return ""


def _at_home(value: Any, cls: type, module: Any) -> Any:
    """A function whose ``super()`` and globals are those of the class that stands in the package."""
    import types

    cells = None
    if value.__closure__:
        cells = tuple(
            types.CellType(cls) if n == "__class__" else c
            for n, c in zip(value.__code__.co_freevars, value.__closure__, strict=True)
        )
    return types.FunctionType(value.__code__, vars(module), value.__name__, value.__defaults__, cells)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    held: dict[str, str] = json.loads(OUT.read_text()) if OUT.is_file() else {}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    work = []
    for file in sorted(HOME.glob("[a-z]*.py")):
        home = f"tokensieve.codec.quantizers.{file.stem}"
        names = [n for n in QUANTIZERS.names() if any(c.__module__ == home for c in QUANTIZERS.get(n).__mro__)]
        work += [(file, kind, where, tree, names) for kind, where, tree in changes(file.read_text())]
    for file, kind, where, tree, names in track(work, description="mutants"):
        key = f"{file.stem} {kind} {where}"
        if key not in held:
            held[key] = killer(file, tree, names)
            write_json(OUT, held)
    rows, left = [], []
    for kind in ("comparison swapped", "arithmetic swapped", "call left out"):
        found = Counter(bool(held[f"{f.stem} {k} {w}"]) for f, k, w, _, _ in work if k == kind)
        rows.append([kind, str(found.total()), str(found[True]), f"{found[True] / max(1, found.total()):.0%}"])
        left += [
            f"`{f.stem}` {w.replace('|', '/')}" for f, k, w, _, _ in work if k == kind and not held[f"{f.stem} {k} {w}"]
        ]
    text = table(["change", "made", "noticed", "share"], rows)
    fill(ROOT / "docs/measured/quantizers.md", "mutants", f"{text}\n\nNot noticed: {'; '.join(left) or 'none'}.")


if __name__ == "__main__":
    sys.exit(main())
