"""Results as a table on the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from tokensieve.bench.results import beats_random, quality


def table(data: dict[str, Any]) -> Table:
    """One line per cell: quality by kind, tokens, cost, time; best first within each budget."""
    rows = data["rows"]
    kinds = list(rows["full"]["accuracy"])
    out = Table(
        title=f"{data['settings']['model']}: {len(data['samples'])} questions", header_style="bold", pad_edge=False
    )
    out.add_column("method")
    for name in (
        "keep",
        "final tok",
        "mean tok",
        *(kinds or ["agree", "KL"]),
        *(["all"] if kinds else []),
        "FLOPs",
        "KV kB",
        "encode",
        "select",
    ):
        out.add_column(name, justify="right")
    for name in ("prefill", "decode", "x floor"):
        out.add_column(name, justify="right")
    for name in ("pays", "note"):
        out.add_column(name)
    for row in ordered(rows):
        ms = row["ms"]
        if kinds:
            quality_cells = [f"{100 * row['accuracy'][k]:.0f}" for k in kinds] + [
                f"[bold]{100 * row['accuracy_mean']:.1f}[/]"
            ]
        else:
            quality_cells = [f"{100 * row.get('agreement', 1):.0f}", f"{row.get('kl', 0):.3f}"]
        out.add_row(
            row["method"],
            "all" if row["keep"] is None else str(row["keep"]),
            f"{row['final_tokens']:.0f}",
            f"{row['mean_tokens']:.0f}",
            *quality_cells,
            f"{100 * row['flops_share']:.0f}%",
            f"{row['kv_bytes'] / 1000:.0f}",
            f"{ms['encoder']:.0f}",
            f"{ms['selection']:.1f}",
            f"{ms['prefill']:.1f}",
            f"{ms['decode']:.1f}",
            f"{row['overhead']:.2f}" if "overhead" in row else "",
            even(row),
            note(rows, row),
            end_section=row["method"] == "full",
        )
    out.caption = (
        "accuracy in %; ms per batch (medians), decode per token; FLOPs of encoder and prefill; x floor: (prefill + select) over "
        "the same prompt given only the kept tokens; pays: break-even in visual tokens and answer tokens"
    )
    return out


def ordered(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The full model, then by budget from large to small, best first."""
    reduced = [r for r in rows.values() if r["keep"] is not None]
    return [rows["full"], *sorted(reduced, key=lambda r: (-float(r["keep"]), -quality(r)))]


def note(rows: dict[str, dict[str, Any]], row: dict[str, Any]) -> str:
    """What must not be overlooked about a row."""
    notes = []
    if beats_random(rows, row) is False:
        notes.append("not above random")
    more = _beside_random(rows, row)
    if more is not None and more > 1.05:
        notes.append(f"{more:.1f}x random's tokens")
    if row.get("break_even") and not row["break_even"]["pays"]:
        notes.append("does not pay")
    return ", ".join(notes)


def _beside_random(rows: dict[str, dict[str, Any]], row: dict[str, Any]) -> float | None:
    """Mean tokens over those of random at the same label: methods inside the language model keep more."""
    other = rows.get(f"random@{row['keep']}")
    return None if other is None else row["mean_tokens"] / other["mean_tokens"]


def even(row: dict[str, Any]) -> str:
    """The break-even in words."""
    b = row.get("break_even")
    if not b:
        return ""
    if b["min_tokens"] is None:
        return "never"
    far = "" if b["max_answer"] is None else f", to {b['max_answer']} of answer"
    return f"from {b['min_tokens']}{far}"
