"""Pages: text as small pictures of characters, each in a cell of its own."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

FONT = "DejaVuSansMono.ttf"
MARKS = {"\n": "↵", "\t": " ", "\r": ""}
"""What stands for characters that have no ink of their own: text runs on, so that the ends of lines cost one cell."""
UNKNOWN = "\ufffd"


@dataclass(frozen=True)
class PageStyle:
    """How text becomes pages.

    Attributes:
        lines, columns: of a page, in characters.
        height, width: of a character, in pixels.
        font: a TrueType font of one width; that of matplotlib by default.
    """

    lines: int = 22
    columns: int = 44
    height: int = 10
    width: int = 5
    font: str | None = None
    _glyphs: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("lines", "columns", "height", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1")
        if self.font is not None and not Path(self.font).is_file():
            raise ValueError(f"font={self.font!r} is no file; give the path of a TrueType font")

    @property
    def path(self) -> str:
        return self.font or str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / FONT)

    def draw(self, text: str) -> np.ndarray:
        """A text on pages, the last one filled up with blanks.

        Characters that the font has no glyph for are drawn as U+FFFD, with a warning that counts them.

        Returns:
            ``(pages, lines * height, columns * width)`` float32, ink 1 on ground 0; one page for an empty text.
        """
        signs = "".join(MARKS.get(c, c) for c in text)
        self._learn(signs)
        room = self.lines * self.columns
        pages = max(1, -(-len(signs) // room))
        cells = np.stack([self._glyphs[c] for c in signs.ljust(pages * room)])
        grid = cells.reshape(pages, self.lines, self.columns, self.height, self.width)
        drawn = grid.transpose(0, 1, 3, 2, 4).reshape(pages, self.lines * self.height, self.columns * self.width)
        return drawn.astype(np.float32) / 255

    def _learn(self, text: str) -> None:
        new = sorted({" ", *text} - self._glyphs.keys())
        if not new:
            return
        known = FT2Font(self.path).get_charmap()
        missing = [c for c in new if ord(c) not in known]
        if missing:
            warnings.warn(
                f"{len(missing)} characters, such as {missing[0]!r}, have no glyph in {Path(self.path).name} and look all the "
                "same; give PageStyle a font= that has them",
                stacklevel=4,
            )
        font = self._open(self._size())
        for c in new:
            image = Image.new("L", (self.width, self.height))
            ImageDraw.Draw(image).text((0, 0), UNKNOWN if c in missing else c, fill=255, font=font)
            self._glyphs[c] = np.asarray(image)

    def _open(self, size: int) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(self.path, size, layout_engine=ImageFont.Layout.BASIC)

    def _size(self) -> int:
        """The largest size of the font whose characters fit into a cell."""
        sizes = range(self.height, 1, -1)
        fonts = ((size, self._open(size)) for size in sizes)
        fits = (size for size, f in fonts if f.getlength("m") <= self.width and sum(f.getmetrics()) <= self.height)
        return next(fits, 2)
