"""What an index takes on disk, and what each step to less costs: all files over the bytes of the text, and nDCG@10.

`python -m benchmarks.disk` puts the docstrings (`benchmarks.reference.docstrings`), encoded once by `benchmarks.retrieval`, into
an index by each recipe, counts all its files (vectors, sketches, words, texts and places), asks 1,000 held-out queries as the
index answers them, and prints the change of nDCG@10 against the first recipe with its paired 95% interval. What is done stays in
`out/disk.json`; the same command goes on from there.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.retrieval import QUERIES, CheckContext
from tokensieve.core.files import write_json
from tokensieve.retrieval import Index
from tokensieve.retrieval.encoders.reduce import reduce
from tokensieve.retrieval.evaluation.evaluate import measures, spread
from tokensieve.retrieval.index import marks

FILE = Path("out/disk.json")
RECIPES: tuple[tuple[str, float, str, str], ...] = (
    ("agglomerative", 0.5, "int4", "pooled"), ("pool", 0.33, "binary", "coarse"), ("pool", 0.33, "residual2", "coarse"),
    ("pool", 0.5, "binary", "coarse"), ("pool", 0.33, "int4", "pooled"), ("pool", 0.25, "residual2", "coarse"),
)  # fmt: skip
K, TOGETHER = 10, 20


def measured(bed: CheckContext, method: str, keep: float, codec: str, sketch: str) -> dict[str, Any]:
    """The bytes of an index and of what is in it, and the place of each query's passage (0 where it is not among ten)."""
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
        files = sum(f.stat().st_size for f in index.folder.iterdir())
        size = index.size
    text = sum(len(body.encode()) for body in bodies)
    held = {"vectors": size["vector_bytes"], "sketches": size["sketch_bytes"]}
    return {
        "files": files,
        "text": text,
        **held,
        "depth": index.plan and index.plan["depths"].get("10"),
        "ranks": ranks,
    }


def main() -> None:
    """All recipes that are not measured yet, then the table."""
    rows: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    bed = CheckContext(queries=slice(QUERIES))
    for recipe in RECIPES:
        name = " ".join(map(str, recipe))
        if name not in rows:
            rows[name] = measured(bed, *recipe)
            write_json(FILE, rows)
        table(rows)


def table(rows: dict[str, Any]) -> None:
    """As Markdown."""
    first = None
    print(
        "| recipe | all files over the text | of the first | sketches | nDCG@10 | change | 95% |\n"
        "|---|---:|---:|---:|---:|---:|---:|"
    )
    for name, row in rows.items():
        places = np.array(row["ranks"])
        quality = measures(np.where(places > 0, places, np.inf))["nDCG@10"]
        base, whole = first or (quality, row["files"])
        first = first or (quality, row["files"])
        low, high = (100 * v / base.mean() for v in spread(quality, base))
        print(
            f"| {name} | {row['files'] / row['text']:.1f} | {row['files'] / whole:.2f} | {row['sketches'] / row['text']:.1f} | "
            f"{quality.mean():.4f} | {100 * (quality.mean() / base.mean() - 1):+.1f}% | {low:+.1f} to {high:+.1f} |", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
