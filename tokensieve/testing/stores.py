"""What callers rely on in a Store: that it answers as the Index does."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.retrieval.index.index import Index
from tokensieve.retrieval.index.search import Hit
from tokensieve.retrieval.scoring.maxsim import maxsim
from tokensieve.retrieval.stores.protocol import Store
from tokensieve.testing.bad_input import refused
from tokensieve.testing.trial import expect

DIM, COUNT = 8, 30
CLOSE = 1e-5
"""How far scores may lie apart."""
NOTES: tuple[dict[str, Any], ...] = ({"lang": "en"}, {"lang": "de", "tags": ["io", "net"]})
FILTERS: tuple[dict[str, Any], ...] = (
    {"lang": "en"},
    {"lang": ["en", "de"]},
    {"lang": []},
    {"lang": {"ne": "en"}},
    {"lang": None},
    {"lang": {"ne": None}},
    {"lang": ["de", None]},
    {"i": 2},
    {"i": {"ge": 5, "lt": 8.5}},
    {"i": {"gt": 5, "le": 8}, "lang": "en"},
    {"i": {"ne": 4}},
    {"absent": 1},
    {"absent": {"ne": "a"}},
    {},
)
"""Conditions that every store has words for."""


def documents(count: int, seed: int = 0) -> list[Tensor]:
    """Documents of 1 to 8 random vectors of length 1."""
    g = torch.Generator().manual_seed(seed)
    return [normalize(torch.randn(int(n), DIM, generator=g), dim=1) for n in torch.randint(1, 9, (count,), generator=g)]


def same(found: list[Hit], wanted: list[Hit], what: str) -> None:
    """The same documents in the same order, with scores that may differ in their last digits."""
    expect(
        [h.id for h in found] == [h.id for h in wanted], f"{what}: {_ids(wanted)} as in the index; got {_ids(found)}"
    )
    expect([h.metadata for h in found] == [h.metadata for h in wanted], f"{what}: the metadata that was added")
    apart = max((abs(a.score - b.score) for a, b in zip(found, wanted, strict=True)), default=0.0)
    expect(apart <= CLOSE, f"{what}: scores within {CLOSE} of MaxSim; they are up to {apart:.3g} away")


def check_it_is_a_store(store: Store) -> None:
    """It has the calls of Store, and a new one is empty."""
    expect(isinstance(store, Store), "the calls of tokensieve.retrieval.Store")
    expect(store.dim == DIM, f"dim={DIM}, which it was made for; got {store.dim}")
    expect(len(store) == 0 and list(store.ids()) == [], "a new store to be empty")
    expect(store.search(torch.ones(1, DIM) / DIM**0.5) == [], "nothing to be found in an empty store")


def check_filters(store: Store) -> None:
    """Conditions admit what they admit in the index, before anything is scored."""
    with _index() as index:
        _fill(store, index)
        query = documents(3, 5)[0]
        for where in FILTERS:
            same(store.search(query, 50, where), index.search(query, 50, where), f"where={where}")


def check_searches(store: Store) -> None:
    """One query and many find what they find in the index, by MaxSim."""
    with _index() as index:
        _fill(store, index)
        queries = documents(5, 7)
        for found, wanted in zip(store.search(queries, 7), index.search(queries, 7), strict=True):
            same(found, wanted, "a search of many queries")
        expect(len(store.search(queries[0], 100)) == len(index), "a search for more than there are to give all")
        best = float(maxsim(queries[0], documents(COUNT)).max())
        score = store.search(queries[0], 1)[0].score
        expect(abs(score - best) <= CLOSE, f"the score to be MaxSim, {best:.6g}; got {score:.6g}")


def check_changes(store: Store) -> None:
    """What is updated, added and deleted shows at once; what is deleted is gone."""
    with _index() as index:
        _fill(store, index)
        query, late = documents(1, 9)[0], documents(3, 3)
        for held in (store, index):
            names = held.update(late, ["d1", "d2", "new"], [{"lang": "fr"}] * 3)
            expect(names == ["d1", "d2", "new"], f"update to give the ids; got {names}")
            gone = held.delete(["d5", "d6", "nobody", "d5"])
            expect(gone == 2, f"delete to give how many were there, 2; got {gone}")
        same(store.search(query, 40), index.search(query, 40), "after changes")
        expect(set(store.ids()) == set(index.ids()) and len(store) == len(index), "the ids of the documents there")
        expect("new" in store and "d5" not in store, "`in` to say which documents are there")
        got = store.get("d2")
        expect((got.id, got.metadata) == ("d2", {"lang": "fr"}), "get to give id and metadata")
        expect(torch.allclose(torch.as_tensor(got.vectors), late[1], atol=CLOSE), "get to give the vectors")
        refused(lambda: store.get("d5"), "'d5'", KeyError)


def check_equals_come_by_id(store: Store) -> None:
    """Of equal scores the lower ids, whatever came first."""
    one, ids = torch.eye(1, DIM), [f"{n:02}" for n in range(40)]
    store.add([one] * 40, ids[::-1], [{"n": 1}] * 40)
    found = store.search(one, 3)
    expect([h.id for h in found] == ids[:3], f"equal scores in the order of ids, {ids[:3]}; got {_ids(found)}")


def check_numbers(store: Store) -> None:
    """Documents without ids are numbered, and numbers that callers used are passed over."""
    names = store.add(documents(2))
    expect(names == ["0", "1"], f"the first two numbers for documents without ids; got {names}")
    store.update(documents(1), ["3"])
    names = store.add(documents(2))
    expect(len({*names, "0", "1", "3"}) == len(store) == 5, f"numbers that are free; got {names}")


BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"vectors": [torch.zeros(2, 3)]}, "3 dimensions"),
    ({"vectors": [torch.ones(1, DIM), torch.zeros(0, DIM)]}, "document 1 has no tokens"),
    ({"vectors": [torch.full((2, DIM), torch.nan)]}, "document 0 holds NaN"),
    ({"vectors": [torch.ones(2, DIM), torch.full((2, DIM), torch.inf)]}, "document 1 holds NaN"),
    ({"ids": ["d3"]}, "'d3' is in the index"),
    ({"ids": [7]}, "not 7"),
    ({"ids": [None]}, "not None"),
    ({"ids": "d"}, r"pass \['d'\]"),
    ({"ids": [""]}, "non-empty"),
    ({"ids": ["caf\udce9"]}, "Unicode"),
    ({"vectors": [torch.ones(1, DIM)] * 2, "ids": ["x", "x"]}, "'x' is given twice"),
    ({"ids": ["x", "y"]}, "1 documents, 2 ids"),
    ({"metadata": []}, "0 metadata"),
    ({"metadata": [{"a": object()}]}, "metadata of document 0"),
    ({"metadata": [{"a": float("nan")}]}, "metadata of document 0"),
    ({"metadata": [{1: 2}]}, "names of fields are strings"),
    ({"vectors": torch.ones(1, 2, DIM).long()}, "hold torch.int64"),
    ({"vectors": [torch.ones(2, DIM).to(torch.float8_e4m3fn)]}, "hold torch.float8_e4m3fn"),
    ({"vectors": [torch.ones(2, DIM).double() * 1e300]}, "document 0 holds NaN or infinite"),
)
"""What `add` of a store and of an index refuses, and what the error says;
`tokensieve.retrieval.stores.adapter.Adapter` has all of it."""


def check_a_refused_add_changes_nothing(store: Store) -> None:
    _fill(store)
    for change, says in BAD:
        given: Mapping[str, Any] = {"vectors": documents(1), **change}
        refused(lambda given=given: store.add(**given), says)  # type: ignore[misc]
    expect(len(store) == COUNT + 2, "refused documents to leave nothing behind")


def check_refused_searches(store: Store) -> None:
    store.add(documents(3))
    query = documents(1)[0]
    for change, says in (
        ({"k": 0}, "k must be at least 1"),
        ({"where": {"lang": {"in": "english"}}}, "takes a list"),
        ({"where": {"i": {"about": 3}}}, "unknown operator 'about'"),
        ({"query": query[:, :3]}, "3 dimensions"),
        ({"query": query[:0]}, "without tokens"),
    ):
        given: dict[str, Any] = {"query": query, **change}
        refused(lambda given=given: store.search(**given), says)  # type: ignore[misc]


CHECKS: tuple[Callable[[Store], None], ...] = (
    check_it_is_a_store, check_filters, check_searches, check_changes, check_equals_come_by_id, check_numbers,
    check_a_refused_add_changes_nothing, check_refused_searches,
)  # fmt: skip


def store_checks(make: Callable[[int], Store]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a store: the name of each, and what runs it on a store of its own and raises AssertionError.

    Args:
        make: from the dimensions of a vector to a new, empty store; called once for each check.
    """
    for check in CHECKS:
        name = check.__name__.removeprefix("check_")

        def run(check: Callable[[Store], None] = check, name: str = name) -> None:
            store = make(DIM)
            try:
                check(store)
            except AssertionError as problem:
                raise AssertionError(f"{type(store).__name__} fails the check {name}: {problem}") from None
            except Exception as problem:
                what = f"expected a result; got {type(problem).__name__}: {problem}"
                raise AssertionError(f"{type(store).__name__} fails the check {name}: {what}") from problem
            finally:
                store.close()

        yield name, run


def check_store(make: Callable[[int], Store]) -> None:
    """Run every check of a store; arguments as for :func:`store_checks`.

    Raises:
        AssertionError: the first check that fails; it names the store, the check, and what was expected.

    Example:
        >>> check_store(lambda dim: Qdrant("c", dim, location=":memory:"))  # doctest: +SKIP
    """
    for _, check in store_checks(make):
        check()


def _fill(*stores: Any) -> None:
    """Thirty documents with notes, one whose note is None, one without."""
    for held in stores:
        notes = [NOTES[n % 2] | {"i": n, "name": f"part {n}"} for n in range(COUNT)]
        held.add(documents(COUNT), [f"d{n}" for n in range(COUNT)], notes)
        held.add(documents(2, 1), ["none", "empty"], [{"lang": None}, {}])


def _ids(hits: list[Hit]) -> list[str]:
    return [h.id for h in hits]


@contextmanager
def _index() -> Iterator[Index]:
    """A new Index in a folder that goes away."""
    with tempfile.TemporaryDirectory() as folder, Index.create(Path(folder) / "index", DIM, "float32") as index:
        yield index
