"""Recipe: how texts become vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tokensieve.core.method_registry import get_method
from tokensieve.parts.budget import check
from tokensieve.retrieval.encoders.encoded import lasting
from tokensieve.retrieval.errors import Incompatible
from tokensieve.retrieval.scoring.sketch import SKETCHES
from tokensieve.retrieval.sources.passages import MOST
from tokensieve.retrieval.storage import FORMATS

PLAIN = "agglomerative"
"""A method that reads nothing but vectors."""
LATER = frozenset({"overlap", "include", "exclude"})
"""Fields that the first release did not write."""


@dataclass(frozen=True)
class Recipe:
    """How texts become vectors: all texts of a library alike.

    The defaults take less than a third of the bytes of half of the vectors in int4, and lost nothing that could be measured
    (docs/measured/disk.md); ``Recipe(keep=1.0, codec="int8", sketch="pooled")`` keeps all that the encoder says.

    Attributes:
        encoder: what :func:`~tokensieve.retrieval.encoders.loading.load_encoder` is given; None for the embedded MiniLM.
            A folder is remembered by its whole path: an index is opened from anywhere.
        method, keep: the reduction of stored vectors, by default the means of neighbours, half as many; ``keep=1.0`` stores all.
        codec: the vector format, a name from ``tokensieve.retrieval.storage.list_formats()``.
        sketch: what candidates are found by, one of ``tokensieve.retrieval.scoring.sketch.SKETCHES``; None to score all passages.
        overlap: characters of the passage before that a passage begins with, at most; whole sentences or lines of it.
        include, exclude: which files of a folder are taken, by patterns as in ``.gitignore``.
    """

    encoder: str | None = None
    method: str = "pool"
    keep: int | float = 0.5
    codec: str = "binary"
    sketch: str | None = "signs"
    overlap: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.encoder is not None:
            object.__setattr__(self, "encoder", lasting(self.encoder))
        object.__setattr__(self, "include", tuple(self.include))
        object.__setattr__(self, "exclude", tuple(self.exclude))
        check(self.keep, "keep")
        FORMATS.entry(self.codec)
        if self.sketch is not None:
            SKETCHES.entry(self.sketch)
        if not isinstance(self.overlap, int) or not 0 <= self.overlap <= MOST // 2:
            raise ValueError(f"overlap={self.overlap!r}; it is a number of characters, 0 to {MOST // 2}")
        sites = get_method(self.method).sites
        if "vectors" not in sites:
            raise ValueError(
                f"method={self.method!r} runs at {', '.join(sites)}; `tokensieve methods --site vectors` lists what fits"
            )

    @classmethod
    def read(cls, held: Mapping[str, Any], folder: Path) -> Recipe:
        """That of a folder, as it was written.

        Raises:
            Incompatible: another release wrote it, and says more or less.
        """
        names = {f.name for f in fields(cls)}
        # What a release before this one did not know stays as that release had it.
        other = sorted((held.keys() - names) | (names - LATER - held.keys()))
        if other:
            raise Incompatible(
                f"{folder} was written by another release (recipe: {other[0]}); index anew, or use that release"
            )
        return cls(**held)

    @property
    def whole(self) -> bool:
        """Whether every vector is stored."""
        return isinstance(self.keep, float) and self.keep == 1

    @property
    def counts(self) -> bool:
        """Whether the method asks how rare tokens are."""
        return any(need.name == "idf" for need in get_method(self.method).needs)

    @property
    def plain(self) -> str:
        """What reduces stored vectors further: the method, where it reads nothing but them."""
        return PLAIN if get_method(self.method).needs else self.method

    @property
    def reduction(self) -> str:
        """For people: "all vectors", "50% of vectors by agglomerative", "8 vectors per passage by agglomerative"."""
        if self.whole:
            return "all vectors"
        kept = (
            f"{100 * self.keep:g}% of vectors" if isinstance(self.keep, float) else f"{self.keep} vectors per passage"
        )
        return f"{kept} by {self.method}"
