"""Stores on databases against the embedded Index; each is skipped where its package is not installed."""

import sys

import pytest
import torch

from tokensieve.retrieval import Incompatible, Index, list_stores, maxsim
from tokensieve.retrieval.stores import STORES
from tokensieve.testing import stores as contract
from tokensieve.testing.stores import DIM, FILTERS, check_store, store_checks
from tokensieve.testing.stores import documents as docs

NOTES = [
    {"i": 0, "lang": "en"},
    {"i": 1, "lang": "de", "tags": ["io", "net"]},
    {"i": 2.0, "lang": ["en"]},
    {"lang": None},
]


def same(found, wanted):
    contract.same(found, wanted, "the hits")


def qdrant(folder=None):
    pytest.importorskip("qdrant_client")
    from tokensieve.retrieval.stores.qdrant import Qdrant

    return Qdrant("c", DIM, **({"path": str(folder)} if folder else {"location": ":memory:"}))


def lance(folder):
    pytest.importorskip("lancedb")
    from tokensieve.retrieval.stores.lancedb import LanceDB

    return LanceDB("c", str(folder), DIM)


KINDS = {
    "qdrant": lambda folder: qdrant(),
    "lancedb": lance,
    "index": lambda folder: Index.create(folder, DIM, "float32"),
}


@pytest.mark.parametrize("name", [name for name, _ in store_checks(lambda dim: None)])
@pytest.mark.parametrize("kind", KINDS)
def test_stores_answer_as_the_index_does(kind, name, tmp_path):
    dict(store_checks(lambda dim: KINDS[kind](tmp_path / "store")))[name]()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"__len__": lambda self: 3}, "it_is_a_store: expected a new store to be empty"),
        (
            {"search": lambda self, q, k=10, where=None: Index.search(self, q, k)},
            "filters: expected where=.* as in the index",
        ),
        ({"delete": lambda self, ids: len(ids)}, "changes: expected delete to give how many were there, 2; got 4"),
        ({"add": lambda self, *a, **k: Index.update(self, *a, **k)}, "fails the check"),
        ({"get": lambda self, id: None}, "changes: expected a result; got AttributeError"),
    ],
)
def test_faults_are_caught(fault, says, tmp_path):
    worse = type("Worse", (Index,), fault)
    folders = iter(range(99))
    with pytest.raises(AssertionError, match=says):
        check_store(lambda dim: worse.create(tmp_path / str(next(folders)), dim, "float32"))


@pytest.mark.parametrize(("name", "package"), [("lancedb", "lancedb"), ("qdrant", "qdrant_client")])
def test_a_store_whose_extra_is_missing_is_listed_and_says_how_to_install_it(name, package, monkeypatch):
    for held in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, held)
    monkeypatch.setitem(sys.modules, package, None)
    assert name in list_stores()
    assert STORES.entry(name).facts == {"extra": name}
    with pytest.raises(ImportError, match=rf"{package} cannot be imported .*pip install '.*\[{name}\]'"):
        STORES.get(name)("c", "somewhere", 8) if name == "lancedb" else STORES.get(name)("c", 8)


@pytest.mark.parametrize("kind", ["qdrant", "lancedb"])
def test_conditions_without_words_are_refused(kind, tmp_path):
    with KINDS[kind](tmp_path / "store") as store:
        store.add(docs(2))
        for where in ({"lang": {"eq": {"a": 1}}}, {"": 1}):
            with pytest.raises(ValueError, match="no words for"):
                store.search(docs(1)[0], where=where)


def test_qdrant_keeps_lists_and_words_apart(tmp_path):
    query = docs(1, 5)[0]
    with qdrant() as store, Index.create(tmp_path / "index", DIM, "float32") as index:
        for held in (store, index):
            held.add(docs(4), list("abcd"), NOTES)
        for where in [
            *FILTERS,
            {"tags": {"has": "io"}},
            {"tags": {"has": "n"}},
            {"i": {"has": 1}},
        ]:
            same(store.search(query, 9, where), index.search(query, 9, where))
        with pytest.raises(ValueError, match="no words for has 'e' of a string"):
            store.search(query, where={"lang": {"has": "e"}})
        with pytest.raises(ValueError, match="no words for this, only for fields by name, without quotes"):
            store.search(query, where={'a"b': 1})
        with pytest.raises(ValueError, match="no words for lt"):
            store.search(query, where={"lang": {"lt": "e"}})


def test_qdrant_comes_back(tmp_path, monkeypatch):
    with qdrant(tmp_path) as store:
        from tokensieve.retrieval.stores import qdrant as module

        monkeypatch.setattr(module, "SENT", 20)
        monkeypatch.setattr(module, "READ", 4)
        store.add(docs(10), list("abcdefghij"))
    with module.Qdrant("c", path=str(tmp_path)) as again:
        assert (sorted(again.ids()), again.dim) == (list("abcdefghij"), DIM)
        assert torch.allclose(again.get("j").vectors, docs(10)[9])
    with pytest.raises(Incompatible, match="dim 8, not 9"):
        module.Qdrant("c", 9, path=str(tmp_path))
    with pytest.raises(ValueError, match="pass dim"):
        module.Qdrant("other", path=str(tmp_path))
    # Were the database still held, this could not open it.
    with qdrant(tmp_path) as store:
        store.client.create_collection("flat", module.models.VectorParams(size=4, distance="Dot"))
    with pytest.raises(Incompatible, match="no multivectors"):
        module.Qdrant("flat", path=str(tmp_path))


