"""Encode: texts (or pages) as ragged token vectors, and what is known of each token.

An encoder is anything with the members of :class:`Encoder`; :func:`~tokensieve.retrieval.encoders.loading.load_encoder` makes
one by name or from a folder, without arguments the embedded MiniLM.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokensieve.core.files import write
from tokensieve.retrieval.scoring.ragged import Ragged, array

FORMAT = "tokensieve.encoded.1"
CARD = "head.json"
"""The file by which a folder says that it holds a trained head, and of which encoder."""


@dataclass(frozen=True)
class Identity:
    """Which model made vectors, and how it read the texts: an index takes vectors of one identity only.

    Attributes:
        name: for people.
        digest: SHA-256 over the weights and every setting that changes vectors.
        dim: the width of a token vector.
    """

    name: str
    digest: str
    dim: int

    @property
    def label(self) -> str:
        """What an index remembers it by."""
        return f"{self.name} {self.digest[:16]}"


@dataclass(frozen=True, eq=False)
class Encoded:
    """n texts as T token vectors, one text after the other.

    Attributes:
        vectors: ``(T, d)`` float32, of length 1.
        offsets: ``(n + 1,)`` long; text i holds the vectors from ``offsets[i]`` to ``offsets[i + 1]``.
        spans: ``(T, 2)`` long; the characters of its text that each vector stands for, (-1, -1) for markers.
        signals: ``(T,)`` each, by name: ``ids`` (the vocabulary's, -1 for none), and what methods read of single tokens
            (``word``, ``stop``, ``received_attention``, ``idf``; see :class:`tokensieve.Signals`).
        single: ``(n, d')`` float32, one vector of length 1 for each text, where the model makes one.
    """

    vectors: Tensor
    offsets: Tensor
    spans: Tensor
    signals: dict[str, Tensor] = field(default_factory=dict)
    single: Tensor | None = None

    def __post_init__(self) -> None:
        total = len(self.vectors)
        if self.vectors.dim() != 2 or self.spans.shape != (total, 2) or any(len(s) != total for s in self.each):
            raise ValueError(
                f"vectors have shape {tuple(self.vectors.shape)}, spans {tuple(self.spans.shape)} and signals "
                f"{ ({k: len(v) for k, v in self.signals.items()}) }; they must speak of the same tokens"
            )
        if int(self.offsets[0]) != 0 or int(self.offsets[-1]) != total or bool((self.offsets.diff() < 0).any()):
            raise ValueError(f"offsets must ascend from 0 to the {total} vectors; they end at {int(self.offsets[-1])}")

    @property
    def each(self) -> list[Tensor]:
        return list(self.signals.values())

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Tensor:
        """``(n_i, d)``: the vectors of one text."""
        if not 0 <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        return self.vectors[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> Tensor:
        return self.offsets.diff()

    @property
    def ragged(self) -> Ragged:
        """The vectors alone, as an index takes them."""
        return Ragged(self.vectors, self.offsets)

    def rows(self, index: Sequence[int] | Tensor) -> Encoded:
        """Some texts, in the order asked for."""
        chosen = torch.as_tensor(index, dtype=torch.long)
        lengths = self.lengths[chosen]
        offsets = ends(lengths)
        place = torch.arange(int(offsets[-1])) + (self.offsets[chosen] - offsets[:-1]).repeat_interleave(lengths)
        return self.at(place, offsets, None if self.single is None else self.single[chosen])

    def at(self, place: Tensor, offsets: Tensor, single: Tensor | None) -> Encoded:
        """The vectors at ``place``, as texts that end at ``offsets``."""
        signals = {k: v[place] for k, v in self.signals.items()}
        return Encoded(self.vectors[place], offsets, self.spans[place], signals, single)

    def with_signals(self, **more: Tensor) -> Encoded:
        """A copy that knows more of its tokens."""
        return replace(self, signals={**self.signals, **more})

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file (whole or not at all)."""
        tensors = {"vectors": self.vectors, "offsets": self.offsets, "spans": self.spans}
        tensors |= {f"signals.{k}": v for k, v in self.signals.items()}
        tensors |= {} if self.single is None else {"single": self.single}
        whole = {k: v.contiguous() for k, v in tensors.items()}
        write(path, lambda part: save_file(whole, part, metadata={"format": FORMAT}))

    @classmethod
    def load(cls, path: str | Path) -> Encoded:
        """Read what :meth:`save` wrote."""
        with safe_open(path, "pt") as f:
            found = (f.metadata() or {}).get("format")
            if found != FORMAT:
                raise ValueError(f"{path} does not hold encoded texts (format {found!r})")
            t = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (a safetensors handle is no dict)
        signals = {k.removeprefix("signals."): v for k, v in t.items() if k.startswith("signals.")}
        return cls(t["vectors"], t["offsets"], t["spans"], signals, t.get("single"))


def ends(lengths: Tensor) -> Tensor:
    """Offsets from lengths."""
    return torch.cat([torch.zeros(1, dtype=torch.long), lengths.long().cumsum(0)])


def join(parts: Sequence[Encoded]) -> Encoded:
    """Encoded texts one after the other; only signals that all of them know."""
    if not parts:
        raise ValueError("there is nothing to join")
    names = set.intersection(*(set(p.signals) for p in parts))
    singles = [p.single for p in parts if p.single is not None]
    return Encoded(
        torch.cat([p.vectors for p in parts]),
        ends(torch.cat([p.lengths for p in parts])),
        torch.cat([p.spans for p in parts]),
        {k: torch.cat([p.signals[k] for p in parts]) for k in sorted(names)},
        torch.cat(singles) if len(singles) == len(parts) else None,
    )


class Encoder(Protocol):
    """What turns texts into token vectors."""

    @property
    def identity(self) -> Identity: ...

    def documents(self, items: Sequence[Any], needs: Collection[str] = ()) -> Encoded:
        """Documents, texts for most encoders; with the signals named by ``needs`` where the encoder has them."""
        ...

    def queries(self, texts: Sequence[str]) -> Encoded: ...


class Precomputed:
    """Vectors made elsewhere, looked up by what they stand for.

    Args:
        documents, queries: from a text (or any key) to its ``(n_i, d)`` array; vectors are brought to length 1.
        name: for people, and part of the identity.

    Raises:
        ValueError: an array that is not two-dimensional, empty, not finite, or of another width than the others.
    """

    def __init__(self, documents: Mapping[Any, Any], queries: Mapping[str, Any] | None = None, name: str = "arrays"):
        self._documents = {k: _array(k, v) for k, v in documents.items()}
        self._queries = {k: _array(k, v) for k, v in (queries or {}).items()}
        widths = {v.shape[1] for v in (*self._documents.values(), *self._queries.values())}
        if len(widths) != 1:
            raise ValueError(f"the arrays are {sorted(widths) or 'none'} wide; all must have the same width")
        self._identity = Identity(name, sha256(json.dumps(["arrays", name]).encode()).hexdigest(), widths.pop())

    @property
    def identity(self) -> Identity:
        return self._identity

    def documents(self, items: Sequence[Any], needs: Collection[str] = ()) -> Encoded:
        return _stacked([_known(self._documents, item, "document") for item in items], self._identity.dim)

    def queries(self, texts: Sequence[str]) -> Encoded:
        return _stacked([_known(self._queries, text, "query") for text in texts], self._identity.dim)


def _array(key: Any, value: Any) -> Tensor:
    x = array(np.asarray(value))
    if x.is_complex():
        raise ValueError(f"the array of {key!r} holds {x.dtype}; pass real numbers")
    x = x.float()
    if x.dim() != 2 or not len(x) or not bool(x.isfinite().all()):
        raise ValueError(
            f"the array of {key!r} has shape {tuple(x.shape)}; pass finite values of shape (tokens, width)"
        )
    return torch.nn.functional.normalize(x, dim=-1)


def _known(table: Mapping[Any, Tensor], key: Any, kind: str) -> Tensor:
    if key not in table:
        raise ValueError(f"no vectors are known for the {kind} {key!r}; precomputed vectors cover {len(table)} of them")
    return table[key]


def _stacked(parts: Sequence[Tensor], dim: int) -> Encoded:
    vectors = torch.cat(list(parts)) if parts else torch.zeros(0, dim)
    lengths = torch.tensor([len(p) for p in parts], dtype=torch.long)
    return Encoded(vectors, ends(lengths), torch.full((len(vectors), 2), -1))


def lasting(source: str | Path) -> str:
    """A source as it means the same from everywhere: folders by their whole path."""
    return str(Path(source).absolute() if Path(source).is_dir() else source)
