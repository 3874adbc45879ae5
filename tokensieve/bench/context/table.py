"""Table: the columns of a bench of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokensieve.bench.paired import Difference

Row = Mapping[str, Any]


def _contained(row: Row) -> str:
    low = row["interval"]
    return f"{row['contained']:.0%}" + (f" [{low[0]:.0%}, {low[1]:.0%}]" if low else "")


def _against(row: Row) -> str:
    found = row.get("against random")
    return Difference.from_json(found).words(100, 0) if found else ""


def _pays(row: Row) -> str:
    return "" if "pays" not in row else "never" if row["pays"] is None else f"{row['pays']:,}"


COLUMNS: dict[str, tuple[Callable[[Row], str], str]] = {
    "answered": (_contained, "answers that hold a right one, with the 95% bootstrap interval"),
    "exact": (lambda r: f"{r['exact']:.0%}", "answers that are a right one and nothing else"),
    "survived": (lambda r: f"{r['survived']:.0%}", "texts that still held a right answer, whether it was given or not"),
    "over random": (_against, "points of answers over random sentences at the same budget, the same questions paired"),
    "tokens": (lambda r: f"{r['tokens']:,.0f}", "of the whole prompt, on average"),
    "of text": (lambda r: f"{r['share']:.1%}", "the text's tokens, as a share of all"),
    "compress s": (lambda r: f"{r['compress']:.3f}", "seconds to compress, every unit read anew; median"),
    "answer s": (lambda r: f"{r['answer']:.3f}", "seconds from the prompt to the end of the answer; median"),
    "time": (lambda r: f"{r['time']:.0%}", "compressing and answering, as a share of answering from the whole text"),
    "pays from": (_pays, "tokens of the whole prompt from which on it saves time"),
}


def table(rows: Mapping[str, Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells; a column for the answers to each kind of question, where there are several."""
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row["kinds"]))
    more = kinds if len(kinds) > 1 else []
    heads = ["", *COLUMNS, *(f"{kind} ({next(iter(rows.values()))['kinds'][kind][1]})" for kind in more)]
    cells = [
        [key, *(show(row) for show, _ in COLUMNS.values()), *(f"{row['kinds'][kind][0]:.0%}" for kind in more)]
        for key, row in rows.items()
    ]
    return heads, cells
