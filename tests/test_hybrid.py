"""Words beside vectors: BM25 in the segments, phrases, filters, pages of results, many queries."""

from __future__ import annotations

import json
import math
import random
from collections import Counter

import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shelf import Words
from tokensieve.retrieval import Index
from tokensieve.retrieval.index.filters import check, matches
from tokensieve.retrieval.index.lexical import bm25
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.scoring.words import phrases, terms, unquoted
from tokensieve.retrieval.service import application
from tokensieve.retrieval.sources.texts import Text

TEXTS = {
    "args": "Call parse_args to read what was typed.", "server": "An HTTPServer listens, see http.server for more.",
    "fox": "The quick brown fox jumps over the lazy dog.", "dog": "A brown dog is quick, the fox is not.",
    "zh": "什么是缓存雪崩？", "ja": "ファイルを読む方法", "th": "อ่านไฟล์",
    **{f"note{i}": f"note {i} about nothing much" for i in range(20)},
}  # fmt: skip


@pytest.fixture
def shelf(tmp_path):
    made = Library.create(tmp_path / "i", Recipe(keep=1.0, codec="float32"), Words())
    made.put([Text(name, text, {"length": len(text)}) for name, text in TEXTS.items()])
    return made


def names(hits):
    return [h.document for h in hits]


# ---- words


def test_identifiers_are_found_whole_and_by_their_parts():
    assert {"parse_args", "parse", "args"} <= set(terms("parse_args"))
    assert {"httpserver", "http", "server"} <= set(terms("HTTPServer"))
    assert {"os.path.join", "os", "path", "join"} <= set(terms("os.path.join"))
    assert list(terms("缓存雪崩", query=True)) == ["缓存", "存雪", "雪崩"]
    assert list(terms("猫", query=True)) == ["猫"]
    assert "猫" in set(terms("小猫"))
    assert list(terms("ＡＢ")) == ["ab"]
    assert phrases('a "b  C" d "" "e"') == ["b c", "e"]
    assert unquoted('a "b" c') == "a  b  c"
    assert phrases('half "open') == []


@pytest.mark.parametrize(
    ("query", "best"),
    [("parse_args", "args"), ("args", "args"), ("HTTPServer", "server"), ("http.server", "server"), ("雪崩", "zh"),
    ("読む", "ja"), ("ไฟล์", "th")],
)  # fmt: skip
@pytest.mark.parametrize("fuse", ["rrf", 1.0])
def test_what_has_the_word_is_first(shelf, query, best, fuse):
    assert names(shelf.search(query, k=3, fuse=fuse))[0] == best


def by_hand(query, texts):
    """Okapi BM25 as the formula says."""
    bags = [Counter(terms(text)) for text in texts]
    mean = sum(sum(b.values()) for b in bags) / len(bags)
    out = [0.0] * len(bags)
    for term in set(terms(query, query=True)):
        held = sum(term in b for b in bags)
        idf = math.log(1 + (len(bags) - held + 0.5) / (held + 0.5))
        for i, bag in enumerate(bags):
            n = bag[term]
            out[i] += idf * n * 2.2 / (n + 1.2 * (0.25 + 0.75 * sum(bag.values()) / mean))
    return out


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_scores_are_those_of_an_index_made_anew(tmp_path_factory, seed):
    """However it came about: in several commits, with documents replaced and deleted, merged or not."""
    draw = random.Random(seed)
    vocabulary = ["red", "fox", "parse_args", "os.path", "缓存", "blue", "x1"]
    held = {}
    index = Index.create(tmp_path_factory.mktemp("i") / "i", 4, "float32")
    for step in range(6):
        fresh = {f"d{draw.randrange(12)}": " ".join(draw.choices(vocabulary, k=draw.randrange(1, 9))) for _ in range(3)}
        index.update([torch.ones(1, 4)] * len(fresh), list(fresh), [{"text": t} for t in fresh.values()])
        held |= fresh
        gone = draw.sample(sorted(held), 1) if step % 2 else []
        index.delete(gone)
        held = {k: v for k, v in held.items() if k not in gone}
        if step == 4:
            index.compact()
    query = " ".join(draw.choices(vocabulary, k=3))
    views = index._state.views
    got = {}
    for view, scores in zip(views, bm25(views, query, [v.alive for v in views]), strict=True):
        got |= {view.segment.id(d): float(scores[d]) for d in view.alive.nonzero()[:, 0].tolist()}
    want = dict(zip(held, by_hand(query, list(held.values())), strict=True))
    assert got == pytest.approx(want)
    index.close()


