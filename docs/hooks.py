"""What mkdocs puts into pages when it builds them."""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

import tokensieve as ts
from tokensieve.bench.columns import COLUMNS
from tokensieve.core.method_registry import Card
from tokensieve.core.registry import Registry
from tokensieve.core.signal_table import SIGNALS
from tokensieve.retrieval.encoders.loading import ENCODERS
from tokensieve.retrieval.scoring.sketch import SKETCHES
from tokensieve.retrieval.storage import FORMATS, vector_format
from tokensieve.retrieval.stores import STORES


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with every page."""
    for name, made in TABLES.items():
        mark = f"<!-- {name} -->"
        markdown = markdown.replace(mark, made()) if mark in markdown else markdown
    return markdown


def methods() -> str:
    """All cards as Markdown, by family."""
    cards = sorted((ts.card(name) for name in ts.methods()), key=lambda card: (card.family, card.name))
    out = []
    for family, each in groupby(cards, lambda card: card.family):
        out += [f"## {family}\n", *map(_card, each)]
    return "\n".join(out)


def _card(card: Card) -> str:
    needs = ", ".join(f"`{n}`" for n in card.needs) or "nothing but the features"
    text = f"### {card.name}\n\n{card.summary}\n\nRuns at {', '.join(card.sites)}; reads {needs}.\n"
    if not card.options:
        return text
    rows = [(f"`{o.name}`", o.type, o.range, o.unit, f"`{o.default!r}`", o.meaning) for o in card.options.values()]
    return text + "\n" + _table(("option", "type", "range", "unit", "default", "meaning"), rows)


def signals() -> str:
    """The table of signals."""
    rows = [
        (f"`{s.name}`", s.shape, s.meaning, ", ".join(s.instead), ", ".join(s.sites))
        for s in (SIGNALS.get(name) for name in SIGNALS)
    ]
    return _table(("signal", "shape", "what it says", "stand-ins", "given at"), rows)


def formats() -> str:
    """The vector formats, with what a vector of 128 dimensions takes."""
    rows = [
        (f"`{name}`", str(vector_format(name, 128).bytes_per_token), FORMATS.entry(name).summary)
        for name in FORMATS.names()
    ]
    return _table(("format", "bytes of 128 dimensions", "what it is"), rows)


def registered(registry: Registry[Any], kind: str) -> str:
    """Name, extra and summary of what is registered."""
    entries = [registry.entry(name) for name in registry.names()]
    rows = [(f"`{e.name}`", str(e.facts.get("extra", "")), e.summary) for e in entries]
    return _table((kind, "extra", "what it is"), rows)


def columns() -> str:
    """The columns of the bench, in their order."""
    held = [COLUMNS.get(name) for name in COLUMNS]
    return _table(("column", "title", "stands in"), [(f"`{c.name}`", c.title, ", ".join(c.places)) for c in held])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in table) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


TABLES = {
    "methods": methods,
    "signals": signals,
    "formats": formats,
    "sketches": partial(registered, SKETCHES, "sketch"),
    "stores": partial(registered, STORES, "store"),
    "encoders": partial(registered, ENCODERS, "encoder"),
    "columns": columns,
}
"""By the comment that stands in a page for it, ``<!-- signals -->``: what makes the table."""
