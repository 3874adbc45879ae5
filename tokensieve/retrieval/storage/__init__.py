"""Codec: vectors in fewer bytes."""

from __future__ import annotations

from tokensieve.retrieval.storage.dense import Float16, Float32
from tokensieve.retrieval.storage.integer import Binary, Int4, Int8
from tokensieve.retrieval.storage.residual import Residual
from tokensieve.retrieval.storage.vector_format import Codec, Fields

CODECS: dict[str, type[Codec]] = {c.name: c for c in (Float32, Float16, Int8, Int4, Residual, Binary)}


def codec(name: str, dim: int, **state: object) -> Codec:
    """A codec by name, for vectors of ``dim`` dimensions; ``state`` is what a fitted one gave."""
    if name not in CODECS:
        raise ValueError(f"unknown codec {name!r}; there are {', '.join(CODECS)}")
    return CODECS[name](dim, **state)


__all__ = ["CODECS", "Binary", "Codec", "Fields", "Float16", "Float32", "Int4", "Int8", "Residual", "codec"]
