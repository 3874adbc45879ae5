"""Operators: the ways in which code is broken, as changes of its syntax tree."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NEGATED, MASK, COMPARED, TIES, INERT = (
    "score negated",
    "mask dropped",
    "comparison swapped",
    "ties reversed",
    "option inert",
)
OPERATORS = (NEGATED, MASK, COMPARED, TIES, INERT)

SWAPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Gt: ast.Lt, ast.Lt: ast.Gt, ast.GtE: ast.LtE, ast.LtE: ast.GtE}
MASKS = ("candidates", "real", "valid", "mask")
RANKING = ("top", "ranked", "ranks", "top_of_each")
ORDERING = ("sort", "argsort", "topk", "max", "min", "argmax", "argmin")
HELPER = "__mutant__"


@dataclass(frozen=True)
class Mutant:
    """One change of one function.

    Attributes:
        operator: one of ``OPERATORS``.
        file: relative to the repository.
        function: its qualified name, and the line it begins at.
        lines: first and last line of what is changed.
        before: the code that is changed.
        equivalent: the rule by which nothing can notice it; "" where there is none.
        option: for ``INERT``, the class and the name of its field; nothing of the tree is changed then.
        at: where the changed node stands in a walk of the tree.
    """

    operator: str
    file: str
    function: str
    begins: int
    lines: tuple[int, int]
    before: str
    at: int
    equivalent: str = ""
    option: str = ""

    @property
    def key(self) -> str:
        return f"{self.file}:{self.lines[0]}:{self.at}:{self.operator}:{self.option}"


def of(file: str, source: str) -> Iterator[Mutant]:
    """Every mutant of a file but inert options."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    order = {node: i for i, node in enumerate(ast.walk(tree))}
    for node, at in order.items():
        function = _outermost(node, parents)
        if function is None or function.name in ("__post_init__", "stages") or node in _signature(function):
            continue
        for operator, rule in _operators(file, node, parents, function):
            lines = (getattr(node, "lineno", function.lineno), getattr(node, "end_lineno", function.lineno))
            if operator == MASK and isinstance(node, ast.arg):
                first = function.body[min(_described(function), len(function.body) - 1)].lineno
                lines = (first, first)
            name = (
                ".".join(reversed([p.name for p in _above(function, parents) if isinstance(p, ast.ClassDef)] or []))
                or ""
            )
            begins = min([function.lineno, *(d.lineno for d in function.decorator_list)])
            qualified = f"{name}.{function.name}" if name else function.name
            yield Mutant(operator, file, qualified, begins, lines, ast.unparse(node)[:160], at, rule)


def changed(source: str, mutant: Mutant) -> ast.Module:
    """The tree of a file with one mutant in it."""
    tree = ast.parse(source)
    node = list(ast.walk(tree))[mutant.at]
    parents = {child: n for n in ast.walk(tree) for child in ast.iter_child_nodes(n)}
    if mutant.operator == COMPARED:
        assert isinstance(node, ast.Compare)
        other = copy.copy(node)
        other.ops = [SWAPPED.get(type(op), type(op))() for op in node.ops]
        _replace(parents[node], node, _call("swapped", other, copy.copy(node)))
    elif mutant.operator == MASK and isinstance(node, ast.arg):
        function = _outermost(node, parents)
        assert function is not None
        first = _described(function)
        line = ast.parse(f"{node.arg} = {HELPER}.everything({node.arg})").body[0]
        for part in ast.walk(line):
            ast.copy_location(part, function.body[-1])
        function.body.insert(first, line)
    elif mutant.operator == TIES:
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Attribute)
        call = _call("late", node.func.value, ast.Constant(node.func.attr), *node.args)
        call.keywords = node.keywords
        _replace(parents[node], node, call)
    else:
        helper = "everything" if mutant.operator == MASK else "negative"
        _replace(parents[node], node, _call(helper, copy.copy(node)))
    return ast.fix_missing_locations(tree)


def _operators(file: str, node: ast.AST, parents: dict[ast.AST, ast.AST], function: Any) -> Iterator[tuple[str, str]]:
    parent = parents[node]
    if (
        isinstance(parent, ast.Return)
        and parent.value is node
        and _outermost(parent, parents) is _nearest(parent, parents)
    ):
        scores = function.name == "score" or "parts/score/" in file
        if scores and not _masks(function):
            yield NEGATED, ""
    ranked = isinstance(parent, ast.Call) and parent.args and parent.args[0] is node and _name(parent.func) in RANKING
    if ranked and not _name(parent.func, whole=True).startswith("torch"):
        yield NEGATED, ""
    if isinstance(node, ast.Attribute) and node.attr == "valid" and isinstance(node.ctx, ast.Load):
        yield MASK, ""
    if isinstance(node, ast.arg) and node.arg in MASKS and parents[parent] is function and "/parts/" in file:
        yield MASK, ""
    if isinstance(node, ast.Compare) and any(type(op) in SWAPPED for op in node.ops):
        sizes = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and n.id.isupper()]
        yield COMPARED, "decides how much is worked on at once, not what comes out" if sizes else ""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ORDERING:
        named = {k.arg for k in node.keywords}
        if node.args or "dim" in named:
            values = isinstance(parent, ast.Attribute) and parent.attr == "values"
            yield TIES, "equal values are the same in any order" if values else ""


def _described(function: Any) -> int:
    return 1 if ast.get_docstring(function) else 0


def _masks(function: Any) -> bool:
    returns = ast.unparse(function.returns) if function.returns else ""
    said = ast.get_docstring(function) or ""
    return "Signals" in returns or " bool" in said.split("\n")[0]


def _call(name: str, *args: ast.expr) -> ast.Call:
    return ast.Call(ast.Attribute(ast.Name(HELPER, ast.Load()), name, ast.Load()), list(args), [])


def _replace(parent: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for part in ast.walk(new):
        if not hasattr(part, "lineno"):
            ast.copy_location(part, old)
    for field, value in ast.iter_fields(parent):
        if value is old:
            setattr(parent, field, new)
        elif isinstance(value, list):
            setattr(parent, field, [new if v is old else v for v in value])


def _name(func: ast.expr, whole: bool = False) -> str:
    return ast.unparse(func) if whole else func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")


def _above(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> Iterator[ast.AST]:
    while node in parents:
        node = parents[node]
        yield node


def _nearest(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> Any:
    return next((n for n in _above(node, parents) if isinstance(n, (ast.FunctionDef, ast.Lambda))), None)


def _outermost(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> Any:
    return next((n for n in reversed([*_above(node, parents)]) if isinstance(n, ast.FunctionDef)), None)


def _signature(function: Any) -> set[ast.AST]:
    """What of a function is no part of its body, but for its parameters."""
    nodes = [*function.decorator_list, *function.args.defaults, *filter(None, function.args.kw_defaults)]
    return {n for node in nodes for n in ast.walk(node)}
