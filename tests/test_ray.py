"""Shards built and searched by several processes of Ray, some of which are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.shelf import Words, laid
from tests.test_shards import TEXTS, rounded
from tokensieve.cli.main import app
from tokensieve.retrieval import Incompatible, IndexProblem
from tokensieve.retrieval.encoders import loading
from tokensieve.retrieval.index import put
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.index.sync import mirror as mirror_whole
from tokensieve.retrieval.shards import Collection, Shards, build, mirror

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
RECIPE = Recipe(codec="int4", keep=0.5)
QUERIES = ["read a file", "note number 4", "word 7 7 here", "cat"]


@pytest.fixture
def docs(tmp_path):
    return laid(tmp_path / "docs", TEXTS)


def test_by_command(tmp_path, docs):
    """A model's folder, and a cluster of this machine that each command makes for itself."""
    import torch
    from transformers import BertConfig, BertModel

    from tokensieve.retrieval.encoders import loading

    (tmp_path / "model").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(loading._minilm() / name, tmp_path / "model" / name)
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    BertModel(config).save_pretrained(tmp_path / "model")
    how = ("--keep", "1.0", "--codec", "float32", "--encoder", tmp_path / "model", "--json")

    def call(*args):
        done = CliRunner().invoke(app, [str(a) for a in args])
        assert done.exit_code == 0, (done.output, done.exception)
        return json.loads(done.stdout)

    one = call("index", docs, "--out", tmp_path / "whole.index", *how)
    many = call("index", docs, "--out", tmp_path / "shards", *how, "--shards", "2", "--ray", "local")
    assert (many["passages"], many["vectors"]) == (one["passages"], one["vectors"])
    wanted = call("search", tmp_path / "whole.index", QUERIES[0], "--json")
    for more in ((), ("--ray", "local")):
        found = call("search", tmp_path / "shards", QUERIES[0], "--json", *more)
        assert found[0]["id"] == wanted[0]["id"]
        assert [f["score"] for f in found] == pytest.approx([f["score"] for f in wanted], abs=1e-4)


@pytest.fixture(scope="module")
def cluster():
    """Three processes at a time."""
    from tokensieve.retrieval.shards import cluster

    ray.init(num_cpus=3, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    yield cluster
    ray.shutdown()


@pytest.fixture
def whole(tmp_path, docs):
    made = Library.create(tmp_path / "whole", RECIPE, Words())
    mirror_whole(made, docs)
    return made


def claim(marker: Path) -> bool:
    """True for the first to ask."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def by_words(work, diary: Path, dies=lambda job: False):
    """The work in a worker, whose encoder is a small one; some workers are killed after their fourth commit."""

    def done(job):
        build._encoder.cache_clear()
        loading.load_encoder = lambda source=None, **_: Words()
        put.COMMIT = 4
        with open(diary, "a") as file:
            file.write(f"{job.number} {os.getpid()}\n")
        if not dies(job):
            return work(job)
        plain, commits = Library._commit, []

        def commit(self, rows, done):
            plain(self, rows, done)
            commits.append(len(rows))
            if len(commits) == 4:
                os.kill(os.getpid(), signal.SIGKILL)

        Library._commit = commit
        return work(job)

    return done


def equal(whole, shards, parts):
    with Collection.open(shards.folder, parts, Words()) as collection:
        assert len(collection) == len(whole)
        for query in QUERIES:
            found, wanted = (rounded(c.search(query, 7, rerank=0)) for c in (collection, whole))
            assert found == wanted


def test_a_worker_is_killed_in_the_middle_of_a_build(tmp_path, docs, whole, cluster):
    shards = Shards.create(tmp_path / "shards", RECIPE, 4)
    number, marker, diary = shards.of(["long.txt"])[0], tmp_path / "killed", tmp_path / "diary"
    dies = lambda job: job.number == number and claim(marker)  # noqa: E731
    report = mirror(shards, docs, lambda work, jobs: cluster.run(by_words(work, diary, dies), jobs))
    tries = [line.split() for line in diary.read_text().splitlines()]
    assert sorted(int(n) for n, _ in tries) == sorted([0, 1, 2, 3, number])
    assert len({pid for n, pid in tries if int(n) == number}) == 2
    # The second try has passed over what the first had committed.
    assert (report.files, report.passages) == (len(TEXTS), len(whole))
    assert report.unchanged > 0
    ids = [i for n in range(4) for i in Library.open(shards.at(n), Words()).index.ids()]
    assert sorted(ids) == sorted(whole.index.ids())
    equal(whole, Shards.open(shards.folder), cluster.Actors)


@pytest.mark.parametrize("call", ["search", "with_vectors"])
def test_an_actor_is_killed_in_the_middle_of_a_search(tmp_path, docs, whole, cluster, monkeypatch, call):
    shards = Shards.create(tmp_path / "shards", RECIPE, 3)
    monkeypatch.setattr(build, "_encoder", lambda source: Words())
    mirror(shards, docs)
    marker, plain = tmp_path / "killed", getattr(cluster.Part, call)

    def dying(self, *arguments):
        if claim(marker):
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, *arguments)

    monkeypatch.setattr(cluster, "Part", type("Dying", (cluster.Part,), {call: dying}))
    equal(whole, shards, cluster.Actors)
    assert marker.exists()


def test_what_a_worker_cannot_do_is_said(tmp_path, docs, cluster):
    shards = Shards.create(tmp_path / "shards", RECIPE, 2)
    (tmp_path / "shards" / "0001").mkdir()
    (tmp_path / "shards" / "0001" / "manifest.json").write_text("{}")
    with pytest.raises(Incompatible, match="vectors without texts"):
        mirror(shards, docs, lambda work, jobs: cluster.run(by_words(work, tmp_path / "diary"), jobs))
    with pytest.raises(IndexProblem, match="cannot be searched"):
        cluster.Actors([tmp_path / "nowhere"]).ask("size")
