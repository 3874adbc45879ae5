"""What comes in to a store, documents and queries, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch

from tokensieve.retrieval.index import marks
from tokensieve.retrieval.index.filters import Where, check
from tokensieve.retrieval.index.segment import metadata_json
from tokensieve.retrieval.scoring.maxsim import queries_of
from tokensieve.retrieval.scoring.ragged import Documents, Ragged, array
from tokensieve.retrieval.sources.passages import is_text

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def incoming(vectors: Documents, metadata: Sequence[Mapping[str, Any]] | None, dim: int) -> tuple[Ragged, list[bytes]]:
    """Documents and their metadata as JSON; ValueError where one cannot be stored."""
    docs = Ragged.of(vectors)
    if len(docs):
        if docs.tokens.dtype not in FLOATS:
            raise ValueError(f"the documents hold {docs.tokens.dtype}; vectors are {_floats()}")
        tokens = docs.tokens.detach()
        # Codecs take float32; what is too large for that is infinite.
        docs = Ragged(tokens.float() if tokens.dtype == torch.float64 else tokens, docs.offsets)
        if docs.dim != dim:
            raise ValueError(f"the documents have {docs.dim} dimensions, the index has {dim}")
        if not bool((docs.lengths > 0).all()):
            raise ValueError(f"document {int(docs.lengths.argmin())} has no tokens")
        if not bool(docs.tokens.isfinite().all()):
            bad = int((~docs.tokens.isfinite().all(1)).nonzero()[0])
            doc = int(torch.searchsorted(docs.offsets, bad, right=True)) - 1
            raise ValueError(f"document {doc} holds NaN or infinite values")
    return docs, [metadata_json(i, m) for i, m in enumerate([{}] * len(docs) if metadata is None else metadata)]


def query_of(query: Any, k: int, where: Where | None, dim: int) -> tuple[bool, Ragged]:
    """Whether it is one query, and all of them; ValueError where a search cannot be made."""
    whole("k", k, 1)
    if not isinstance(query, (Sequence, Ragged)) or isinstance(query, str):
        query = array(query) if isinstance(query, (torch.Tensor, np.ndarray)) else query
        if getattr(query, "ndim", 0) not in (2, 3):
            what = f"has shape {tuple(query.shape)}" if hasattr(query, "shape") else f"is a {type(query).__name__}"
            raise ValueError(f"a query is vectors (Q, {dim}), many are (B, Q, {dim}) or a list; this one {what}")
    single, queries = queries_of(query)
    if queries.tokens.dtype not in FLOATS:
        raise ValueError(f"the query holds {queries.tokens.dtype}; vectors are {_floats()}")
    if queries.dim != dim:
        raise ValueError(f"the query has {queries.dim} dimensions, the index has {dim}")
    if where is not None:
        check(where)
    return single, queries


def check_names(names: Sequence[str], docs: int, notes: int) -> None:
    """Refuse ids that are no names, or come twice, or are not as many as the documents."""
    if len(names) != docs or notes != docs:
        raise ValueError(f"{docs} documents, {len(names)} ids, {notes} metadata")
    for name in names:
        if not name or not is_text(name):
            raise ValueError(f"ids are non-empty strings of Unicode, not {name!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"id {next(i for i in names if names.count(i) > 1)!r} is given twice")


def whole(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number of at least ``least``."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be at least {least} and whole, not {value!r}")


def listed(ids: Iterable[str]) -> list[str]:
    """Ids as a list; a single string, whose letters would be taken for ids, is refused."""
    if isinstance(ids, str):
        raise ValueError(f"ids must be a list of strings; for one document pass [{ids!r}]")
    names = list(ids)
    wrong = [i for i in names if not isinstance(i, str)]
    if wrong:
        raise ValueError(f"ids are strings, not {wrong[0]!r}")
    return names


def _floats() -> str:
    return ", ".join(str(t).removeprefix("torch.") for t in FLOATS)


def refuse_held(held: Sequence[str]) -> None:
    """Refuse to add what is there."""
    if held:
        raise ValueError(f"id {held[0]!r} is in the index already; update replaces documents")


def numbered(first: int, docs: int, held: Callable[[list[str]], bool]) -> tuple[int, list[str]]:
    """Names for documents that have none, counted up from ``first`` past those that callers have used."""
    names = [str(first + i) for i in range(docs)]
    while docs and held(names):
        first += docs
        names = [str(first + i) for i in range(docs)]
    return first, names


def unsigned(metadata: Sequence[Mapping[str, Any]] | None) -> list[Mapping[str, Any]] | None:
    """Metadata as a list; names that begin as operators do are refused."""
    if metadata is None:
        return None
    for i, note in enumerate(notes := list(metadata)):
        found = marks.signed(note)
        if found:
            raise ValueError(
                f"metadata of document {i}: names that begin with $ are operators of filters; rename {found!r}"
            )
    return notes


class WritableStore:
    """Adding and replacing documents, by what a store does for both."""

    def add(
        self, vectors: Documents, ids: Sequence[str] | None = None, metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> list[str]:
        """Add documents, in one commit where the store has such, and return their ids; numbers count up where ``ids`` are not
        given."""
        notes = unsigned(metadata)
        return self._put(vectors, None if ids is None else listed(ids), notes, replace=False)

    def update(
        self, vectors: Documents, ids: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> list[str]:
        """Replace documents, or add them where their ids are new, in one commit where the store has such."""
        return self._put(vectors, listed(ids), unsigned(metadata), replace=True)

    def _put(
        self, vectors: Documents, ids: list[str] | None, metadata: Sequence[Mapping[str, Any]] | None, replace: bool
    ) -> list[str]:
        raise NotImplementedError