def test_counts_of_words_take_the_fewest_bytes_that_hold_them(tmp_path):
    made = Library.create(tmp_path / "i", Recipe(keep=1.0, codec="float32"), Words())
    made.put([Text("few", "a b a"), *(Text(f"n{i}", "c") for i in range(200)), Text("many", "a " * 300)])
    (segment,) = (v.segment for v in made.index._state.views)
    assert {name: str(segment.get(name).dtype) for name in ("word_docs", "word_counts", "word_lengths")} == {
        "word_docs": "torch.int16", "word_counts": "torch.int16", "word_lengths": "torch.int16",
    }  # fmt: skip
    assert names(made.search("a", fuse=1.0, k=2)) == ["many", "few"]
    made.remove(["many"])
    made.index.compact()
    (segment,) = (v.segment for v in made.index._state.views)
    assert str(segment.get("word_counts").dtype) == "torch.int8"
    assert names(made.search("a", fuse=1.0, k=1)) == ["few"]


def test_ranks_of_both_are_fused(shelf):
    query = "quick fox"
    sense, said, both = (names(shelf.search(query, k=50, fuse=fuse)) for fuse in ("none", 1.0, "rrf"))
    held = [n for n in said if set(terms(query)) & set(terms(TEXTS[n]))]
    want = {n: 1 / (61 + i) for i, n in enumerate(sense)}
    for i, n in enumerate(held):
        want[n] += 1 / (61 + i)
    assert both == sorted(want, key=lambda n: (-want[n], f"{n}#0"))
    assert [h.fused for h in shelf.search(query, k=50, fuse="rrf")] == pytest.approx(
        sorted(want.values(), reverse=True)
    )
    assert names(shelf.search(query, k=50, fuse=0.0)) == sense
    for wrong in ("bm25", 1.5, -1, True, None):
        with pytest.raises(ValueError, match=r"fuse=.*; it is 'none', 'rrf' or a share"):
            shelf.search(query, fuse=wrong)


def test_a_phrase_must_stand_in_the_passage(shelf):
    assert set(names(shelf.search("quick brown fox", k=2))) == {"fox", "dog"}
    for fuse in ("none", "rrf", 0.5):
        assert names(shelf.search('"Quick  brown" fox', k=9, fuse=fuse)) == ["fox"]
        assert shelf.search('"fox quick"', k=9, fuse=fuse) == []
        assert names(shelf.search('"缓存" 什么', k=9, fuse=fuse)) == ["zh"]
    assert names(shelf.search('"brown" "lazy dog"', k=9)) == ["fox"]
    hit = shelf.search('the "brown fox"', k=1)[0]
    assert {'the "brown fox"'[slice(*m.query)] for m in hit.matches if m.query} == {"the", "brown", "fox"}


@pytest.mark.parametrize("query", ["the of a", "x", "?", "word " * 200_000, '"', '""', "🐘"])
def test_any_query_is_answered(shelf, query):
    for fuse in ("none", "rrf", 1.0):
        assert len(shelf.search(query, k=3, fuse=fuse)) in (0, 3)


@pytest.mark.parametrize("fuse", ["rrf", 0.5])
def test_what_only_words_find_is_found_and_has_its_score(tmp_path, fuse):
    g = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(400, 3, 8, generator=g), dim=2)
    query = torch.nn.functional.normalize(torch.randn(2, 8, generator=g), dim=1)
    index = Index.create(tmp_path / "i", 8, "int8")
    index.add(vectors, [f"{i:03}" for i in range(400)], [{"text": "common words"}] * 400)
    exact = {hit.id: hit.score for hit in index.search(query, 400, rerank=0)}
    worst = list(exact)[-3:]
    index.update([vectors[int(i)] for i in worst], worst, [{"text": "common words, and a rare one"}] * 3)
    found = index.search(query, 10, words="rare", fuse=fuse, rerank=100)
    assert len(found) == 10
    assert set(worst) <= {hit.id for hit in found}
    assert {hit.id: hit.score for hit in found} == pytest.approx({hit.id: exact[hit.id] for hit in found})
    index.close()


