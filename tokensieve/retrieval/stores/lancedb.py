"""LanceDB: documents as rows of one multivector each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

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
    import lancedb
    import pyarrow as pa
else:
    lancedb, pa = Lazy("lancedb", "lancedb"), Lazy("pyarrow", "lancedb")

ASKED = 1000
"""Ids of one condition."""
SIGNS = {"eq": "=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


@register_store("lancedb", extra="lancedb")
class LanceDB(Adapter):
    """A table of LanceDB as a Store: multivectors compared by dot product, searched exactly, by no index.

    What was tested is a local folder. Object storage (``uri="s3://..."``, with its ``storage_options``) takes the same calls;
    that was not tested. A call is one commit. Every change makes new files, of which the old versions stay until
    ``store.table.optimize()``. Two programs that add the same id at once may both succeed: let one write at a time.
    Vectors are kept as float32.

    Conditions on metadata are evaluated by LanceDB before anything is scored; those for which it has no words are refused: a
    part of a string, equality with lists and dicts, order by an empty string, and membership of that or of a number that is
    negative or not whole. Whole numbers beyond 64 bits come back as floats.

    Args:
        dim: dimensions of a vector; needed where the table is new.
        connection: what ``lancedb.connect`` takes besides the ``uri``: ``storage_options``, ``api_key``, ...

    Example:
        >>> store = LanceDB("passages", "my.lancedb", dim=128)                  # doctest: +SKIP
        >>> store.add([torch.randn(30, 128)], ids=["a"], metadata=[{"lang": "en"}])  # doctest: +SKIP
    """

    def __init__(self, table: str, uri: str, dim: int | None = None, **connection: Any) -> None:
        # What others commit is seen at once.
        base = lancedb.connect(uri, **{"read_consistency_interval": timedelta(0), **connection})
        if table in base.list_tables().tables:
            self.table = base.open_table(table)
            self.dim = _dim(self.table, table)
            if dim is not None and dim != self.dim:
                raise Incompatible(f"table {table!r} was made for dim {self.dim}, not {dim}")
        elif dim is None:
            raise ValueError(f"there is no table {table!r}; pass dim to make it")
        else:
            self.table, self.dim = base.create_table(table, schema=_schema(dim)), dim

    def _held(self, ids: Sequence[str]) -> set[str]:
        parts = [ids[i : i + ASKED] for i in range(0, len(ids), ASKED)]
        return {row["id"] for part in parts for row in self._rows(_among(part), ["id"])}

    def _write(self, docs: Ragged, ids: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        flat = pa.array(docs.tokens.float().contiguous().flatten().numpy())
        vectors = pa.ListArray.from_arrays(
            pa.array(docs.offsets.int().numpy()), pa.FixedSizeListArray.from_arrays(flat, self.dim)
        )
        notes = pa.array([json.dumps(dict(m)) for m in metadata], pa.json_())
        rows = pa.table([pa.array(ids), notes, vectors], schema=_schema(self.dim))
        self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def _erase(self, ids: Sequence[str]) -> None:
        self.table.delete(_among(ids))

    def _condition(self, where: Where | None) -> str | None:
        for field, condition in (where or {}).items():
            if isinstance(condition, Mapping) and isinstance(condition.get("has"), str) and self._words(field):
                raise ValueError(f"where[{field!r}]: LanceDB has no words for has {condition['has']!r} of a string; "
                                 "store it as a list")  # fmt: skip
        return " AND ".join(_clause(f, c) for f, c in where.items()) if where else None

    def _words(self, field: str) -> bool:
        """Whether a document holds a string there."""
        return self.table.count_rows(f"{_value(field)} LIKE '\"%'") > 0

    def _best(self, query: Tensor, limit: int, condition: str | None) -> list[Hit]:
        asked: Any = self.table.search(query.float().numpy(), vector_column_name="vectors")
        asked = asked.distance_type("dot")
        if condition is not None:
            asked = asked.where(condition, prefilter=True)
        found = asked.bypass_vector_index().limit(limit).select(["id", "metadata", "_distance"]).to_list()
        # The distance is the sum of 1 - similarity.
        return [Hit(row["id"], len(query) - row["_distance"], json.loads(row["metadata"])) for row in found]

    def _read(self, id: str) -> Document | None:
        rows = self._rows(_among([id]), ["metadata", "vectors"])
        if not rows:
            return None
        return Document(id, torch.tensor(rows[0]["vectors"], dtype=torch.float32), json.loads(rows[0]["metadata"]))

    def ids(self) -> Iterator[str]:
        """The ids of all documents, in no particular order."""
        for batch in self.table.search().select(["id"]).to_batches():
            yield from batch.column("id").to_pylist()

    def __len__(self) -> int:
        return self.table.count_rows()

    def close(self) -> None:
        """Nothing is held: every call opens what it reads."""

    def _rows(self, condition: str, columns: list[str]) -> list[dict[str, Any]]:
        return self.table.search().where(condition).select(columns).to_list()


def _schema(dim: int) -> pa.Schema:
    vectors = pa.list_(pa.list_(pa.float32(), dim))
    return pa.schema([pa.field("id", pa.string(), nullable=False), ("metadata", pa.json_()), ("vectors", vectors)])


def _dim(table: Any, name: str) -> int:
    """The dimensions of a table's vectors."""
    types = {field.name: field.type for field in table.schema}
    rows: Any = types.get("vectors")
    if not {"id", "metadata"} <= types.keys() or not pa.types.is_list(rows):
        raise Incompatible(f"table {name!r} was not written by tokensieve; give documents a table of their own")
    if not pa.types.is_fixed_size_list(rows.value_type):
        raise Incompatible(f"table {name!r} holds no multivectors; choose another table")
    return rows.value_type.list_size


