"""Code: stretches between blank lines, and definitions, which stand above what is indented below them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tokensieve.retrieval.sources.layout import Layout, Unit

SUFFIXES = frozenset({
    ".py", ".pyi", ".pyx", ".js", ".mjs", ".cjs", ".ts", ".tsx", ".jsx", ".java", ".kt", ".kts", ".scala", ".groovy",
    ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".cs", ".go", ".rs", ".rb", ".php", ".swift", ".m", ".mm",
    ".lua", ".pl", ".pm", ".r", ".jl", ".ex", ".exs", ".erl", ".hs", ".ml", ".clj", ".sh", ".bash", ".zsh", ".fish",
    ".ps1", ".sql", ".css", ".scss", ".less", ".proto", ".dart", ".zig", ".nim", ".vue", ".tf", ".cmake", ".f90",
    ".v", ".sv", ".vhd",
})  # fmt: skip
DEFINES = re.compile(
    r"[ \t]*(?:(?:export|default|pub(?:\([^)]*\))?|public|private|protected|internal|static|final|abstract|async|unsafe|const|"
    r"extern(?: \"C\")?|virtual|override|inline|sealed|open|data) +)*"
    r"(?:class|def|fn|func|function|fun|impl|struct|enum|trait|interface|module|namespace|object|sub|defmodule|type|macro_rules!)\b"
)
LEADS = re.compile(r"[ \t]*(?:@|#\[|//|/\*|\*|#(?!!)|--|;;)")
"""Decorators, attributes and comments: what stands right above a definition is of it."""
LINE = re.compile(r"[^\n]*\n|[^\n]+$")


def code(source: str) -> Layout:
    """Source code of any language: what is defined, by its first line, and how deep it is indented."""
    return Layout(source, list(_units(source)))


def _units(source: str) -> Iterator[Unit]:
    begin, end, level, defines, leads = -1, -1, 0, False, False
    for found in LINE.finditer(source, 1 if source.startswith("\ufeff") else 0):
        a, b = found.span()
        line = found.group().rstrip()
        if not line:
            if begin >= 0:
                yield _unit(begin, end, level, defines)
            begin = -1
            continue
        indent = 1 + len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip())
        opens, lead = DEFINES.match(line) is not None, LEADS.match(line) is not None
        if begin >= 0 and (defines or (opens and not leads) or (lead and not leads and indent <= level)):
            yield _unit(begin, end, level, defines)
            begin = -1
        if begin < 0:
            begin, level, leads = a, indent, lead
        leads = lead and leads
        defines, end = opens, b
        if opens:
            level = indent
    if begin >= 0:
        yield _unit(begin, end, level, defines)


def _unit(a: int, b: int, level: int, defines: bool) -> Unit:
    return Unit(a, b, "heading" if defines else "code", level)
