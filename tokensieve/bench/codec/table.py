"""Table: the columns of the bench of tokenizers, for terminal and page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokensieve.bench.codec.distortion import FEW
from tokensieve.bench.codec.verdict import below_pca

Row = dict[str, Any]
Cell = Callable[[Row, dict[str, Row]], Any]


def _plain(key: str, form: str) -> Cell:
    return lambda row, rows: None if row.get(key) is None else form.format(row[key])


def _relative(key: str) -> Cell:
    def cell(row: Row, rows: dict[str, Row]) -> str | None:
        known = [r[key] for r in rows.values() if r.get(key)]
        return None if row.get(key) is None else f"{row[key] / min(known):.1f}x"

    return cell


def _bytes(row: Row, rows: dict[str, Row]) -> str | None:
    return None if not row.get("bits") else f"{row['bits'] / 8:.0f}"


def _each(row: Row, rows: dict[str, Row]) -> str | None:
    return None if not (row.get("bits") and row.get("tokens")) else f"{row['bits'] / row['tokens']:.4g}"


def _feature(row: Row, rows: dict[str, Row]) -> str:
    low, high = row["feature_interval"]
    return f"{row['feature']:.3g} ({low:.3g} to {high:.3g})"


def _swapped(row: Row, rows: dict[str, Row]) -> str | None:
    return None if row.get("psnr_swapped") is None else f"{row['psnr_swapped']:.2f}"


def _notes(row: Row, rows: dict[str, Row]) -> str:
    said = []
    if row.get("collapsed"):
        said.append("collapsed")
    if below_pca(rows, row):
        said.append("below PCA")
    if row["role"] == "ceiling":
        said.append("ceiling")
    if row.get("own_rate"):
        said.append("own rate")
    fits = row.get("fits") or [True]
    if not all(fits):
        said.append(f"over {row['rate_bits'] / 8:.0f} bytes in {fits.count(False)} of {len(fits)}")
    if row.get("skipped"):
        names = list(row["skipped"])
        said.append(f"raised on {len(names)}: {', '.join(names[:2])}{' ...' if len(names) > 2 else ''}")
    return ", ".join(said)


COLUMNS: dict[str, tuple[Cell, str]] = {
    "tokenizer": (lambda row, rows: row["name"], "as it was given"),
    "tokens": (_plain("tokens", "{}"), "of a signal"),
    "bits": (_each, "of a token, stored plainly"),
    "bytes": (_bytes, "of a signal, stored plainly; of JPEG and WebP the mean of their files"),
    "static": (_plain("static_bytes", "{:.0f}"), "bytes by an ideal static code, its lengths from the training part"),
    "PSNR": (_plain("psnr", "{:.2f}"), "dB, mean over held-out signals"),
    "SSIM": (_plain("ssim", "{:.3f}"), "mean over held-out images"),
    "feature distance": (_feature, "kernel distance x 1000 of features, and its 95% interval"),
    "used": (_plain("used", "{:.1%}"), "share of all codes that any signal uses, training part included"),
    "entropy": (_plain("entropy", "{:.2f}"), "bits a token, of the codes' frequencies on held-out signals"),
    "Zipf": (_plain("zipf", "{:.2f}"), "slope of log frequency over log rank"),
    "probe": (_plain("probe", "{:.3f}"), "accuracy of a linear probe, where folders are labels"),
    "LM": (_plain("lm_bits", "{:.2f}"), "bits a token under one fixed small autoregressive model"),
    "swapped": (_swapped, "PSNR after 10% of the codes became neighbours"),
    "survive": (_plain("survival", "{:.1%}"), "share of codes that are the same after decoding and encoding again"),
    "encode": (_relative("encode_ms"), "time over the fastest"),
    "decode": (_relative("decode_ms"), "time over the fastest"),
    "": (_notes, "what else must be known"),
}
"""Head -> the cell, and what it means."""


def _heads(test: int) -> list[str]:
    """Of all columns; that of the feature distance says so where there are few held-out signals."""
    return [f"{h} (of {test}: few)" if h == "feature distance" and test < FEW else h for h in COLUMNS]


def table(rows: dict[str, Row], test: int) -> tuple[list[str], list[list[str]], list[str]]:
    """Heads, cells of all rows, and what each column means; what does not apply is "-". Columns that no row has are left out.

    Args:
        test: how many signals are held out.
    """
    cells = [[cell(row, rows) for cell, _ in COLUMNS.values()] for row in rows.values()]
    shown = [i for i in range(len(COLUMNS)) if any(line[i] for line in cells)]
    named, meant = _heads(test), [meaning for _, meaning in COLUMNS.values()]
    lines = [["-" if line[i] is None else str(line[i]) for i in shown] for line in cells]
    return [named[i] for i in shown], lines, [meant[i] for i in shown]


def about_features(results: dict[str, Any]) -> str:
    """What the feature distance is of, and what chance alone gives."""
    return (
        f"Feature distance: unbiased kernel distance on {results['features']}, held-out originals against reconstructions; "
        f"halves of the originals differ by up to {results['noise_floor']:.3g} by chance."
        + (f" Of {results['test']} signals only: below {FEW} it says little." if results["test"] < FEW else "")
    )


def said(rows: dict[str, Row]) -> list[str]:
    """What was warned of while a tokenizer was fitted, each with those it was said of."""
    found: dict[str, list[str]] = {}
    for key, row in rows.items():
        for note in row.get("notes") or ():
            found.setdefault(note, []).append(key)
    return [f"{', '.join(keys)}: {note}" for note, keys in found.items()]
