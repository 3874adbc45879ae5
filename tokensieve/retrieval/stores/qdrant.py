"""Qdrant: documents as points of one multivector each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

import torch
from torch import Tensor

from tokensieve.extras import Lazy
from tokensieve.retrieval.errors import Incompatible
from tokensieve.retrieval.index.filters import Where
from tokensieve.retrieval.index.index import Document
from tokensieve.retrieval.index.search import Hit
from tokensieve.retrieval.scoring.ragged import Ragged
from tokensieve.retrieval.stores.adapter import Adapter
from tokensieve.retrieval.stores.protocol import register_store

if TYPE_CHECKING:
    import qdrant_client
    from qdrant_client import models
else:
    qdrant_client, models = Lazy("qdrant_client", "qdrant"), Lazy("qdrant_client.models", "qdrant")

NAMES = UUID("6f3f1c5e-6d0e-4f0e-9a51-2b8f3a1f7c11")
SENT = 1 << 20
"""Numbers of vectors sent in one request: a server takes 32 MB of JSON."""
READ = 1000
RANGES = {"lt": "lt", "le": "lte", "gt": "gt", "ge": "gte"}


@register_store("qdrant", extra="qdrant")
class Qdrant(Adapter):
    """A collection of Qdrant as a Store: multivectors compared by dot product and ``max_sim``, searched exactly.

    What was tested is the client's local mode (``location=":memory:"`` or ``path=``). The same calls go to a server or
    a cluster by ``url=``; that was not tested. The local mode keeps points as pickles in SQLite: open only paths that you
    trust. A call is sent in requests of about a million numbers; each of them is a commit, not the call. Vectors are kept
    as float32.

    Documents' ids become the points' by uuid5, so writing one again replaces it. Conditions on metadata are evaluated by
    Qdrant; those for which it has no words are refused: order of strings, a part of a string, and
    equality with lists and dicts.

    Args:
        dim: dimensions of a vector; needed where the collection is new.
        client: what ``qdrant_client.QdrantClient`` takes: ``path``, ``url``, ``api_key``, ...

    Example:
        >>> store = Qdrant("passages", dim=128, path="my.qdrant")               # doctest: +SKIP
        >>> store.add([torch.randn(30, 128)], ids=["a"], metadata=[{"lang": "en"}])  # doctest: +SKIP
    """

    def __init__(self, collection: str, dim: int | None = None, **client: Any) -> None:
        self.client, self.collection = qdrant_client.QdrantClient(**client), collection
        local = "path" in client or client.get("location") == ":memory:"
        # The local mode is always exact, and warns of being told so.
        self._params = None if local else models.SearchParams(exact=True)
        try:
            self.dim = self._made(dim)
        except Exception:
            self.client.close()
            raise

    def _made(self, dim: int | None) -> int:
        if not self.client.collection_exists(self.collection):
            if dim is None:
                raise ValueError(f"there is no collection {self.collection!r}; pass dim to make it")
            many = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
            self.client.create_collection(
                self.collection,
                models.VectorParams(size=dim, distance=models.Distance.DOT, multivector_config=many),
            )
            return dim
        held = self.client.get_collection(self.collection).config.params.vectors
        if not isinstance(held, models.VectorParams) or not held.multivector_config:
            raise Incompatible(f"collection {self.collection!r} holds no multivectors; choose another collection")
        if held.distance != models.Distance.DOT:
            raise Incompatible(f"collection {self.collection!r} compares by {held.distance}, not by dot product")
        if dim is not None and dim != held.size:
            raise Incompatible(f"collection {self.collection!r} was made for dim {held.size}, not {dim}")
        return held.size

    def _held(self, ids: Sequence[str]) -> set[str]:
        points = self.client.retrieve(self.collection, [_point(i) for i in ids], with_payload=["id"]) if ids else []
        return {_payload(p)["id"] for p in points}

    def _write(self, docs: Ragged, ids: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        batch: list[models.PointStruct] = []
        held = 0
        for vectors, id, note in zip(docs, ids, metadata, strict=True):
            if batch and held + vectors.numel() > SENT:
                self.client.upsert(self.collection, batch, wait=True)
                batch, held = [], 0
            payload = {"id": id, "metadata": dict(note), **_fields(note)}
            batch.append(models.PointStruct(id=_point(id), vector=vectors.float().tolist(), payload=payload))
            held += vectors.numel()
        self.client.upsert(self.collection, batch, wait=True)

    def _erase(self, ids: Sequence[str]) -> None:
        self.client.delete(self.collection, models.PointIdsList(points=[_point(i) for i in ids]), wait=True)

    def _condition(self, where: Where | None) -> models.Filter | None:
        for field, condition in (where or {}).items():
            if isinstance(condition, Mapping) and isinstance(condition.get("has"), str) and self._words(field):
                raise ValueError(f"where[{field!r}]: Qdrant has no words for has {condition['has']!r} of a string; "
                                 "store it as a list")  # fmt: skip
        return models.Filter(must=[_clause(f, c) for f, c in where.items()]) if where else None

    def _words(self, field: str) -> bool:
        """Whether a document holds a string there."""
        strings = models.FieldCondition(key="strings", match=models.MatchValue(value=field))
        return self.client.count(self.collection, models.Filter(must=[strings]), exact=True).count > 0

    def _best(self, query: Tensor, limit: int, condition: models.Filter | None) -> list[Hit]:
        found = self.client.query_points(
            self.collection, query.float().tolist(), query_filter=condition, limit=limit,
            search_params=self._params, with_payload=["id", "metadata"],
        )  # fmt: skip
        return [Hit(_payload(p)["id"], p.score, _payload(p)["metadata"]) for p in found.points]

    def _read(self, id: str) -> Document | None:
        points = self.client.retrieve(self.collection, [_point(id)], with_payload=True, with_vectors=True)
        if not points:
            return None
        return Document(id, torch.tensor(points[0].vector, dtype=torch.float32), _payload(points[0])["metadata"])

    def ids(self) -> Iterator[str]:
        """The ids of all documents, in no particular order."""
        place: Any = None
        while True:
            points, place = self.client.scroll(self.collection, limit=READ, offset=place, with_payload=["id"])
            yield from (_payload(p)["id"] for p in points)
            if place is None:
                return

    def __len__(self) -> int:
        return self.client.count(self.collection, exact=True).count

    def close(self) -> None:
        """Let go of the database."""
        self.client.close()


def _point(id: str) -> str:
    return str(uuid5(NAMES, id))


def _payload(point: Any) -> dict[str, Any]:
    if not point.payload or "id" not in point.payload:
        raise Incompatible(f"point {point.id} was not written by tokensieve; give documents a collection of their own")
    return point.payload


def _fields(note: Mapping[str, Any]) -> dict[str, Any]:
    """Lists apart from single values: Qdrant takes any member of a list for the value."""
    there = {k: v for k, v in note.items() if v is not None}
    return {
        "one": {k: v for k, v in there.items() if not isinstance(v, (list, tuple, dict))},
        "many": {k: list(v) for k, v in there.items() if isinstance(v, (list, tuple))},
        "named": list(there),
        "strings": [k for k, v in there.items() if isinstance(v, str)],
        "flags": [k for k, v in there.items() if isinstance(v, bool)],
    }


def _clause(field: str, condition: Any) -> models.Filter:
    if not re.fullmatch(r"[^$\"\[\].][^\"\[\].]*", field):
        raise ValueError(
            f"where[{field!r}]: Qdrant has no words for this, only for fields by name, without quotes, brackets and dots"
        )
    if isinstance(condition, Mapping):
        return models.Filter(must=[_test(field, o, limit) for o, limit in condition.items()])
    return _test(field, "in" if isinstance(condition, (list, tuple, set)) else "eq", condition)


def _test(field: str, operator: str, limit: Any) -> models.Filter:
    one, many = f'one."{field}"', f'many."{field}"'
    number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
    if operator == "eq":
        return _equal(field, one, limit)
    if operator == "ne":
        return models.Filter(must_not=[_equal(field, one, limit)])
    if operator == "in" and isinstance(limit, (list, tuple, set)):
        return _any([_equal(field, one, v) for v in limit])
    if operator == "has" and (number or isinstance(limit, (str, bool))):
        return _equal(field, many, limit)
    if operator in RANGES and number:
        return models.Filter(
            must=[models.FieldCondition(key=one, range=models.Range(**{RANGES[operator]: float(limit)}))],
            must_not=[_flag(field)],
        )
    raise ValueError(f"where[{field!r}]: Qdrant has no words for {operator} {limit!r}; filter by another field")


def _equal(field: str, key: str, value: Any) -> models.Filter:
    if value is None:
        named = models.FieldCondition(key="named", match=models.MatchValue(value=field))
        return models.Filter(must_not=[named])
    match: Any
    if isinstance(value, (str, bool)):
        match = models.FieldCondition(key=key, match=models.MatchValue(value=value))
    elif isinstance(value, (int, float)):
        match = models.FieldCondition(key=key, range=models.Range(gte=float(value), lte=float(value)))
    else:
        raise ValueError(f"where[{field!r}]: Qdrant has no words for equality with {value!r}; filter by another field")
    # The range of a number holds true and false, which are none.
    return models.Filter(must=[match], must_not=[_flag(field)] if match.range else None)


def _flag(field: str) -> models.FieldCondition:
    """Whether a field holds true or false."""
    return models.FieldCondition(key="flags", match=models.MatchValue(value=field))


def _any(conditions: list[Any]) -> models.Filter:
    """One of them; none where there are none."""
    return models.Filter(should=conditions) if conditions else models.Filter(must=[models.HasIdCondition(has_id=[])])
