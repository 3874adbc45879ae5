"""VectorFormat: how one token vector is stored, and how a query is compared with stored vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from tokensieve.core.registry import Registry

Fields = Mapping[str, Tensor]
"""Stored vectors: named tensors whose first dimension is the token."""


@dataclass(frozen=True)
class VectorFormat:
    """Stores vectors ``(n, dim)`` as :data:`Fields` and scores them against queries without leaving their form where faster.

    Subclasses implement :meth:`encode` and :meth:`decode`, and may bring a faster :meth:`score`. One that learns from data
    overrides :meth:`fit` and :meth:`state`; one built from ``state`` decodes what the fitted one encoded. Register them with
    ``@register_format("name")``; ``tokensieve.testing.formats.check_format("name")`` checks what an index relies on.

    Attributes:
        dim: dimensions of a vector.
        name: what it is called in an index's manifest.
    """

    dim: int
    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not isinstance(self.dim, int) or isinstance(self.dim, bool) or self.dim < 1:
            raise ValueError(f"dim must be at least 1 and whole, not {self.dim!r}")

    def fit(self, sample: Tensor) -> VectorFormat:
        """A format adapted to a sample of vectors ``(n, dim)``."""
        return self

    @property
    def state(self) -> dict[str, Tensor]:
        """What :meth:`fit` has learnt; empty for a format that learns nothing."""
        return {}

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        """Fields of vectors ``(n, dim)``."""
        raise NotImplementedError

    def decode(self, fields: Fields) -> Tensor:
        """Vectors ``(n, dim)``, float32."""
        raise NotImplementedError

    def prepare(self, query: Tensor) -> Any:
        """What :meth:`score` needs to know of query vectors ``(Q, dim)``, computed once a search."""
        return query.float().T.contiguous()

    def score(self, fields: Fields, prepared: Any) -> Tensor:
        """Dot products ``(n, Q)``, float32, of exact query vectors with stored vectors."""
        return self.decode(fields) @ prepared

    @property
    def bytes_per_token(self) -> int:
        fields = self.encode(torch.ones(1, self.dim))
        return sum(v.nbytes for v in fields.values())


FORMATS: Registry[type[VectorFormat]] = Registry("vector format", "tokensieve.retrieval.storage")
F = TypeVar("F", bound=type[VectorFormat])


def register_format(name: str) -> Callable[[F], F]:
    """Class decorator: give a vector format its name, by which indexes, recipes and the command line find it."""

    def add(cls: F) -> F:
        FORMATS.register(name)(cls)
        cls.name = name
        return cls

    return add


def list_formats() -> list[str]:
    """The names of all vector formats, sorted."""
    return FORMATS.names()


def vector_format(name: str, dim: int, **state: Any) -> VectorFormat:
    """A format by name, for vectors of ``dim`` dimensions; ``state`` is what a fitted one gave.

    Raises:
        ValueError: no such name, or ``dim`` below 1.
    """
    return FORMATS.get(name)(dim, **state)
