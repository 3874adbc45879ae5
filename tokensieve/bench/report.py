"""report.html: one self-contained page, made of the registered blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tokensieve.bench.blocks import Report, shown
from tokensieve.bench.pages import embedded, picture, templates
from tokensieve.core.files import write_text


def write(data: dict[str, Any], folder: Path, overlays: Sequence[tuple[str, str, Image.Image]] = ()) -> Path:
    """Write the page; needs ``pareto.svg`` in the folder.

    Args:
        overlays: (method, caption, picture).
    """
    plot = embedded((folder / "pareto.svg").read_bytes(), "svg+xml")
    report = Report(data, plot, tuple((name, caption, picture(made)) for name, caption, made in overlays))
    file = folder / "report.html"
    write_text(
        file, templates().get_template("report.html").render(data=data, asked=report.asked, blocks=shown(report))
    )
    return file
