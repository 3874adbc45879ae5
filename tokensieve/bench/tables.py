"""Results as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tokensieve.bench.columns import COLUMNS, Column, by_kind, columns
from tokensieve.bench.results import quality

PAIRED = "vs: paired by {}, with its 95% interval; random at equal cost"
TIMES = "ms per batch (medians), decode per token; FLOPs of encoder and prefill"
CAPTIONS = {
    "": f"accuracy in %; {TIMES}; x floor: (prefill + select) over the same prompt given only the kept tokens; pays: break-even "
    "in visual tokens and answer tokens",
    "questions": f"scores in %; {PAIRED.format('question')}; {TIMES}",
    "texts": f"{PAIRED.format('text')}; held: bytes behind the prompt; after, before: facts told, asked behind the compressed "
    "context or within it, in %; ms per text (medians), decode per token",
}
"""Under the table, by what was asked."""
SPARED = (
    "select", "prefill", "decode", "encode", "final tok", "KV kB", "agree", "KL", "mean tok", "FLOPs", "pays", "x floor", "note",
    "before", "vs random",
)  # fmt: skip
"""Columns that a narrow terminal is spared, in this order, until all others are shown whole."""


def table(data: dict[str, Any], width: int | None = None) -> Table:
    """One line per cell: quality by kind, tokens, cost, time; best first within each budget.

    Args:
        width: of the terminal; what does not fit is left out, and said below. None for no limit.
    """
    shown = columns("terminal", data["rows"])
    spared: list[str] = []
    endless = Console(width=10_000)
    for name in SPARED:
        if width is None or _made(data, shown).__rich_measure__(endless, endless.options).maximum <= width:
            break
        spared += [c.name for c in shown if c.name == name]
        shown = [c for c in shown if c.name != name]
    out = _made(data, shown)
    if spared:
        out.caption = f"{out.caption}; left out for want of room, see the report: {', '.join(spared)}"
    return out


def _made(data: dict[str, Any], shown: Sequence[Column]) -> Table:
    rows = data["rows"]
    what = data.get("asked", "questions")
    out = Table(
        title=f"{data['settings']['model']}: {len(data.get('items', data['samples']))} {what}",
        header_style="bold",
        pad_edge=False,
    )
    for column in shown:
        narrow = column.name == "method" or "vs " in column.name
        out.add_column(column.name, justify="left" if column.text else "right", no_wrap=narrow)
    for row in ordered(rows):
        out.add_row(*(column.show(row, rows) for column in shown), end_section=row["method"] == "full")
    out.caption = CAPTIONS[data.get("asked", "")]
    return out


def kinds(data: dict[str, Any]) -> Table | None:
    """Accuracy by kind of question; None where there is one kind."""
    rows = data["rows"]
    shown = by_kind(list(rows["full"]["accuracy"]))
    if not shown:
        return None
    out = Table(title="by kind of question, in %", header_style="bold", pad_edge=False)
    for name in ("method", "keep"):
        out.add_column(name, justify="left" if name == "method" else "right")
    for column in shown:
        out.add_column(column.name, justify="right")
    for row in ordered(rows):
        cells = [COLUMNS.get(name).show(row, rows) for name in ("method", "keep")]
        out.add_row(*cells, *(column.show(row, rows) for column in shown), end_section=row["method"] == "full")
    return out


def ordered(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The full model, then by budget from large to small, best first; those that cannot be ranked behind the others."""
    reduced = [r for r in rows.values() if r["keep"] is not None]
    return [rows["full"], *sorted(reduced, key=lambda r: (-float(r["keep"]), bool(r.get("unranked")), -quality(r)))]
