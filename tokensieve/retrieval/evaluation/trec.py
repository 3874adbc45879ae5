"""TREC: runs and judgements in the form that the field's tools read, and their measures (ir-measures, arXiv 2111.13466)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from tokensieve.core.files import write_text
from tokensieve.extras import Lazy

ir: Any = Lazy("ir_measures", "retrieval")
Run = Mapping[str, Sequence[tuple[str, float]]]
"""By query, what was found, best first: ids and scores."""
Judged = Mapping[str, Mapping[str, int]]
"""By query, how well documents or passages answer it: 0 not at all, more the better."""
NAMES = ("nDCG@10", "RR", "R@100")
PLAIN = "!$&'()*+,/:;=@#[]~"
"""What stays as it is in an id."""


def quality(judged: Judged, ranked: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """nDCG@10, reciprocal rank and recall@100 of each judged query, in the order of ``judged``.

    Args:
        ranked: ids of passages, best first. A passage whose document is judged, and not itself, counts as that document, at its
            first place.
    """
    measures = [ir.parse_measure(name) for name in NAMES]
    scores: dict[str, dict[str, float]] = {}
    for query, grades in judged.items():
        found = dict.fromkeys(_judged_as(id, grades) for id in ranked.get(query, ()))
        scores[query] = {id: float(len(found) - i) for i, id in enumerate(found)}
    qrels = {query: dict(grades) for query, grades in judged.items()}
    values = {(m.query_id, str(m.measure)): float(m.value) for m in ir.iter_calc(measures, qrels, scores)}
    return {name: [values.get((query, name), 0.0) for query in judged] for name in NAMES}


def _judged_as(id: str, grades: Mapping[str, int]) -> str:
    document = id.rpartition("#")[0]
    return document if id not in grades and document in grades else id


def write_run(file: Path, name: str, run: Run) -> None:
    """A run: ``query Q0 id rank score name``. Blanks and % of ids are written as in addresses (%20)."""
    lines = [
        f"{_said(query)} Q0 {_said(id)} {rank} {score:.6f} {_said(name)}\n"
        for query, found in run.items()
        for rank, (id, score) in enumerate(found, 1)
    ]
    write_text(file, "".join(lines))


def read_run(file: Path) -> dict[str, list[str]]:
    """By query, the ids of a run, by falling scores; of equal scores in the order of the file.

    Raises:
        ValueError: naming the line.
    """
    out: dict[str, list[tuple[float, str]]] = {}
    for number, (query, _, id, _, score, *_) in _rows(file, 6, "query Q0 id rank score name"):
        out.setdefault(query, []).append((_number(file, number, "score", score), id))
    return {query: [id for _, id in sorted(found, key=lambda f: -f[0])] for query, found in out.items()}


def read_judged(file: Path) -> dict[str, dict[str, int]]:
    """By query, grades of ids: lines of ``query 0 id grade``.

    Raises:
        ValueError: naming the line.
    """
    out: dict[str, dict[str, int]] = {}
    for number, (query, _, id, grade) in _rows(file, 4, "query 0 id grade"):
        out.setdefault(query, {})[id] = int(_number(file, number, "grade", grade))
    return out


def _rows(file: Path, width: int, form: str) -> list[tuple[int, list[str]]]:
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != width:
            raise ValueError(f"{file}, line {number}: {len(cells)} columns; a line is {form!r}")
        cells[0], cells[2] = unquote(cells[0]), unquote(cells[2])
        rows.append((number, cells))
    if not rows:
        raise ValueError(f"{file} is empty; a line is {form!r}")
    return rows


def _number(file: Path, line: int, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{file}, line {line}: {name} must be a number, not {text!r}") from None


def _said(text: str) -> str:
    # What is no ASCII stays readable; blanks would end a column.
    return "".join(quote(c, safe=PLAIN) if c.isascii() or c.isspace() else c for c in text)
