"""Shown: a compressed text with what left it greyed out, on a terminal and as a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokensieve.core.files import write_text
from tokensieve.prompt.compressed import Compressed


def stretches(made: Compressed) -> Iterator[tuple[str, bool]]:
    """The source in stretches, and whether each stays."""
    kept = {(a, b) for a, b in made.spans}
    for a, b in sorted([*made.spans, *made.dropped]):
        yield made.source[a:b], (a, b) in kept


def terminal(made: Compressed) -> Any:
    """A text of rich: what left is dim."""
    from rich.text import Text

    out = Text()
    for text, stays in stretches(made):
        out.append(text, style="" if stays else "bright_black")
    return out


def bracketed(made: Compressed) -> str:
    """The text, with what left in brackets."""
    return "".join(text if stays or not text.strip() else f"[-{text}-]" for text, stays in stretches(made))


def page(made: Compressed, question: str, path: str | Path) -> None:
    """Write an HTML page, self-contained (whole or not at all): what left is grey, and the notes stand above."""
    from jinja2 import Environment, PackageLoader

    template = Environment(loader=PackageLoader("tokensieve.prompt"), autoescape=True).get_template("compressed.html")
    share = made.after / made.before if made.before else 1.0
    write_text(path, template.render(made=made, question=question, share=share, stretches=list(stretches(made))))
