"""Results as a table on the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from tokensieve.bench.columns import columns
from tokensieve.bench.results import quality


def table(data: dict[str, Any]) -> Table:
    """One line per cell: quality by kind, tokens, cost, time; best first within each budget."""
    rows = data["rows"]
    shown = columns("terminal", rows)
    what = "texts" if "texts" in data else "questions"
    out = Table(
        title=f"{data['settings']['model']}: {len(data['samples'])} {what}", header_style="bold", pad_edge=False
    )
    for column in shown:
        out.add_column(column.name, justify="left" if column.text else "right", no_wrap=column.name == "method")
    for row in ordered(rows):
        out.add_row(*(column.show(row, rows) for column in shown), end_section=row["method"] == "full")
    out.caption = (
        "accuracy in %; ms per batch (medians), decode per token; FLOPs of encoder and prefill; x floor: (prefill + select) over "
        "the same prompt given only the kept tokens; pays: break-even in visual tokens and answer tokens"
    )
    return out


def ordered(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The full model, then by budget from large to small, best first; those that cannot be ranked behind the others."""
    reduced = [r for r in rows.values() if r["keep"] is not None]
    return [rows["full"], *sorted(reduced, key=lambda r: (-float(r["keep"]), bool(r.get("unranked")), -quality(r)))]
