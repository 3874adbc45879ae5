"""Pages: what self-contained pages are made of."""

from __future__ import annotations

import base64
from functools import cache
from io import BytesIO, StringIO
from typing import Any

from PIL import Image


@cache
def templates(package: str = "tokensieve.bench") -> Any:
    """The templates of a package's pages."""
    from jinja2 import Environment, PackageLoader

    return Environment(loader=PackageLoader(package), autoescape=True)


def embedded(content: bytes, kind: str = "png") -> str:
    """A file of an image type, as the address of a picture that stands in the page itself."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def picture(image: Image.Image, kind: str = "png", **options: Any) -> str:
    """A picture, likewise; ``options`` of :meth:`PIL.Image.Image.save`."""
    held = BytesIO()
    image.save(held, kind, **options)
    return embedded(held.getvalue(), kind)


def svg(figure: Any) -> str:
    """A figure of matplotlib as an element of a page, without what a file begins with."""
    held = StringIO()
    figure.savefig(held, format="svg")
    return held.getvalue()[held.getvalue().index("<svg") :]
