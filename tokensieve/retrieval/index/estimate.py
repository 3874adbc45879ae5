"""Estimate: what an index of a folder will cost, told by making one of a few of its files."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from tokensieve.retrieval.encoders.encoded import Encoder
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.sources.folder import Folder
from tokensieve.retrieval.sources.passages import MOST
from tokensieve.retrieval.sources.texts import Text

FILES, PASSAGES = 48, 128
"""Files that are looked at, and passages that are encoded, about."""


@dataclass(frozen=True)
class IndexCost:
    """What an index will cost; all but ``files`` and ``file_bytes`` are estimates.

    Attributes:
        file_bytes: of the files as they are, ``text_bytes`` of the text in them.
        bytes: on disk: vectors, sketches, words, texts and places.
        seconds: to make it on this machine, as busy as it is now.
    """

    files: int
    file_bytes: int
    text_bytes: int
    passages: int
    vectors: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        minutes = f"{self.seconds / 60:.0f} minutes" if self.seconds >= 90 else f"{self.seconds:.0f} seconds"
        return (
            f"about {self.passages:,} passages of {self.files:,} files, {self.bytes / 1e6:,.1f} MB on disk "
            f"({self.bytes / max(self.text_bytes, 1):.1f} times their text), {minutes}"
        )


def index_cost(
    recipe: Recipe, root: str | Path, encoder: Encoder | None = None, without: Collection[str] = ()
) -> IndexCost:
    """What an index of a folder will cost.

    Files of each suffix are looked at in equal steps, and some hundred passages of them are indexed for the purpose.

    Args:
        encoder: the recipe's, where it is loaded already.
        without: names of files that need not be indexed any more.

    Raises:
        ValueError: no such folder, or no file in it.
    """
    folder = Folder(Path(root), include=recipe.include, exclude=recipe.exclude)
    files = [f for f in folder.files() if f.relative_to(folder.root).as_posix() not in without]
    size = {file: file.stat().st_size for file in files if file.is_file()}
    texts: list[list[Text]] = []
    characters = 0.0
    for group in _by_suffix(size):
        looked = group[:: -(-len(size) // FILES)]
        read = list(folder.texts(looked))
        texts.append(read)
        share = sum(_bytes(t) for t in read) / max(sum(size[f] for f in looked), 1)
        characters += share * sum(size[f] for f in group)
    taken = list(_some(texts))
    if not taken:
        return IndexCost(len(files), sum(size.values()), 0, 0, 0, 0, 0.0)
    with tempfile.TemporaryDirectory() as at:
        library = Library.create(Path(at) / "index", recipe, encoder)
        library.count(taken)
        start = time.perf_counter()
        library.put(taken)
        spent = time.perf_counter() - start
        library.close()
        own = sum(_bytes(t) for t in taken)
        disk = sum(f.stat().st_size for f in library.folder.iterdir())
        grown, held = characters / max(own, 1), library.size
    return IndexCost(
        len(files), sum(size.values()), round(characters), round(grown * held["documents"]),
        round(grown * held["vectors"]), round(grown * disk), grown * spent,
    )  # fmt: skip


def _by_suffix(files: Collection[Path]) -> list[list[Path]]:
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(file.suffix.lower(), []).append(file)
    return list(groups.values())


def _some(groups: Sequence[Sequence[Text]]) -> Iterator[Text]:
    """The first, second, ... of each group, until they hold passages enough; none that is far too long by itself."""
    passages = 0
    short = [[t for t in group if len(t.plain) <= PASSAGES * MOST] or list(group[:1]) for group in groups]
    for row in zip_longest(*short):
        for text in filter(None, row):
            yield text
            passages += len(text.plain) // MOST + 1
            if passages >= PASSAGES:
                return


def _bytes(text: Text) -> int:
    return len(text.plain.encode(errors="replace"))
