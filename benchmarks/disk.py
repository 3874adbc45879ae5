"""What an index takes on disk, and what each step to less costs: all files over the bytes of the text, and nDCG@10.

`python -m benchmarks.disk` puts the docstrings (`benchmarks.reference.docstrings`), encoded once by `benchmarks.retrieval`, into
an index by each recipe, counts all its files, asks 1,000 held-out queries as the index answers them, and prints the change of
nDCG@10 against the first recipe with its paired 95% interval; beside it stands what `tokensieve index` makes of the how-to pages
of this project. It writes docs/measured/disk.md. With `tuning` it asks 500 queries of the other half instead, by which a recipe
may be chosen. What is done stays in `out/disk.json` (`out/disk-tuning.json`); the same command goes on from there.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.pages import fill, table
from benchmarks.retrieval import QUERIES, CheckContext
from tokensieve.core.files import write_json
from tokensieve.retrieval import Index
from tokensieve.retrieval.encoders.encoded import Encoded, Encoder
from tokensieve.retrieval.encoders.reduce import reduce
from tokensieve.retrieval.evaluation.evaluate import measures, spread
from tokensieve.retrieval.index import marks
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.index.sync import mirror
from tokensieve.retrieval.storage.files import map_tensors

PAGES = Path(__file__).parent.parent / "docs/how-to"
RECIPES = (
    ("agglomerative", 0.5, "int4", "pooled"),
    ("pool", 0.5, "int4", "pooled"),
    ("pool", 0.33, "int4", "pooled"),
    ("pool", 0.33, "int4", "coarse"),
    ("pool", 0.33, "int4", "signs"),
    ("pool", 0.33, "residual2", "signs"),
    ("pool", 0.33, "binary", "signs"),
    ("pool", 0.5, "binary", "signs"),
    ("pool", 0.25, "residual2", "signs"),
    ("pool", 0.25, "binary", "signs"),
)
"""The first is what the others are compared with; each that follows changes one thing of one above it."""
K, TOGETHER, TUNING = 10, 20, 500
PARTS = ("vectors", "sketches", "texts", "words", "others")


def measured(bed: CheckContext, method: str, keep: float, codec: str, sketch: str) -> dict[str, Any]:
    """The bytes of an index by what is in it, and the place of each query's passage (0 where it is not among ten)."""
    bodies, asked = bed.collection.bodies, list(bed.queries.ragged)
    fewer = reduce(bed.documents, method, keep)
    notes = []
    for i, text in enumerate(bodies):
        spans = fewer.spans[fewer.offsets[i] : fewer.offsets[i + 1]].flatten().tolist()
        own = {"document": str(i), "digest": "0" * 16, "of": 1, "span": [0, len(text)], "text": text, "spans": spans}
        notes.append({**own, marks.FILE: True, marks.CONTEXT: "", marks.PLACE: "line 1"})
    with (
        TemporaryDirectory() as folder,
        Index.create(Path(folder) / "i", bed.encoder.identity.dim, codec, None, sketch) as index,
    ):
        index.put(list(fewer.ragged), [f"{i}#0" for i in range(len(bodies))], notes)
        index.tune()
        ranks = []
        for start in track(range(0, len(asked), TOGETHER), f"{method} {keep} {codec}", console=Console(stderr=True)):
            for i, hits in enumerate(index.search(asked[start : start + TOGETHER], K), start):
                ids = [hit.id for hit in hits]
                right = f"{int(bed.relevant[i])}#0"
                ranks.append(ids.index(right) + 1 if right in ids else 0)
        depth, parts = index.plan and index.plan["depths"].get(str(K)), parts_of(index.folder)
    return {"text": sum(len(body.encode()) for body in bodies), "parts": parts, "depth": depth, "ranks": ranks}


def parts_of(folder: Path) -> dict[str, int]:
    """Bytes of all files of an index by what they hold."""
    held: Counter[str] = Counter()
    kinds = (("token.", "vectors"), ("sketch.", "sketches"), ("meta", "texts"), ("word", "words"))
    for file in folder.iterdir():
        rest = file.stat().st_size
        if file.suffix == ".safetensors":
            for name, tensor in map_tensors(file).items():
                kind = next((kind for start, kind in kinds if name.startswith(start)), "others")
                held[kind] += tensor.nbytes
                rest -= tensor.nbytes
        # What a codec has learnt is needed to read the vectors.
        held["vectors" if file.suffix == ".codec" else "others"] += rest
    return {part: held[part] for part in PARTS}


