"""What an index relies on in a sketch."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch.nn.functional import normalize

from tokensieve.retrieval.index.index import Index
from tokensieve.retrieval.scoring.ragged import Ragged
from tokensieve.retrieval.scoring.sketch import SKETCHES, sketch
from tokensieve.testing.trial import expect

DIM = 32
LENGTHS = (9, 1, 30, 4, 17)


def check_sketch(name: str) -> None:
    """Check a registered sketch, built in or from outside.

    Each document and query gives at least one vector of ``size`` dimensions, finite, and the same ones whatever its neighbours
    are and every time; documents that are alike are found by it; and an index that was made with it finds what went in after it
    is opened anew.

    Raises:
        AssertionError: naming what does not hold.
    """
    SKETCHES.get(name)
    docs = _documents(0)
    made = sketch(name, DIM)
    for what, run in (("documents", made.documents), ("queries", made.queries)):
        out = run(docs)
        expect(len(out) == len(docs), f"{name}.{what} to give {len(docs)} sets of vectors; got {len(out)}")
        expect(bool((out.lengths > 0).all()), f"{name}.{what} to give every one at least one vector")
        expect(out.dim == made.size, f"{name}.{what} to give vectors of size={made.size} dimensions; got {out.dim}")
        expect(bool(out.tokens.float().isfinite().all()), f"{name}.{what} to give finite vectors")
        again = getattr(sketch(name, DIM), what)(docs)
        expect(torch.equal(again.tokens, out.tokens), f"{name}.{what} to give the same vectors every time")
        for i in range(len(docs)):
            alone = run(Ragged(docs[i], torch.tensor([0, LENGTHS[i]])))
            expect(
                alone.tokens.shape == out[i].shape and torch.allclose(alone.tokens.float(), out[i].float(), atol=1e-4),
                f"{name}.{what} not to depend on neighbours; vectors of text {i} differ alone",
            )
    with tempfile.TemporaryDirectory() as folder:
        with Index.create(Path(folder) / "index", DIM, sketch=name) as index:
            ids = index.add([docs[i] for i in range(len(docs))])
        with Index.open(Path(folder) / "index") as index:
            expect(not index.damaged, f"an index sketched by {name} to lose no document; it lost {index.damaged}")
            for i, id in enumerate(ids):
                found = index.search(docs[i], k=1)
                expect(found and found[0].id == id, f"a document to be found by itself under the sketch {name}")


def _documents(seed: int) -> Ragged:
    g = torch.Generator().manual_seed(seed)
    tokens = normalize(torch.randn(sum(LENGTHS), DIM, generator=g), dim=1)
    return Ragged(tokens, torch.tensor([0, *LENGTHS]).cumsum(0))
