"""What an index relies on in a vector format."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.retrieval.index.index import Index
from tokensieve.retrieval.storage import FORMATS, VectorFormat, vector_format
from tokensieve.retrieval.storage.files import map_tensors, write_tensors

DIM, COUNT = 32, 300


def check_format(name: str) -> None:
    """Check a registered vector format, built in or from outside.

    What is encoded is tensors whose first dimension is the token and which a file gives back as they were; a vector's code does
    not depend on its neighbours; decoding gives float32 vectors of the same shape, finite; scores are the products with decoded
    vectors; a fitted format is restored from its state; and what an index takes in, it finds again after it is opened anew.

    Raises:
        AssertionError: naming what does not hold.
    """
    cls = FORMATS.get(name)
    x = normalize(torch.randn(COUNT, DIM, generator=torch.Generator().manual_seed(0)), dim=1)
    query = x[:3] + 0.1
    bare = cls(DIM)
    fitted = bare.fit(x)
    for made in (bare, fitted, vector_format(name, DIM, **fitted.state)):
        fields = made.encode(x)
        _fields(name, fields)
        back = made.decode(fields)
        what = f"{name}: decode gives {back.dtype} {tuple(back.shape)}; float32 {tuple(x.shape)} is asked for"
        assert (back.dtype, back.shape) == (torch.float32, x.shape), what
        assert bool(back.isfinite().all()), f"{name}: decode gives values that are not finite"
        scores = made.score(fields, made.prepare(query))
        what = f"{name}: score is not the product of the queries with what decode gives, in float32"
        assert scores.dtype == torch.float32, what
        assert torch.allclose(scores, back @ query.T, atol=2e-3), what
        alone = made.encode(x[-1:])
        assert all(torch.equal(alone[k][0], v[-1]) for k, v in fields.items()), (
            f"{name}: the code of a vector depends on its neighbours"
        )
    again = vector_format(name, DIM, **fitted.state)
    assert torch.equal(again.decode(fitted.encode(x)), fitted.decode(fitted.encode(x))), (
        f"{name}: one built from the state of a fitted one decodes otherwise"
    )
    _found(name, cls, x)


def _fields(name: str, fields: dict[str, Tensor]) -> None:
    assert fields, f"{name}: encode gives no field"
    for key, value in fields.items():
        assert value.shape[:1] == (COUNT,), (
            f"{name}: the field {key!r} has shape {tuple(value.shape)}; its first dimension must be the token, here {COUNT}"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fields.safetensors"
        try:
            write_tensors(file, fields)
        except ValueError as problem:
            raise AssertionError(f"{name}: {problem}") from problem
        held = map_tensors(file)
        for key, value in fields.items():
            same = held[key].dtype == value.dtype and torch.equal(held[key].view(torch.uint8), value.view(torch.uint8))
            assert same, f"{name}: the field {key!r} does not come back from a file as it was"


def _found(name: str, cls: type[VectorFormat], x: Tensor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with Index.create(Path(folder) / "index", DIM, codec=name, sketch=None) as index:
            ids = index.add(list(x.split(3)))
        with Index.open(Path(folder) / "index") as index:
            assert not index.damaged, f"{name}: an index loses documents: {index.damaged}"
            assert len(index.search(x[:3], k=len(ids))) == len(ids), f"{name}: documents that went in are not found"
