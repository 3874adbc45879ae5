"""What mkdocs puts into pages when it builds them."""

from itertools import groupby
from typing import Any

import tokensieve as ts
from tokensieve.registry import Card

MARK = "<!-- methods -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with every page."""
    return markdown.replace(MARK, methods()) if MARK in markdown else markdown


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
    table = [("option", "type", "range", "unit", "default", "meaning"), ("---",) * 6, *rows]
    return text + "\n" + "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in table) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
