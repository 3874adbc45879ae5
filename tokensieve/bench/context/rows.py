"""Rows: what the answers under each line come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from tokensieve.bench.context.cells import FULL, NONE, PromptCell
from tokensieve.bench.paired import interval, paired

Records = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""By line and question, what was said and what it cost."""
LOST = 0.25
"""How much lower than of the whole text the share of surviving answers that are given must be, for a line to have a warning."""


def rows_of(records: Records, made: Sequence[PromptCell], kinds: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """A row for every line, over the same questions."""
    names = [n for n in kinds if all(n in records.get(c.key, {}) for c in made)]
    if not names:
        return {}
    full = [records[FULL][n] for n in names]
    out = {}
    for cell in made:
        own = [records[cell.key][n] for n in names]
        row = _row(cell, own, full)
        row["kinds"] = {
            kind: [round(mean(r["contained"] for r, n in zip(own, names, strict=True) if kinds[n] == kind), 4),
                   sum(kinds[n] == kind for n in names)]
            for kind in sorted({kinds[n] for n in names})
        }  # fmt: skip
        if (rival := f"random sentences@{cell.keep}") in records and cell.key != rival:
            theirs = [records[rival][n]["contained"] for n in names]
            row["against random"] = paired([r["contained"] for r in own], theirs).to_json()
        out[cell.key] = row
    return out


def _row(cell: PromptCell, own: Sequence[Mapping[str, Any]], full: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    contained = [r["contained"] for r in own]
    before, after = sum(r["context"] for r in full), sum(r["context"] for r in own)
    saved = [f["answer"] - o["answer"] - o["compress"] for f, o in zip(full, own, strict=True)]
    made = {
        "method": cell.method, "keep": cell.keep, "words": cell.words, "questions": len(own),
        "contained": round(mean(contained), 4), "interval": interval(contained), "exact": round(mean(r["exact"] for r in own), 4),
        "survived": round(mean(r["survived"] for r in own), 4), "tokens": round(mean(r["tokens"] for r in own), 1),
        "share": round(after / before, 4) if before else 1.0, "compress": round(median(r["compress"] for r in own), 4),
        "answer": round(median(r["answer"] for r in own), 4),
        "time": round(sum(r["compress"] + r["answer"] for r in own) / sum(f["answer"] for f in full), 4),
    }  # fmt: skip
    if cell.plan is not None:
        made["pays"] = pays([f["tokens"] for f in full], saved)
        whole = {k: mean(r[k] for r in full) for k in ("contained", "survived")}
        made["warning"] = warning(made, whole)
    return made


def pays(tokens: Sequence[int], saved: Sequence[float]) -> int | None:
    """The prompt length from which on compressing saves time: over all measured prompts at least as long, on average.

    Args:
        tokens: of the whole prompts; saved: seconds, below 0 where it cost more.

    Returns:
        None where it does not pay up to the longest.
    """
    order = sorted(range(len(tokens)), key=lambda i: -tokens[i])
    total, least = 0.0, None
    for rank, i in enumerate(order, 1):
        total += saved[i]
        last = rank == len(order) or tokens[order[rank]] < tokens[i]
        if last and total <= 0:
            break
        if last:
            least = tokens[i]
    return least


def warning(row: Mapping[str, Any], full: Mapping[str, Any]) -> str:
    """Why a line's texts are not to be trusted to be read, though the answer is in them; "" where nothing is known.

    Args:
        full: the row of the whole text, of which a model may not find every answer either.
    """
    if not row["survived"] or _given(row) > _given(full) - LOST:
        return ""
    why = "words left from the midst of sentences" if row["words"] else "the model did not find it"
    return (
        f"the answer was still there in {row['survived']:.0%} and was given in {row['contained']:.0%} (of the whole text in "
        f"{full['contained']:.0%}): {why}"
    )


def _given(row: Mapping[str, Any]) -> float:
    """The share of the answers still there that were given."""
    return row["contained"] / max(row["survived"], 1e-9)


def verdicts(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """For every budget what to take, and every warning, a sentence each."""
    out = []
    for keep in dict.fromkeys(r["keep"] for r in rows.values() if r["keep"] is not None):
        there = {k: r for k, r in rows.items() if r["keep"] == keep}
        best = max(there, key=lambda k: there[k]["contained"])
        row, full, none = there[best], rows[FULL], rows[NONE]
        if row["contained"] <= none["contained"]:
            out.append(f"At {keep}: no line answers more than no text does ({none['contained']:.0%}).")
            continue
        when = (
            f"saves time from prompts of {row['pays']:,} tokens on"
            if row["pays"]
            else "saves no time on prompts of these lengths"
        )
        out.append(
            f"At {keep}: {row['method']} answers {row['contained']:.0%} (the whole text {full['contained']:.0%}, none of it "
            f"{none['contained']:.0%}) from {row['share']:.0%} of its tokens, and {when}."
        )
    return out + [f"{key}: {row['warning']}." for key, row in rows.items() if row.get("warning")]
