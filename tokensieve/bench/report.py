"""report.html: one self-contained page, made of the registered blocks."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from tokensieve.bench.blocks import Report, shown, templates
from tokensieve.core.files import write_text


def write(data: dict[str, Any], folder: Path, overlays: Sequence[tuple[str, str, Image.Image]] = ()) -> Path:
    """Write the page; needs ``pareto.svg`` in the folder.

    Args:
        overlays: (method, caption, picture).
    """
    plot = _uri((folder / "pareto.svg").read_bytes(), "svg+xml")
    report = Report(data, plot, tuple((name, caption, _picture(picture)) for name, caption, picture in overlays))
    file = folder / "report.html"
    write_text(
        file, templates().get_template("report.html").render(data=data, asked=report.asked, blocks=shown(report))
    )
    return file


def _picture(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return _uri(buffer.getvalue(), "png")


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()
