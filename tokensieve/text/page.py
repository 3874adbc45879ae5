"""The page of a report: one self-contained file with the table, the premium by language, and texts coloured by token."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tokensieve.core.files import write_text
from tokensieve.text.columns import COLUMNS
from tokensieve.text.corpus import Document
from tokensieve.text.report import Report

SHOWN = 20_000
"""Characters of each file that are shown."""
FILES = 6
SIDE = 2
"""Files that are shown, and tokenizers beside each other, at most."""
CONTROLS = {c: chr(0x2400 + c) for c in range(32) if c not in (9, 10)} | {0x7F: "\u2421"}


def write(
    report: Report,
    documents: Sequence[Document],
    tokenizers: Sequence[Tokenizer],
    file: Path,
    notes: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
        documents: of the report; tokenizers: of its rows, in their order; notes: further lines under the table.
    """
    from jinja2 import Environment, PackageLoader

    page = Environment(loader=PackageLoader("tokensieve.text"), autoescape=True).get_template("report.html")
    names = [row.name for row in report.rows[:SIDE]]
    text = page.render(
        report=report,
        columns=COLUMNS,
        cells=[(row.name, [c.show(row) for c in COLUMNS]) for row in report.rows],
        bars=bars(report),
        shown=SHOWN,
        names=names,
        texts=[
            (d.name, len(d.text) > SHOWN, [coloured(t, d.text[:SHOWN]) for t in tokenizers[:SIDE]])
            for d in documents[:FILES]
        ],
        hidden=max(len(documents) - FILES, 0),
        others=len(report.rows) - len(names),
        notes=notes,
    )
    write_text(file, text)


def bars(report: Report) -> list[tuple[str, list[tuple[str, float, float]]]]:
    """For each language, dearest first: of each tokenizer its name, premium, and the bar's width in percent."""
    most = max((p for row in report.rows for p in row.premium.values()), default=1.0)
    languages = sorted(report.rows[0].premium, key=lambda name: (-max(row.premium[name] for row in report.rows), name))
    return [(n, [(r.name, r.premium[n], 100 * r.premium[n] / most) for r in report.rows]) for n in languages]


def coloured(tokenizer: Tokenizer, text: str) -> Any:
    """A text as HTML with an element for each token, or for tokens that share a character; and how many tokens it has."""
    from markupsafe import Markup

    encoded = tokenizer.encode(text, add_special_tokens=False)
    out, end = [], 0
    for start, stop in encoded.offsets:
        if stop <= end:
            continue  # a further part of the last character
        if start > end:
            out.append(_escaped(text[end:start]))
        out.append(f"<i>{_escaped(text[max(start, end) : stop])}</i>")
        end = stop
    out.append(_escaped(text[end:]))
    return len(encoded), Markup("".join(out))


def _escaped(text: str) -> str:
    return html.escape(text, quote=False).translate(CONTROLS)