def _among(ids: Sequence[str]) -> str:
    return f"id IN ({', '.join(map(_quoted, ids))})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _value(field: str) -> str:
    """The value of a field as JSON, null where there is none."""
    return f"json_extract(metadata, {_quoted(f'$.{_json(field)}')})"


def _clause(field: str, condition: Any) -> str:
    if not field or field.startswith("$") or "." in field:
        raise ValueError(f"where[{field!r}]: LanceDB has no words for this, only for fields by name")
    if isinstance(condition, Mapping):
        return " AND ".join(_test(field, o, limit) for o, limit in condition.items()) or "true"
    return _test(field, "in" if isinstance(condition, (list, tuple, set)) else "eq", condition)


def _test(field: str, operator: str, limit: Any) -> str:
    """A condition that is true or false, never null."""
    value = _value(field)
    if operator == "ne":
        return f"NOT {_test(field, 'eq', limit)}"
    if operator == "in" and isinstance(limit, (list, tuple, set)):
        return f"({' OR '.join(_test(field, 'eq', v) for v in limit) or 'false'})"
    if operator == "eq" and limit is None:
        return f"({value} IS NULL OR {value} = 'null')"
    said = None
    if operator == "eq" and isinstance(limit, bool):
        said = f"{value} = '{_json(limit)}'"
    elif operator == "eq" and isinstance(limit, str):
        said = f"{value} = {_quoted(_json(limit))}"
    elif operator in SIGNS and isinstance(limit, (int, float)) and not isinstance(limit, bool) and math.isfinite(limit):
        said = f"try_cast({value} AS double) {SIGNS[operator]} {float(limit)!r}"
    elif operator in SIGNS and isinstance(limit, str) and limit:
        said = f"{value} LIKE '\"%' AND {_exists(field, '', SIGNS[operator], _json(limit))}"
    elif operator == "has" and _members(limit):
        some = " OR ".join(_exists(field, "[*]", "==", member) for member in _members(limit))
        said = f"{value} LIKE '[%' AND ({some})"
    if said is None:
        raise ValueError(f"where[{field!r}]: LanceDB has no words for {operator} {limit!r}; filter by another field")
    return f"coalesce({said}, false)"


def _members(limit: Any) -> list[str]:
    """What a list may hold that equals a value, as far as LanceDB's JSON paths have words for it."""
    if isinstance(limit, str):
        return [_json(limit)] if limit else []
    if isinstance(limit, bool):
        return [_json(limit)]
    if not isinstance(limit, (int, float)) or not math.isfinite(limit) or limit < 0 or limit != int(limit):
        return []
    return [str(int(limit))]


def _exists(field: str, items: str, sign: str, limit: str) -> str:
    return f"json_exists(metadata, {_quoted(f'$.{_json(field)}{items} ? (@ {sign} {limit})')})"
