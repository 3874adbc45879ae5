"""Stores on databases against the embedded Index; each is skipped where its package is not installed."""

import pytest
import torch

from tokensieve.retrieval import Hit, Incompatible, Index, Store, maxsim

DIM = 8
NOTES = [
    {"i": 0, "lang": "en"},
    {"i": 1, "lang": "de", "tags": ["io", "net"]},
    {"i": 2.0, "lang": ["en"]},
    {"lang": None},
]
PLAIN = [
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
]


def docs(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        torch.nn.functional.normalize(torch.randn(int(n), DIM, generator=g), dim=1)
        for n in torch.randint(1, 9, (count,), generator=g)
    ]


def qdrant(folder=None):
    pytest.importorskip("qdrant_client")
    from tokensieve.retrieval.stores.qdrant import Qdrant

    return Qdrant("c", DIM, **({"path": str(folder)} if folder else {"location": ":memory:"}))


def lance(folder):
    pytest.importorskip("lancedb")
    from tokensieve.retrieval.stores.lancedb import LanceDB

    return LanceDB("c", str(folder), DIM)


KINDS = {"qdrant": lambda folder: qdrant(), "lancedb": lance}


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    with KINDS[request.param](tmp_path / "store") as made:
        yield made


def same(found, wanted):
    """Scores may differ in their last digits, and so the order of those that do not differ otherwise."""
    assert [h.id for h in found] == [h.id for h in wanted]
    assert [h.metadata for h in found] == [h.metadata for h in wanted]
    assert [h.score for h in found] == pytest.approx([h.score for h in wanted], abs=1e-5)


def notes(count, kinds=2):
    return [NOTES[n % kinds] | {"i": n, "name": f"part {n}"} for n in range(count)]


@pytest.fixture
def both(store, tmp_path):
    """The same documents in a store and in an Index."""
    index = Index.create(tmp_path / "index", DIM, "float32")
    for held in (store, index):
        held.add(docs(30), [f"d{n}" for n in range(30)], notes(30))
        held.add(docs(2, 1), ["none", "empty"], [{"lang": None}, {}])
    return store, index


def test_it_is_a_store(store):
    assert isinstance(store, Store)
    assert store.search(torch.ones(1, DIM) / DIM**0.5) == []
    assert (len(store), list(store.ids()), store.dim) == (0, [], DIM)


@pytest.mark.parametrize("where", PLAIN, ids=str)
def test_filters_admit_what_the_index_admits(both, where):
    store, index = both
    query = docs(3, 5)[0]
    same(store.search(query, 50, where), index.search(query, 50, where))


def test_searches_find_what_the_index_finds(both):
    store, index = both
    queries = docs(5, 7)
    for found, wanted in zip(store.search(queries, 7), index.search(queries, 7), strict=True):
        same(found, wanted)
    assert len(store.search(queries[0], 100)) == 32
    assert store.search(queries[0], 1)[0].score == pytest.approx(float(maxsim(queries[0], docs(30)).max()), abs=1e-5)


def test_changes_change_both_alike(both):
    store, index = both
    query = docs(1, 9)[0]
    for held in both:
        assert held.update(docs(3, 3), ["d1", "d2", "new"], [{"lang": "fr"}] * 3) == ["d1", "d2", "new"]
        assert held.delete(["d5", "d6", "nobody", "d5"]) == 2
    same(store.search(query, 40), index.search(query, 40))
    assert set(store.ids()) == set(index.ids())
    assert len(store) == len(index) == 31
    assert "new" in store
    assert "d5" not in store
    got = store.get("d2")
    assert torch.allclose(got.vectors, docs(3, 3)[1])
    assert (got.id, got.metadata) == ("d2", {"lang": "fr"})
    with pytest.raises(KeyError, match="'d5'"):
        store.get("d5")


def test_equals_come_by_id(store):
    one = torch.eye(1, DIM)
    ids = [f"{n:02}" for n in range(40)]
    store.add([one] * 40, ids[::-1], [{"n": 1}] * 40)
    assert store.search(one, 3) == [Hit(i, 1.0, {"n": 1}) for i in ids[:3]]


