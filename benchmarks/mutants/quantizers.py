"""`python -m benchmarks.mutants.quantizers`: quantizers broken on purpose, and whether `check_quantizer` notices.

Comparisons, arithmetic and conditions are turned around, and calls whose results nobody takes are left out, one at a time, in the
quantizers and in what they all stand on. A change is checked with every quantizer that the file has a class of (what all stand
on, with a few); what the contract does not notice is shown to the tests of quantizers. An interrupted run goes on.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import track

from benchmarks.mutants.limited import Hangs, limited
from benchmarks.mutants.patched import ROOT, alive, module
from benchmarks.pages import fill, table
from tests.test_quantizers import CASES
from tokensieve.codec import QUANTIZERS, quantizer
from tokensieve.core.files import write_json
from tokensieve.testing import check_quantizer

OUT = ROOT / "out" / "mutants" / "quantizers.json"
CODEC = ROOT / "tokensieve" / "codec"
HOME = CODEC / "quantizers"
BASE = [CODEC / f"{name}.py" for name in ("quantizer", "packing", "search")]
BROAD = ("fsq", "lfq", "vq", "joint", "quantile", "residual", "product", "channels")
"""What stands on all of the base."""
TESTS = ["tests/test_quantizers.py", "tests/test_parity_quantizers.py"]
ASKED, NOTHING = "not contract_holds and not importing and not entropy", "nothing"
SECONDS = 60
"""After which a check counts as failed: a swapped comparison may never end."""
PASSED = ("losses", "__init__", "_short")
"""Functions that are left alone: weights of losses and options, which no contract knows, and words."""
SWAPS: dict[type, type] = {
    ast.Gt: ast.LtE,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
SIGNS: dict[type, type] = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
KINDS = ("comparison swapped", "arithmetic swapped", "condition negated", "call left out")


def changes(source: str) -> Iterator[tuple[str, str, ast.Module]]:
    """Every change of a file: its kind, the code and its line, and the tree."""
    whole = ast.parse(source)
    words = {n for word in ast.walk(whole) if isinstance(word, (ast.Raise, ast.JoinedStr)) for n in ast.walk(word)}
    functions = [f for f in ast.walk(whole) if isinstance(f, ast.FunctionDef)]
    inside = {n: f.name for f in functions for statement in f.body for n in ast.walk(statement)}
    for at, held in enumerate(ast.walk(whole)):
        if inside.get(held) in (None, *PASSED) or held in words:
            continue
        if not isinstance(held, (ast.Compare, ast.BinOp, ast.If, ast.IfExp, ast.Expr)):
            continue
        tree = ast.parse(source)
        kind = _changed(list(ast.walk(tree))[at])
        if kind:
            yield kind, f"{getattr(held, 'lineno', 0)}: {ast.unparse(held)[:60]}", ast.fix_missing_locations(tree)


def _changed(node: Any) -> str:
    """Change a node, and say how; "" where there is nothing to change."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        node.ops[0] = SWAPS[type(node.ops[0])]()
        return KINDS[0]
    if isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
        node.op = SIGNS[type(node.op)]()
        return KINDS[1]
    if isinstance(node, (ast.If, ast.IfExp)) and not isinstance(node.test, ast.Compare):
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return KINDS[2]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        node.value = ast.Constant(None)
        return KINDS[3]
    return ""


def by_contract(file: Path, tree: ast.Module, names: list[str]) -> str:
    """The quantizer and the check that notice a change; "" where none does."""
    home = str(file.relative_to(ROOT))
    with alive(module(home), tree, home):
        for name in names:
            for options in CASES[name]:
                try:
                    with limited(SECONDS):
                        check_quantizer(quantizer(name, **options))
                except (Exception, Hangs) as problem:
                    return f"contract: {name}: {problem!r}"[:160]
    return ""


def by_tests(file: Path, tree: ast.Module) -> str:
    """The test that notices a change, or that none does."""
    home, said = str(file.relative_to(ROOT)), io.StringIO()
    with alive(module(home), tree, home), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pytest.main(["-xq", "-p", "no:cacheprovider", "-k", ASKED, *TESTS])
    failed = next((line for line in said.getvalue().splitlines() if line.startswith("FAILED")), "")
    return f"tests: {failed}"[:160] if code == pytest.ExitCode.TESTS_FAILED else NOTHING


Work = list[tuple[Path, str, str, ast.Module, list[str]]]


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    held: dict[str, str] = json.loads(OUT.read_text()) if OUT.is_file() else {}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    work: Work = []
    for file in [*sorted(HOME.glob("[a-z]*.py")), *BASE]:
        home = f"tokensieve.codec.quantizers.{file.stem}"
        own = [n for n in QUANTIZERS.names() if any(c.__module__ == home for c in QUANTIZERS.get(n).__mro__)]
        names = list(BROAD) if file in BASE else own
        work += [(file, kind, where, tree, names) for kind, where, tree in changes(file.read_text())]
    for file, kind, where, tree, names in track(work, description="contract"):
        key = f"{file.stem} {kind} {where}"
        if key not in held:
            held[key] = by_contract(file, tree, names)
            write_json(OUT, held)
    written(work, held)
    for file, kind, where, tree, _ in track(work, description="tests"):
        key = f"{file.stem} {kind} {where}"
        if not held[key]:
            held[key] = by_tests(file, tree)
            write_json(OUT, held)
    written(work, held)


def written(work: Work, held: dict[str, str]) -> None:
    """The part of the page; before tests are asked it says so."""
    rows, left = [], []
    for kind in (*KINDS, "all"):
        found = {f"`{f.stem}` {w}": held[f"{f.stem} {k} {w}"] for f, k, w, _, _ in work if kind in (k, "all")}
        by = Counter(said.partition(":")[0] for said in found.values())
        missed = by[NOTHING] + by[""]
        counts = (len(found), by["contract"], by["tests"], missed)
        rows.append([kind, *map(str, counts), f"{1 - missed / max(1, len(found)):.0%}"])
        left += [what.replace("|", "/") for what, said in found.items() if said in ("", NOTHING) and kind != "all"]
    text = table(["change", "made", "by the contract", "by tests alone", "not noticed", "noticed"], rows)
    asked = "" if all(held.values()) else "Tests were not asked about all that the contract did not notice. "
    told = textwrap.fill(f"{asked}Not noticed: {'; '.join(left) or 'none'}.", 130)
    fill(ROOT / "docs/measured/quantizers.md", "mutants", f"{text}\n\n{told}")


if __name__ == "__main__":
    sys.exit(main())
