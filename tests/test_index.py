"""The index against a dictionary of documents; damage, limits, locks."""

import json
import os
import resource
import signal
import sys
import tempfile
import warnings

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tokensieve.retrieval import Damaged, Document, Hit, Incompatible, Index, Locked, Ragged, Store, maxsim
from tokensieve.retrieval.index import snapshot
from tokensieve.retrieval.index import writer as writing
from tokensieve.retrieval.storage import FORMATS, files
from tokensieve.testing.stores import BAD

DIM = 8


def docs(count, seed=0, longest=20):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(int(n), DIM, generator=g) for n in torch.randint(1, longest, (count,), generator=g)]


def filled(folder, count=40, codec="float32", **more):
    index = Index.create(folder / "index", DIM, codec, **more)
    vectors = docs(count)
    index.add(vectors, [f"d{i}" for i in range(count)], [{"i": i, "even": i % 2 == 0} for i in range(count)])
    return index, vectors


def names(hits):
    return [h.id for h in hits]


def ranking(query, vectors, ids, k):
    return [ids[i] for i in maxsim(query, vectors).argsort(descending=True)[:k].tolist()]


class Machine(RuleBasedStateMachine):
    """Any order of operations leaves what a dictionary would hold."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.index = Index.create(self.folder.name, DIM, "float32")
        self.held = {}
        self.seed = 0

    def teardown(self):
        self.index.close()
        self.folder.cleanup()

    def some(self, count):
        self.seed += 1
        return docs(count, self.seed, 6)

    @rule(count=st.integers(1, 4))
    def add(self, count):
        vectors = self.some(count)
        self.held |= dict(zip(self.index.add(vectors), vectors, strict=True))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def update(self, data):
        ids = data.draw(st.lists(st.sampled_from(sorted(self.held)), unique=True, min_size=1, max_size=3))
        ids += [f"new{self.seed}"]
        vectors = self.some(len(ids))
        self.index.update(vectors, ids)
        self.held |= dict(zip(ids, vectors, strict=True))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def delete(self, data):
        ids = data.draw(st.lists(st.sampled_from([*sorted(self.held), "nothing"]), unique=True, min_size=1, max_size=4))
        assert self.index.delete(ids) == len(self.held.keys() & set(ids))
        self.held = {k: v for k, v in self.held.items() if k not in ids}

    @rule()
    def compact(self):
        self.index.compact()

    @rule()
    def reopen(self):
        self.index.close()
        self.index = Index.open(self.folder.name)

    @invariant()
    def holds_the_same(self):
        assert len(self.index) == len(self.held)
        assert sorted(self.index.ids()) == sorted(self.held)
        if self.held:
            last = sorted(self.held)[-1]
            assert torch.equal(self.index.get(last).vectors, self.held[last])
            query = torch.ones(2, DIM)
            found = self.index.search(query, k=3)
            assert names(found) == ranking(query, list(self.held.values()), list(self.held), 3)
        assert self.index.verify() == []


TestAnyOrder = Machine.TestCase
TestAnyOrder.settings = settings(max_examples=8, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize("codec", FORMATS)
def test_a_search_scores_what_is_stored(tmp_path, codec):
    index, _ = filled(tmp_path, 60, codec)
    stored = [index.get(f"d{i}").vectors for i in range(60)]
    queries = [torch.randn(n, DIM) for n in (1, 7, 3)]
    for query, hits in zip(queries, index.search(queries, k=5), strict=True):
        best = maxsim(query, stored).sort(descending=True)
        assert [h.score for h in hits] == pytest.approx(best.values[:5].tolist(), abs=1e-2)
        assert [h.score for h in index.search(query, k=5)] == pytest.approx([h.score for h in hits], abs=1e-4)
    reopened = Index.open(index.folder)
    assert reopened.search(queries[0]) == index.search(queries[0])


def test_hits_carry_metadata_and_equals_come_by_id(tmp_path):
    index = Index.create(tmp_path / "i", DIM)
    index.add([torch.ones(1, DIM)] * 3, ["b", "c", "a"], [{"n": 1}, {"n": 2}, {"n": 3}])
    hits = index.search(torch.ones(1, DIM), k=2)
    assert hits == [Hit("a", 8.0, {"n": 3}), Hit("b", 8.0, {"n": 1})]
    assert len(index.search(torch.ones(1, DIM), k=100)) == 3


def test_filters_come_before_scores(tmp_path):
    index, vectors = filled(tmp_path)
    query = torch.randn(3, DIM)
    odd = [i for i in range(40) if i % 2]
    wanted = ranking(query, [vectors[i] for i in odd], [f"d{i}" for i in odd], 15)
    assert names(index.search(query, k=15, where={"even": False})) == wanted
    assert set(names(index.search(query, k=40, where={"i": {"ge": 5, "lt": 8}}))) == {"d5", "d6", "d7"}
    assert set(names(index.search(query, k=40, where={"i": [3, 5, 6], "even": False}))) == {"d3", "d5"}
    assert index.search(query, where={"nothing": 1}) == []
    assert index.search([query, query], where={"i": {"lt": "a"}}) == [[], []]
    with pytest.raises(ValueError, match="unknown operator 'about'"):
        index.search(query, where={"i": {"about": 3}})


def test_a_stream_is_committed_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("tokensieve.retrieval.index.index.SEGMENT", 50)
    index = Index.create(tmp_path / "i", DIM, "int8")
    most = 0

    def stream():
        nonlocal most
        for i in range(60):
            reader = Index.open(index.folder)
            assert len(reader) <= i
            most = max(most, i - len(reader))
            yield Document(f"d{i}", torch.randn(10, DIM), {})

    assert index.extend(stream()) == 60
    assert len(index) == 60
    assert 1 <= most <= 6


def test_many_small_commits_leave_few_segments(tmp_path):
    index = Index.create(tmp_path / "i", DIM, "float32")
    for v in docs(100):
        index.add([v])
    assert len(list(index.folder.glob("*.safetensors"))) < 30
    index.compact()
    assert len(list(index.folder.glob("*.safetensors"))) == 1
    assert sorted(index.ids(), key=int) == [str(i) for i in range(100)]


def test_a_long_document_is_in_one_piece(tmp_path):
    index = Index.create(tmp_path / "i", DIM, "int4")
    index.add([torch.randn(200_000, DIM), torch.randn(1, DIM)], ["long", "short"])
    assert index.search(torch.randn(4, DIM), k=1)[0].id == "long"
    assert len(index.get("long").vectors) == 200_000


def test_a_reader_sees_a_commit_when_it_looks(tmp_path):
    index, vectors = filled(tmp_path)
    reader = Index.open(index.folder)
    index.update([torch.full((1, DIM), 100.0)], ["d0"])
    index.compact()
    assert torch.equal(reader.get("d0").vectors, vectors[0])
    assert len(reader.search(torch.ones(1, DIM), k=50)) == 40
    reader.refresh()
    assert float(reader.get("d0").vectors[0, 0]) == 100
    assert reader.search(torch.ones(1, DIM))[0].id == "d0"


def test_a_reader_looks_again_where_a_writer_was_faster(tmp_path, monkeypatch):
    """Between the manifest and the files that it names, a commit may replace them."""
    index, vectors = filled(tmp_path)
    real, commits, writing = snapshot.read_manifest, [1, 2], []

    def slow(folder):
        manifest = real(folder)
        if commits and not writing:
            writing.append(commits.pop())
            index.update(vectors, [f"d{i}" for i in range(40)])
            writing.clear()
        return manifest

    monkeypatch.setattr(snapshot, "read_manifest", slow)
    reader = Index.open(index.folder)
    assert (reader.damaged, len(reader), commits) == ([], 40, [])


def test_the_second_writer_is_told(tmp_path):
    index, _ = filled(tmp_path)
    other = Index.open(index.folder)
    with pytest.raises(Locked, match="another process or Index"):
        other.add(docs(1))
    index.close()
    other.add(docs(1))
    with pytest.raises(Locked):
        index.delete(["d0"])
    other.close()
    assert index.delete(["d0"]) == 1
    assert len(index) == 40


@pytest.mark.parametrize(("change", "says"), BAD)
def test_a_refused_add_changes_nothing(tmp_path, change, says):
    index, _ = filled(tmp_path)
    before = sorted(p.name for p in index.folder.iterdir())
    with pytest.raises(ValueError, match=says):
        index.add(**({"vectors": docs(1)} | change))
    assert sorted(p.name for p in index.folder.iterdir()) == before
    assert len(index) == 40


def test_other_refusals(tmp_path):
    index, _ = filled(tmp_path, model="minilm")
    for wrong in (0, 2.5, "3", True):
        with pytest.raises(ValueError, match="k must be at least 1"):
            index.search(torch.ones(1, DIM), k=wrong)
    with pytest.raises(ValueError, match="rerank must be at least 0"):
        index.search(torch.ones(1, DIM), rerank=-1)
    for wrong, says in [
        ("words", "is a str"),
        (torch.ones(DIM), r"has shape \(8,\)"),
        (torch.ones(1, DIM).long(), "int64"),
    ]:
        with pytest.raises(ValueError, match=says):
            index.search(wrong)
    for where, says in [({"a": {"in": "abc"}}, "takes a list"), ({1: 2}, "are strings")]:
        with pytest.raises(ValueError, match=says):
            index.search(torch.ones(1, DIM), where=where)
    for wrong in (0, 2):
        with pytest.raises(ValueError, match="goal is a share"):
            index.tune(goal=wrong)
    with pytest.raises(ValueError, match="the index has 8"):
        index.tune(torch.ones(2, 3, DIM + 1))
    with pytest.raises(ValueError, match=r"pass \['d3'\]"):
        index.delete("d3")
    with pytest.raises(ValueError, match="not 3"):
        index.delete([3])
    assert "caf\udce9" not in index
    with pytest.raises(ValueError, match="dim must be at least 1 and whole"):
        Index.create(tmp_path / "x", 8.0)
    with pytest.raises(ValueError, match="without tokens"):
        index.search(torch.ones(0, DIM))
    with pytest.raises(ValueError, match="the index has 8"):
        index.search(torch.ones(1, 5))
    with pytest.raises(KeyError, match="'zz'"):
        index.get("zz")
    with pytest.raises(FileExistsError):
        Index.create(index.folder, DIM)
    with pytest.raises(FileNotFoundError, match="no index"):
        Index.open(tmp_path / "none")
    with pytest.raises(Incompatible, match="'minilm', not 'colbert'"):
        Index.open(index.folder, model="colbert")
    with pytest.raises(Incompatible, match="dim 8, not 9"):
        Index.open(index.folder, dim=9)
    assert Index.open(index.folder, model="minilm", dim=8).model == "minilm"
    assert Index.create(tmp_path / "empty", DIM).search(torch.ones(1, DIM)) == []
    assert Index.create(tmp_path / "none", DIM).search(torch.ones(3, 1, DIM), rerank=5) == [[], [], []]
    with pytest.raises(ValueError, match="no vector format is called"):
        Index.create(tmp_path / "x", DIM, "zip")
    with pytest.raises(ValueError, match="no sketch is called"):
        Index.create(tmp_path / "x", DIM, sketch="haiku")
    assert not (tmp_path / "x").exists()


def test_what_is_not_of_an_index_is_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(FileExistsError, match=r"holds other things \(model.safetensors\)"):
        Index.create(tmp_path / "model", DIM)
    index, _ = filled(tmp_path)
    mine, cut_off = index.folder / "mine.safetensors", index.folder / "000999.safetensors.part"
    mine.write_bytes(b"mine")
    cut_off.write_bytes(b"half")
    index.close()
    index.add(docs(1))
    assert mine.read_bytes() == b"mine"
    assert not cut_off.exists()
    # An index whose making was cut off.
    (tmp_path / "half").mkdir()
    for name in ("lock", "manifest.json.part", "000000.codec"):
        (tmp_path / "half" / name).write_bytes(b"half")
    assert len(Index.create(tmp_path / "half", DIM)) == 0


def test_another_version_is_refused(tmp_path):
    manifest = Index.create(tmp_path / "i", DIM).folder / "manifest.json"
    files.write_json(manifest, files.read_json(manifest) | {"version": 99})
    with pytest.raises(Incompatible, match="version 99"):
        Index.open(tmp_path / "i")


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def place_of(path, tensor, share):
    head = int.from_bytes(path.read_bytes()[:8], "little")
    a, b = json.loads(path.read_bytes()[8 : 8 + head])[tensor]["data_offsets"]
    return 8 + head + a + int(share * (b - a - 1))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_damaged_block_is_named_and_the_rest_searched(tmp_path, monkeypatch, share):
    monkeypatch.setattr("tokensieve.retrieval.index.rows.BLOCK", 64)
    index, vectors = filled(tmp_path)
    index.close()
    (file,) = index.folder.glob("*.safetensors")
    flip(file, place_of(file, "token.codes", share))
    index = Index.open(index.folder)
    query = torch.randn(3, DIM)
    hits = index.search(query, k=40)
    (named,) = index.damaged
    assert file.name in named
    assert "token block" in named
    first, last = (int(w.strip(")")) for w in named.split("documents ")[1].split(" to "))
    assert len(hits) == 40 - (last - first + 1)
    rest = [i for i in range(40) if f"d{i}" in names(hits)]
    assert names(hits) == ranking(query, [vectors[i] for i in rest], [f"d{i}" for i in rest], 40)
    # What cannot be read is neither rewritten nor forgotten.
    index.add(docs(1), ["new"])
    index.compact()
    assert file.exists()
    assert "new" in names(index.search(query, k=40))
    lost = next(f"d{i}" for i in range(40) if f"d{i}" not in names(hits))
    with pytest.raises(Damaged, match="token block"):
        index.get(lost)


@pytest.mark.parametrize("tensor", ["id", "id_ends", "key", "token:offsets", "token:sums", "token:blocks"])
def test_a_segment_without_its_order_is_named_and_the_rest_searched(tmp_path, tensor):
    index, _ = filled(tmp_path)
    index.close()
    (file,) = index.folder.glob("*.safetensors")
    index.add(docs(5, 9), list("abcde"))
    flip(file, place_of(file, tensor, 0.5))
    again = Index.open(index.folder)
    assert set(names(again.search(torch.ones(1, DIM), k=50))) == set("abcde")
    assert file.name in str(again.damaged)
    assert "a" in again
    assert "d1" not in again


def test_damaged_metadata_cost_metadata_only(tmp_path):
    index, _ = filled(tmp_path)
    index.close()
    (file,) = index.folder.glob("*.safetensors")
    flip(file, place_of(file, "meta", 0.5))
    again = Index.open(index.folder)
    hits = again.search(torch.ones(1, DIM), k=50)
    assert len(hits) == 40
    assert hits[0].metadata == {}
    assert "meta" in str(again.damaged)


@pytest.mark.parametrize("how", ["missing", "short", "head"])
def test_a_lost_file_is_named_and_the_rest_searched(tmp_path, how):
    index, _ = filled(tmp_path)
    (file,) = index.folder.glob("*.safetensors")
    index.add(docs(5, 9), list("abcde"))
    index.close()
    if how == "missing":
        file.unlink()
    elif how == "short":
        os.truncate(file, file.stat().st_size - 1)
    else:
        flip(file, 9)
    again = Index.open(index.folder)
    assert set(names(again.search(torch.ones(1, DIM), k=50))) == set("abcde")
    assert file.name in str(again.damaged)


def test_a_damaged_manifest_is_named(tmp_path):
    index, _ = filled(tmp_path)
    index.close()
    flip(index.folder / "manifest.json", 60)
    with pytest.raises(Damaged, match=r"manifest\.json"):
        Index.open(index.folder)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    import pickle

    index, _ = filled(tmp_path, codec="residual2")
    index.delete(["d3"])
    index.close()

    def refuse(*_, **__):
        raise AssertionError

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    again = Index.open(index.folder)
    assert len(again.search(torch.ones(1, DIM), k=50, where={"even": True})) == 20


@pytest.mark.skipif(sys.platform != "linux", reason="limits a child's file size")
@pytest.mark.parametrize("limit", [100, 5_000, 200_000])
def test_a_full_disk_leaves_the_committed_state(tmp_path, limit):
    index, vectors = filled(tmp_path)
    index.close()
    child = os.fork()
    if child == 0:
        good = False
        try:
            torch.set_num_threads(1)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            full = Index.open(index.folder)
            try:
                full.add([torch.randn(30_000, DIM), *docs(2)], ["x", "y", "z"])
            except OSError as problem:
                good = "committed before is intact" in str(problem) and len(full) == 40
                good = good and names(full.search(vectors[3], k=1)) == ["d3"]
        finally:
            os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    again = Index.open(index.folder)
    assert sorted(again.ids()) == sorted(f"d{i}" for i in range(40))
    again.add(docs(1), ["later"])
    assert len(again) == 41
    assert not list(index.folder.glob("*.part"))


def test_a_merge_without_room_does_not_undo_the_commit(tmp_path, monkeypatch):
    index = Index.create(tmp_path / "i", DIM)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(writing.Writer, "_join", full)
    for v in docs(12):
        index.add([v])
    assert len(Index.open(index.folder)) == 12


def test_it_is_a_store(tmp_path):
    assert isinstance(Index.create(tmp_path / "i", DIM), Store)


def test_stats_count_what_is_stored(tmp_path):
    index, vectors = filled(tmp_path, codec="int4")
    index.delete(["d1"])
    stats, tokens = index.stats, sum(len(v) for v in vectors)
    assert (stats["documents"], stats["deleted"], stats["tokens"], stats["codec"]) == (39, 1, tokens, "int4")
    left = tokens - len(vectors[1])
    assert (index.size["vectors"], index.size["vector_bytes"]) == (left, left * (DIM // 2 + 2))
    assert 0 < index.size["sketch_bytes"] < stats["sketch_bytes"]
    assert stats["token_bytes"] == tokens * (DIM // 2 + 2)
    assert stats["file_bytes"] == sum(p.stat().st_size for p in index.folder.glob("*.safetensors"))
    assert 0 < stats["sketch_bytes"] < stats["file_bytes"]


def test_numbers_that_callers_used_are_passed_over(tmp_path):
    index = Index.create(tmp_path / "i", DIM)
    index.add(docs(2), ["1", "2"])
    assert index.add(docs(2)) == ["4", "5"]
    assert index.add(docs(1)) == ["6"]


def test_arrays_ragged_and_half_precision_are_taken(tmp_path):
    index = Index.create(tmp_path / "i", DIM)
    index.add(np.ones((2, 3, DIM), np.float32))
    index.add(torch.ones(2, 3, DIM, dtype=torch.bfloat16))
    index.add(Ragged.of(docs(3)))
    assert len(index) == 7
    assert index.search(np.ones((1, DIM), np.float32), k=1)[0].score >= 8


@pytest.fixture
def loud():
    """Warnings are errors, those too that torch gives once in a process."""
    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    torch.set_warn_always(False)


def test_arrays_that_torch_takes_no_view_of_are_copied(tmp_path, loud):
    index = Index.create(tmp_path / "i", DIM, codec="float32")
    plain = np.random.default_rng(0).standard_normal((3, DIM)).astype("f4")
    fixed = plain.copy()
    fixed.flags.writeable = False
    index.add([fixed, plain[::-1].copy()[::-1], plain.astype(">f4")], ["fixed", "turned", "foreign"])
    index.add(fixed[None], ["whole"])
    hits = index.search(fixed)
    assert [h.id for h in hits] == ["fixed", "foreign", "turned", "whole"]
    assert len({h.score for h in hits}) == 1
    assert torch.equal(index.get("turned").vectors, torch.from_numpy(plain))


def test_no_graph_is_kept_of_vectors_that_are_trained(tmp_path, loud):
    index = Index.create(tmp_path / "i", DIM)
    index.add([torch.ones(2, DIM, requires_grad=True)])
    assert index.search(torch.ones(1, DIM, requires_grad=True))[0].score == DIM
