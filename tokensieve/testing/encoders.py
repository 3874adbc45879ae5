"""What an index, and the reduction of stored vectors, rely on in an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tokensieve.retrieval.encoders.encoded import Encoded, Encoder
from tokensieve.testing.trial import expect

TEXTS = (
    "Open a file and read it line by line.",
    "Close a network socket.",
    "The cat sat.",
    "x",
    "Sort numbers, then print the numbers.",
)
CLOSE = 1e-4


def check_encoder(encoder: Encoder, documents: Sequence[Any] = TEXTS, queries: Sequence[str] = TEXTS) -> None:
    """Check an encoder.

    Documents and queries come in order as float32 vectors of ``identity.dim`` dimensions and length 1, at least one each; none
    depends on its neighbours; what is asked again is the same; spans and signals speak of each vector; nothing encodes to
    nothing; and the identity stays what it was.

    Args:
        documents: what it encodes, where that is not texts; queries: texts.

    Raises:
        AssertionError: naming what does not hold.
    """
    before = encoder.identity
    expect(bool(before.digest) and before.dim > 0, f"an identity with a digest and a width; got {before}")
    for what, run, items in (("documents", encoder.documents, documents), ("queries", encoder.queries, queries)):
        out = run(items)
        _shapes(what, out, len(items), before.dim)
        again = run(items)
        expect(torch.equal(again.vectors, out.vectors), f"{what} to give the same vectors every time")
        for i, item in enumerate(items):
            _same(f"the vectors of {what} {i} alone and among others", run([item]), out.rows([i]))
        _same(f"{what} in another order", run(items[::-1]), out.rows(list(range(len(items)))[::-1]))
        none = run([])
        expect(len(none) == 0 and len(none.vectors) == 0, f"no {what} to give no vectors")
    after = encoder.identity
    expect(after == before, f"the identity to stay what it was, {before}, after texts were encoded; it is {after}")


def _shapes(what: str, out: Encoded, count: int, dim: int) -> None:
    expect(len(out) == count, f"{what} to give {count} texts; got {len(out)}")
    expect(
        bool((out.lengths > 0).all()), f"{what} to give every text at least one vector; lengths {out.lengths.tolist()}"
    )
    expect(out.vectors.shape[1] == dim, f"{what} to give vectors of identity.dim={dim}; got {out.vectors.shape[1]}")
    expect(out.vectors.dtype == torch.float32, f"{what} to give float32; got {out.vectors.dtype}")
    expect(bool(out.vectors.isfinite().all()), f"{what} to give finite vectors")
    length = out.vectors.norm(dim=1)
    expect(
        bool(((length - 1).abs() < CLOSE).all()),
        f"{what} to give vectors of length 1; the longest is {length.max():.4g}",
    )
    if out.single is not None:
        expect(len(out.single) == count, f"{what} to give one single vector for each text; got {len(out.single)}")


def _same(what: str, got: Encoded, wanted: Encoded) -> None:
    expect(torch.equal(got.offsets, wanted.offsets), f"{what}: as many vectors for each text")
    expect(torch.allclose(got.vectors, wanted.vectors, atol=CLOSE), f"{what}: the same vectors")
    expect(torch.equal(got.spans, wanted.spans), f"{what}: the same spans")
