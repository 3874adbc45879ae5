"""Manifest: which shards a collection has, and which of them are built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokensieve.retrieval.errors import Incompatible
from tokensieve.retrieval.index.manifest import creating
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.index.segment import keys_of
from tokensieve.retrieval.storage.files import read_json, write_json

SHARDS = "shards.json"
FORMAT, VERSION = "tokensieve-shards", 1


class Shards:
    """A collection in several libraries, each in a folder of its own.

    A text belongs to the shard that the hash of its name says, in every build. The manifest is replaced at once when a
    shard is complete; only shards that it names are searched.

    Attributes:
        count: how many shards there are.
        built: the numbers of those that are complete, and their sizes (see ``Index.size``).
    """

    def __init__(self, folder: Path, recipe: Recipe, count: int, built: Mapping[int, dict[str, int]]) -> None:
        self.folder, self.recipe, self.count, self.built = folder, recipe, count, dict(built)

    @classmethod
    def create(cls, folder: str | Path, recipe: Recipe, count: int) -> Shards:
        """A new collection, of which nothing is built."""
        folder = Path(folder)
        if count < 1:
            raise ValueError(f"shards must be at least 1, not {count}")
        if (folder / SHARDS).exists():
            raise FileExistsError(f"there is an index in {folder} already; open it, or choose another folder")
        made = cls(folder, recipe, count, {})
        with creating(folder, [SHARDS]):
            made._write()
        return made

    @classmethod
    def open(cls, folder: str | Path) -> Shards:
        """One that exists."""
        folder = Path(folder)
        if not (folder / SHARDS).exists():
            raise FileNotFoundError(f"there are no shards in {folder}; `tokensieve index DOCS --shards N` makes them")
        data = read_json(folder / SHARDS)
        if data.get("format") != FORMAT or data.get("version") != VERSION:
            raise Incompatible(
                f"{folder} holds {data.get('format')!r} of version {data.get('version')}; this release reads version "
                f"{VERSION}: build it anew, or use the release that wrote it"
            )
        built = {int(number): size for number, size in data["built"].items()}
        return cls(folder, Recipe.read(data["recipe"], folder), data["count"], built)

    def at(self, number: int) -> Path:
        """The folder of a shard."""
        return self.folder / f"{number:04d}"

    def of(self, names: Sequence[str]) -> list[int]:
        """The shard of each text."""
        return (keys_of(names).view("<u8") % self.count).tolist() if names else []

    def complete(self, number: int, size: Mapping[str, int]) -> None:
        """Commit that a shard is built."""
        self.built[number] = dict(size)
        self._write()

    @property
    def size(self) -> dict[str, int]:
        """Of all that is built (see ``Index.size``)."""
        out: dict[str, Any] = {}
        for size in self.built.values():
            out = {k: out.get(k, 0) + v for k, v in size.items()}
        return out

    def _write(self) -> None:
        built = {str(number): size for number, size in self.built.items()}
        head = {"format": FORMAT, "version": VERSION}
        write_json(self.folder / SHARDS, {**head, "recipe": asdict(self.recipe), "count": self.count, "built": built})