class Remembered:
    """An encoder that encodes a list of texts once."""

    def __init__(self, encoder: Encoder) -> None:
        self.identity, self.reader = encoder.identity, getattr(encoder, "reader", None)
        self._encoder = encoder
        self._known: dict[tuple[str, ...], Encoded] = {}

    def documents(self, items: Sequence[str], needs: Sequence[str] = ()) -> Encoded:
        if tuple(items) not in self._known:
            self._known[tuple(items)] = self._encoder.documents(list(items), needs)
        return self._known[tuple(items)]

    def queries(self, texts: Sequence[str]) -> Encoded:
        return self._encoder.queries(texts)


def pages(encoder: Any, method: str, keep: float, codec: str, sketch: str) -> dict[str, Any]:
    """The bytes of an index of this project's pages, by what is in it."""
    with TemporaryDirectory() as folder:
        library = Library.create(Path(folder) / "i", Recipe(None, method, keep, codec, sketch), encoder)
        mirror(library, PAGES)
        library.close()
        return {"text": sum(f.stat().st_size for f in PAGES.iterdir()), "parts": parts_of(library.folder)}


def main(half: str = "held-out") -> None:
    """All recipes that are not measured yet, then the table."""
    tuning = half == "tuning"
    file = Path("out/disk-tuning.json" if tuning else "out/disk.json")
    rows: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    bed = CheckContext(queries=slice(TUNING if tuning else QUERIES), held_out=not tuning)
    encoder = Remembered(bed.encoder)
    for recipe in RECIPES:
        row = rows.setdefault(" ".join(map(str, recipe)), {})
        for name, run in (
            ("docstrings", lambda r=recipe: measured(bed, *r)),
            ("pages", lambda r=recipe: pages(encoder, *r)),
        ):
            if name not in row and not (tuning and name == "pages"):
                row[name] = run()
                write_json(file, rows)
    print(shown(rows))
    if not tuning:
        passages, queries = len(bed.collection.passages), len(bed.texts)
        said = f"Measured on {date.today()}: {passages:,} passages, {queries:,} held-out queries.\n\n"
        fill(Path("docs/measured/disk.md"), "disk", said + shown(rows))


def shown(rows: dict[str, Any]) -> str:
    """Two tables as Markdown: all of an index over its text with what it finds, and by parts."""
    first = next(iter(rows.values()))
    base = _quality(first["docstrings"])
    whole, parts = [], []
    for name, row in rows.items():
        own, quality = row["docstrings"], _quality(row["docstrings"])
        low, high = (100 * v / base.mean() for v in spread(quality, base))
        change = f"{100 * (quality.mean() / base.mean() - 1):+.1f}% | {low:+.1f} to {high:+.1f}".split(" | ")
        shares = [f"{_all(own) / _all(first['docstrings']):.2f}"]
        told = [f"{_all(row[of]) / row[of]['text']:.1f}" for of in ("docstrings", "pages") if of in row]
        whole.append([name, *told, *shares, str(own["depth"]), f"{quality.mean():.4f}", *change])
        of = row.get("pages", own)
        parts.append([name, *(f"{of['parts'][part] / of['text']:.2f}" for part in PARTS)])
    over = ["docstrings", "pages"][: len(whole[0]) - 6]
    head = ("recipe", *(f"{o}, over the text" for o in over), "of the first", "scored", "nDCG@10", "change", "95%")
    return table(head, whole) + "\n\n" + table(("recipe", *PARTS), parts)


def _all(row: dict[str, Any]) -> int:
    return sum(row["parts"].values())


def _quality(row: dict[str, Any]) -> np.ndarray:
    places = np.array(row["ranks"])
    return measures(np.where(places > 0, places, np.inf))["nDCG@10"]


if __name__ == "__main__":
    main(*sys.argv[1:])
