"""Ways to find candidates, compared by what each costs and how many of its first must be reranked for 99% of the ten best.

On clustered vectors and on the docstrings of `benchmarks.retrieval`. What is no part of the library (centroids, as PLAID and WARP
use them, arXiv 2205.09707 and 2501.17788) is written here. The table lands in docs/measured/search-speed.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import search_speed
from benchmarks.pages import fill, table
from benchmarks.retrieval import CheckContext
from tokensieve.bench.results import environment
from tokensieve.retrieval import Ragged, maxsim
from tokensieve.retrieval.scoring.maxsim import segment_max
from tokensieve.retrieval.scoring.pool import pool
from tokensieve.retrieval.scoring.ragged import bounds, spread
from tokensieve.retrieval.scoring.sketch import FdeSketch, Mean, Sketch
from tokensieve.retrieval.storage import vector_format
from tokensieve.retrieval.storage.residual import Residual
from tokensieve.retrieval.storage.vector_format import VectorFormat

BLOCK, SAMPLE, EVERY, REPEATS, BEST, RECALL = 4096, 2**16, 10, 11, 10, 0.99
COUNTS, PROBES = (1024, 4096), 32


class Way(NamedTuple):
    """Its name, the bytes it keeps, and the scores ``(D,)`` of a query ``(Q, d)``."""

    name: str
    bytes: int
    score: Callable[[Tensor], Tensor]


def coded(name: str, vectors: Ragged, how: VectorFormat) -> Way:
    """MaxSim over codes of some vectors of each document."""
    fields = how.encode(vectors.tokens)

    def score(query: Tensor) -> Tensor:
        known = how.prepare(query)
        parts = range(0, len(vectors.tokens), BLOCK)
        like = [how.score({k: v[a : a + BLOCK] for k, v in fields.items()}, known) for a in parts]
        return segment_max(torch.cat(like), vectors.offsets).sum(1)

    return Way(name, sum(v.nbytes for v in fields.values()), score)


def sketched(made: Sketch, docs: Ragged) -> Way:
    plain = coded(f"{type(made).__name__.lower()}, int8", made.documents(docs), vector_format("int8", made.size))
    return plain._replace(score=lambda query: plain.score(made.queries(Ragged.of([query])).tokens))


def centroids(docs: Ragged, count: int) -> Iterator[Way]:
    """The nearest of some centroids stands for a token: all those of a document compared, or lists of the best centroids read."""
    sample = docs.tokens[:: max(len(docs.tokens) // SAMPLE, 1)]
    means = MiniBatchKMeans(count, batch_size=BLOCK, max_iter=20, n_init=1, init="random", random_state=0).fit(
        sample.numpy()
    )
    centres = torch.from_numpy(means.cluster_centers_)
    near = Residual(docs.dim, centres).nearest(docs.tokens)
    owner = torch.arange(len(docs)).repeat_interleave(docs.lengths)
    pairs = torch.unique(owner * count + near)
    doc, centre, unit = pairs // count, (pairs % count).int(), normalize(centres, dim=1)
    offsets = bounds(doc.bincount(minlength=len(docs)))

    def every(query: Tensor) -> Tensor:
        return segment_max((unit @ query.T).index_select(0, centre), offsets).sum(1)

    yield Way(f"{count:,} centroids", 2 * len(pairs), every)
    order = centre.argsort(stable=True)
    listed, starts = doc[order], bounds(centre.bincount(minlength=count))

    def probed(query: Tensor) -> Tensor:
        like, best = (query @ unit.T).topk(PROBES + 1, 1)
        # What none of the lists holds is no more alike than the first list that was not read.
        gain, lists = (like - like[:, -1:])[:, :-1].flatten(), best[:, :-1].flatten()
        sizes = starts[lists + 1] - starts[lists]
        token = torch.arange(len(query)).repeat_interleave(PROBES).repeat_interleave(sizes)
        place = token * len(docs) + listed[spread(starts[lists], sizes)]
        total = torch.zeros(len(query) * len(docs)).scatter_reduce_(0, place, gain.repeat_interleave(sizes), "amax")
        return total.view(len(query), -1).sum(0)

    yield Way(f"{count:,} centroids, {PROBES} lists read", 4 * len(pairs), probed)


def ways(docs: Ragged) -> Iterator[Way]:
    for factor in (4, 8, 16):
        yield coded(f"one vector for {factor}, int8", pool(docs, factor), vector_format("int8", docs.dim))
    yield coded("one vector for 8, binary", pool(docs, 8), vector_format("binary", docs.dim))
    yield sketched(Mean(docs.dim), docs)
    yield sketched(FdeSketch(docs.dim), docs)
    for count in COUNTS:
        yield from centroids(docs, count)


def compare(docs: Ragged, queries: list[Tensor]) -> list[dict[str, Any]]:
    best = maxsim(queries, docs).topk(BEST, 1).indices
    out = []
    for way in ways(docs):
        scores = torch.stack([way.score(q) for q in queries])
        place = scores.argsort(1, descending=True).argsort(1).gather(1, best).flatten().sort().values
        exact, spent = search_speed.turns(
            lambda: maxsim(queries[0], docs), lambda: way.score(queries[0]), repeats=REPEATS  # noqa: B023
        )  # fmt: skip
        needed = int(place[-(-int(100 * RECALL) * len(place) // 100) - 1]) + 1
        out.append(
            {"way": way.name, "bytes": way.bytes / len(docs), "over": search_speed.over(spent, exact), "needed": needed}
        )
    return out


def main(out: Path | None = None) -> None:
    torch.set_num_threads(search_speed.THREADS)
    bed = CheckContext()
    texts = [bed.queries[i] for i in range(0, len(bed.texts), EVERY)]
    made = search_speed.documents(search_speed.LARGE)
    data = {
        "format": "tokensieve.candidates.1", **environment(), "date": date.today().isoformat(),
        "clustered": compare(Ragged.of(made), list(search_speed.queries(made))),
        "docstrings": compare(bed.documents.ragged, texts),
    }  # fmt: skip
    pairs = zip(data["clustered"], data["docstrings"], strict=True)
    rows = [
        [of[0]["way"], *(x for w in of for x in (f"{w['bytes']:,.0f}", f"{w['over']:.3f}", f"{w['needed']:,}"))]
        for of in pairs
    ]
    text = table(("way", *2 * ("bytes", "over exact", "for 99%")), rows)
    print(text)
    fill(search_speed.PAGE, "candidates", f"Measured on {data['date']}.\n\n{text}")
    if out is not None:
        out.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