def test_damaged_words_are_named_and_counted_again(shelf):
    folder = shelf.index.folder
    shelf.close()
    (file,) = folder.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    head = 8 + int.from_bytes(data[:8], "little")
    data[head + json.loads(data[8:head])["word_docs"]["data_offsets"][0]] ^= 255
    file.write_bytes(data)
    again = Library.open(folder, Words())
    assert len(again.search("fox", k=50)) == len(TEXTS)
    assert again.search("fox", k=50, fuse="rrf")
    assert "word_docs is damaged" in str(again.index.verify())
    again.index.mend()
    assert again.index.verify() == []
    assert names(again.search("parse_args", k=1, fuse=1.0)) == ["args"]


# ---- pages, many queries


def test_pages_follow_each_other(shelf):
    for fuse in ("none", "rrf"):
        whole = names(shelf.search("fox", k=20, fuse=fuse))
        assert names(shelf.search("fox", k=5, offset=5, fuse=fuse)) == whole[5:10]
        assert shelf.search("fox", k=5, offset=500, fuse=fuse) == []
    best = shelf.search("fox", k=20)
    some = shelf.search("fox", k=20, min_score=best[3].score)
    assert names(some) == [h.document for h in best if h.score >= best[3].score]
    with pytest.raises(ValueError, match="offset must be at least 0"):
        shelf.search("fox", offset=-1)


def test_many_queries_in_one_call(shelf):
    queries = ["fox", '"lazy dog"', "HTTPServer"]
    for how in ({}, {"fuse": "rrf"}, {"where": {"length": {"gt": 30}}}):
        assert shelf.search(queries, k=3, **how) == [shelf.search(q, k=3, **how) for q in queries]
    assert shelf.search([], k=3) == []


def test_the_best_passage_of_each_document(tmp_path):
    shelf = Library.create(tmp_path / "i", Recipe(keep=1.0, codec="float32"), Words())
    long = "\n\n".join(f"The fox number {i} runs. {'Other words. ' * 40}" for i in range(30))
    shelf.put([Text("long", long), Text("a", "A fox."), Text("b", "No animal.")])
    assert set(names(shelf.search("fox", k=3))) == {"long", "a"}
    found = shelf.search("fox", k=3, per_document=True)
    assert sorted(names(found)) == ["a", "b", "long"]
    best = next(h for h in shelf.search("fox", k=50) if h.document == "long")
    assert best.id in [h.id for h in found]
    assert names(shelf.search("fox", k=1, offset=1, per_document=True)) == names(found)[1:2]


# ---- filters

NOTES = {
    "n": 1,
    "flag": True,
    "s": "en",
    "when": "2024-05-01",
    "at": "2024-05-01T12:00:00+02:00",
    "a": {"b": {"c": 3}},
    "l": [1, "x"],
}


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ({"n": 1}, True), ({"n": 1.0}, True), ({"n": True}, False), ({"flag": 1}, False), ({"flag": True}, True),
        ({"flag": {"ge": 0}}, False),
        ({"n": {"in": [True, 2]}}, False), ({"l": {"has": True}}, False), ({"l": {"has": 1}}, True), ({"l": [[1, "x"]]}, True),
        ({"$or": [{"n": 2}, {"s": "en"}]}, True), ({"$or": [{"n": 2}, {"s": "de"}]}, False),
        ({"$and": [{"n": 1}, {"s": "en"}]}, True),
        ({"$not": {"n": 2}}, True), ({"$not": {"n": 1}}, False), ({"n": 1, "$or": [{"s": "x"}]}, False),
        ({"$not": {"$or": [{"n": 2}, {"$and": [{"s": "de"}, {"n": 1}]}]}}, True),
        ({"s": {"prefix": "e"}}, True), ({"s": {"prefix": "n"}}, False), ({"n": {"prefix": ""}}, False),
        ({"s": {"exists": True}}, True), ({"none": {"exists": False}}, True), ({"none": {"exists": True}}, False),
        ({"a.b.c": 3}, True), ({"a.b.d": None}, True), ({"a.b": {"eq": {"c": 3}}}, True), ({"s.x": None}, True),
        ({"when": {"ge": "2024-05-01", "lt": "2024-06-01"}}, True), ({"at": {"lt": "2024-05-01T10:30:00Z"}}, True),
        ({"at": {"gt": "2024-05-01"}}, True), ({"s": {"lt": "fr"}}, True), ({"s": {"lt": 3}}, False), ({}, True),
    ],
)  # fmt: skip
def test_conditions_hold_as_they_say(where, holds):
    check(where)
    assert matches(where, NOTES) is holds


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"a": {"nin": [1]}}, "unknown operator 'nin'; there are eq, ne,.*prefix, exists"),
        ({"$xor": []}, r"unknown operator '\$xor'; there are \$or"),
        ({"$or": {}}, r"\$or takes a list of conditions"), ({"$or": []}, r"\$or takes a list"),
        ({"$not": [1]}, "where must be a dict"),
        ({"a": {"prefix": 1}}, "prefix takes a string"), ({"a": {"exists": 1}}, "exists takes true or false"),
        ({"$and": [{"a": {"x": 1}}]}, "unknown operator 'x'"),
        ({"a": object()}, "no value of JSON"),
    ],
)  # fmt: skip
def test_conditions_that_are_none_are_refused_everywhere_alike(shelf, where, says):
    with pytest.raises(ValueError, match=says):
        shelf.search("fox", where=where)
    client = TestClient(application(shelf, hosts=None))
    if "no value" not in says:
        got = client.post("/search", json={"query": "fox", "where": where})
        assert got.status_code == 422
        with pytest.raises(ValueError, match=says):
            raise ValueError(got.json()["error"]["problem"])
        assert got.json()["error"]["field"] == "where"