def test_numbers_that_callers_used_are_passed_over(store):
    assert store.add(docs(2)) == ["0", "1"]
    store.update(docs(1), ["3"])
    names = store.add(docs(2))
    assert len(set(names) | {"0", "1", "3"}) == len(store) == 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vectors": [torch.zeros(2, 3)]}, "3 dimensions"),
        ({"vectors": [docs(1)[0], torch.zeros(0, DIM)]}, "document 1 has no tokens"),
        ({"vectors": [torch.full((2, DIM), torch.nan)]}, "document 0 holds NaN"),
        ({"ids": ["d3"]}, "'d3' is in the index"),
        ({"ids": [7]}, "not 7"),
        ({"ids": [None]}, "not None"),
        ({"ids": "d"}, r"pass \['d'\]"),
        ({"ids": [""]}, "non-empty"),
        ({"ids": ["caf\udce9"]}, "Unicode"),
        ({"vectors": docs(2), "ids": ["x", "x"]}, "'x' is given twice"),
        ({"ids": ["x", "y"]}, "1 documents, 2 ids"),
        ({"metadata": [{"a": object()}]}, "metadata of document 0"),
        ({"metadata": [{"a": float("nan")}]}, "metadata of document 0"),
        ({"metadata": [{1: 2}]}, "names of fields are strings"),
        ({"vectors": torch.ones(1, 2, DIM).long()}, "hold torch.int64"),
        ({"vectors": [torch.ones(2, DIM).to(torch.float8_e4m3fn)]}, "hold torch.float8_e4m3fn"),
        ({"vectors": [torch.ones(2, DIM).double() * 1e300]}, "document 0 holds NaN or infinite"),
    ],
)
def test_a_refused_add_changes_nothing(both, change, says):
    store, _ = both
    with pytest.raises(ValueError, match=says):
        store.add(**({"vectors": docs(1)} | change))
    assert len(store) == 32


def test_other_refusals(both):
    store, _ = both
    query = docs(1)[0]
    for arguments, says in [
        ({"k": 0}, "k must be at least 1"),
        ({"where": {"lang": {"in": "english"}}}, "takes a list"),
        ({"where": {"i": {"about": 3}}}, "unknown operator 'about'"),
        ({"where": {"lang": {"eq": {"a": 1}}}}, "no words for"),
        ({"where": {"": 1}}, "no words for"),
        ({"query": query[:, :3]}, "3 dimensions"),
        ({"query": query[:0]}, "without tokens"),
    ]:
        with pytest.raises(ValueError, match=says):
            store.search(**({"query": query} | arguments))


def test_qdrant_keeps_lists_and_words_apart(tmp_path):
    query = docs(1, 5)[0]
    with qdrant() as store, Index.create(tmp_path / "index", DIM, "float32") as index:
        for held in (store, index):
            held.add(docs(4), list("abcd"), NOTES)
        for where in [
            *PLAIN,
            {"tags": {"has": "io"}},
            {"tags": {"has": "n"}},
            {"i": {"has": 1}},
        ]:
            same(store.search(query, 9, where), index.search(query, 9, where))
        with pytest.raises(ValueError, match="no words for has 'e' of a string"):
            store.search(query, where={"lang": {"has": "e"}})
        with pytest.raises(ValueError, match="no words for fields with quotes"):
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
    {'a"b': 1, "c.d": "2", "e f": 3, "g[0]": 5, "$": [6], "h'i": 7, "ü": None, "a\\b": 8},
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
                if limit is not None and (operator, limit) not in NOT_SAID:
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
    lists = [
        {"x": v} for v in (["en", "2"], [2], [2.0, 3.5], [], 2, ["e"], ['a"b'], [1], [True], [0.0, None], [1e25])
    ] + [{"$": [6]}]
    with lance(tmp_path / "store") as store, Index.create(tmp_path / "index", DIM, "float32") as index:
        for held in (store, index):
            held.add(docs(len(lists)), [str(i) for i in range(len(lists))], lists)
        for where in [{"x": {"has": v}} for v in ("en", "e", "2", 2, 2.0, 'a"b', 1, True, False, 1e25)] + [
            {"$": {"has": 6}}
        ]:
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
