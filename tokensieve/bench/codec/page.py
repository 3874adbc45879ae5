"""Page: report.html of the bench of tokenizers, self-contained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokensieve.bench.codec import pictures
from tokensieve.bench.codec.run import file_name
from tokensieve.bench.codec.table import about_features, said, table
from tokensieve.bench.codec.verdict import below_pca, budgets, verdict
from tokensieve.bench.pages import embedded, templates
from tokensieve.core.files import write_text


def page(results: dict[str, Any], folder: Path) -> Path:
    """Write the page beside the results."""
    rows = results["rows"]
    heads, cells, meanings = table(rows, results["test"])
    template = templates().get_template("codec.html")
    html = template.render(
        data=results, heads=heads, plot=pictures.plot(results), features=about_features(results), said=said(rows),
        verdicts=[(bits, what, verdict(rows, bits)) for bits, what in sorted(budgets(rows).items())],
        lines=[
            (row["role"], bool(row.get("collapsed") or below_pca(rows, row)), line)
            for row, line in zip(rows.values(), cells, strict=True)
        ],
        meanings=[(head or "(last)", meaning) for head, meaning in zip(heads, meanings, strict=True)],
        shown=_strips(rows, folder),
        histograms=[
            (key, f"{row['distinct']:,} codes used, {row['used']:.1%}", pictures.histogram(row["histogram"]))
            for key, row in rows.items() if row.get("histogram")
        ],
    )  # fmt: skip
    file = folder / "report.html"
    write_text(file, html)
    return file


def _strips(rows: dict[str, Any], folder: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """For each budget the originals, and what each row made of them."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for key, row in rows.items():
        if row.get("rate_bits"):
            what = f"{row['rate_bits'] / 8:.0f} bytes, untrained"
        else:
            what = f"{row['asked_tokens']} tokens" if row.get("asked_tokens") else "at their own rate"
        size = f", {row['bits'] / 8:.0f} bytes" if row.get("bits") else ""
        groups.setdefault(what, []).append((f"{row['name']}{size}, {row['psnr']:.1f} dB", _uri(folder, key)))
    return [(what, [("originals", _uri(folder, "originals")), *strips]) for what, strips in groups.items()]


def _uri(folder: Path, key: str) -> str:
    return embedded((folder / "pictures" / f"{file_name(key)}.png").read_bytes())