def test_dates_are_strings_of_json(shelf):
    from datetime import date

    with pytest.raises(ValueError, match=r"datetime\.date\(2024, 5, 1\) is no value of JSON; pass '2024-05-01'"):
        shelf.search("fox", where={"when": {"eq": date(2024, 5, 1)}})
    deep = {"n": 1}
    for _ in range(50):
        deep = {"$not": deep}
    with pytest.raises(ValueError, match="more than 16 deep"):
        shelf.search("fox", where=deep)


def test_a_field_that_no_document_has_is_told(shelf):
    assert shelf.notes("fox", {"lenght": 3, "$or": [{"length": 4}, {"sufix": 1}]}) == (
        "no document has the field 'lenght'", "no document has the field 'sufix'"
    )  # fmt: skip
    got = (
        TestClient(application(shelf, hosts=None))
        .post("/search", json={"query": "fox", "where": {"sufix": ".md"}})
        .json()
    )
    assert (got["hits"], got["notes"]) == ([], ["no document has the field 'sufix'"])


def test_names_of_operators_are_no_metadata(tmp_path):
    index = Index.create(tmp_path / "i", 4)
    for note in ({"$or": 1}, {"a": {"$x": 1}}, {"a": [{"$x": 1}]}):
        with pytest.raises(ValueError, match=r"names that begin with \$ are operators"):
            index.add([torch.ones(1, 4)], metadata=[note])


# ---- over HTTP


def test_the_service_takes_the_same_words(shelf):
    client = TestClient(application(shelf, hosts=None))

    def ask(path="search", **body):
        return client.post(f"/{path}", json=body)

    got = ask(query="parse_args", fuse="rrf", k=2).json()["hits"]
    assert [(h["document"], h["fused"]) for h in got] == [
        (h.document, h.fused) for h in shelf.search("parse_args", 2, fuse="rrf")
    ]
    several = ask("searches", query=["fox", '"lazy dog"'], k=2, fuse=0.5).json()["answers"]
    assert [[h["document"] for h in a["hits"]] for a in several] == [
        names(hits) for hits in shelf.search(["fox", '"lazy dog"'], 2, fuse=0.5)
    ]
    assert len(ask(query="fox", k=3, offset=25).json()["hits"]) == len(TEXTS) - 25
    assert ask(query="fox", min_score=99.0).json()["hits"] == []
    assert ask(query="fox", fuse="bm25").status_code == ask(query="fox", fuse=1.5).status_code == 422
    assert ask(query="  ").json()["error"] == {
        "field": "query",
        "problem": "it is empty; pass at least one word",
        "line": None,
    }
    bad = client.post("/search", content="{bad", headers={"Content-Type": "application/json"}).json()["error"]
    assert bad["field"] == "body"
    assert bad["problem"].startswith("it is no JSON")
    assert client.head("/").status_code == 200
    line = '{"id": "n", "text": "nested", "metadata": {"a": {"b": 1}}}'
    assert (
        client.post("/documents", content=line, headers={"Content-Type": "application/x-ndjson"}).json()["written"] == 1
    )
    assert [h["document"] for h in ask(query="x", where={"a.b": 1}).json()["hits"]] == ["n"]