ODD = [
    {"x": 2}, {"x": 2.0}, {"x": True}, {"x": "en"}, {"x": "2"}, {"x": ["en", "2", 2, None]}, {"x": None}, {}, {"x": {"a": 1}},
    {"x": 'q"uo\\te\n\t\x01 é\u2028'}, {"x": 1e25}, {"x": -0.5}, {"x": [2.0, True]}, {"x": ""}, {"x": []}, {"x": "ë"},
    {'a"b': 1, "e f": 3, "g[0]": 5, "h'i": 7, "ü": None, "a\\b": 8},
]  # fmt: skip
LIMITS = [2, 2.0, 1, 0, True, False, -0.5, 1e25, "en", "2", "", None, 'q"uo\\te\n\t\x01 é\u2028', "ë", "true", "[]"]
NOT_SAID = [("has", -0.5), ("has", 3.5), ("has", ""), ("has", None), *((o, "") for o in ("lt", "le", "gt", "ge"))]


def test_lancedb_finds_by_values_of_every_kind(tmp_path):
    query = docs(1, 5)[0]
    with lance(tmp_path / "store") as store, Index.create(tmp_path / "index", DIM, "float32") as index:
        for held in (store, index):
            held.add(docs(len(ODD)), [str(i) for i in range(len(ODD))], ODD)

        def both_find(where):
            same(store.search(query, 50, where), index.search(query, 50, where))

        for limit in LIMITS:
            both_find({"x": limit})
            both_find({"x": {"ne": limit}})
            for operator in ("lt", "le", "gt", "ge"):
                if limit is not None and not isinstance(limit, bool) and (operator, limit) not in NOT_SAID:
                    both_find({"x": {operator: limit}})
        for where in [
            {"x": [2, "en"]}, {"x": [None, True]}, {"x": {"gt": 1, "ne": 2}}, {"x": {}},
            *({field: value} for field, value in ODD[-1].items() if not isinstance(value, list)),
        ]:  # fmt: skip
            both_find(where)
        for operator, limit in NOT_SAID:
            with pytest.raises(ValueError, match="no words for"):
                store.search(query, where={"x": {operator: limit}})
        with pytest.raises(ValueError, match="no words for has 'e' of a string"):
            store.search(query, where={"x": {"has": "e"}})


def test_lancedb_finds_members_of_lists(tmp_path):
    query = docs(1, 5)[0]
    lists = [{"x": v} for v in (["en", "2"], [2], [2.0, 3.5], [], 2, ["e"], ['a"b'], [1], [True], [0.0, None], [1e25])]
    with lance(tmp_path / "store") as store, Index.create(tmp_path / "index", DIM, "float32") as index:
        for held in (store, index):
            held.add(docs(len(lists)), [str(i) for i in range(len(lists))], lists)
        for where in [{"x": {"has": v}} for v in ("en", "e", "2", 2, 2.0, 'a"b', 1, True, False, 1e25)]:
            same(store.search(query, 50, where), index.search(query, 50, where))


def test_lancedb_compares_by_dot_product(tmp_path):
    """Vectors need not have length 1."""
    query, long = 3 * docs(1, 5)[0], [n * d for n, d in enumerate(docs(9), 1)]
    with lance(tmp_path / "store") as store:
        store.add(long)
        best = maxsim(query, long).max()
        assert store.search(query, 1)[0].score == pytest.approx(float(best), rel=1e-5)


def test_lancedb_comes_back(tmp_path):
    ids = [f"it's {n}" for n in range(10)]
    with lance(tmp_path) as store:
        store.add(docs(10), ids)
        # What another has committed is seen.
        with lance(tmp_path) as other:
            other.delete(ids[:3])
        assert len(store) == 7
    with module().LanceDB("c", str(tmp_path)) as again:
        assert (sorted(again.ids()), again.dim) == (ids[3:], DIM)
        assert torch.equal(again.get(ids[9]).vectors, docs(10)[9])
    with pytest.raises(Incompatible, match="dim 8, not 9"):
        module().LanceDB("c", str(tmp_path), 9)
    with pytest.raises(ValueError, match="pass dim"):
        module().LanceDB("other", str(tmp_path))
    base = module().lancedb.connect(str(tmp_path))
    base.create_table("flat", [{"id": "a", "metadata": "{}", "vectors": [1.0, 2.0]}])
    with pytest.raises(Incompatible, match="not written by tokensieve"):
        module().LanceDB("flat", str(tmp_path))


def test_lancedb_takes_many_ids_in_one_commit(tmp_path):
    ids = [str(n) for n in range(2500)]
    with lance(tmp_path) as store:
        before = store.table.version
        store.add([torch.eye(1, DIM)] * len(ids), ids)
        assert store.table.version == before + 1
        assert store.delete(ids[1:]) == 2499
        assert store.table.version == before + 2
        assert list(store.ids()) == ["0"]


def module():
    from tokensieve.retrieval.stores import lancedb

    return lancedb
