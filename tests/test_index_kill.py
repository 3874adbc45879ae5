"""A writer killed at any moment leaves every committed document, and no other."""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from tests.shelf import Words, laid
from tokensieve.retrieval import Index
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.index.sync import mirror
from tokensieve.retrieval.sources.texts import Text
from tokensieve.retrieval.storage import files

DIM = 4
KILLS = 50
DEATHS = 24
STEPS = 24

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def vectors(seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1 + seed % 5, DIM, generator=g)


def plan(seed, held):
    """Operations on a dictionary of ids to seeds: what to delete, and what to add or replace."""
    draw = random.Random(seed)
    held = dict(held)
    for step in range(STEPS):
        gone = draw.sample(sorted(held), min(len(held), draw.randrange(8))) if step % 2 else []
        fresh = {f"{seed}-{step}-{i}": draw.randrange(10**6) for i in range(draw.randrange(0, 4))}
        if gone and draw.random() < 0.5:
            fresh |= {gone[0]: draw.randrange(10**6)}
            gone = gone[1:]
        yield gone, fresh
        for i in gone:
            del held[i]
        held |= fresh


def states(seed, held):
    """What an index holds after each commit of the plan."""
    out = [dict(held)]
    for gone, fresh in plan(seed, held):
        if gone:
            out.append({k: v for k, v in out[-1].items() if k not in gone})
        if fresh:
            out.append(out[-1] | fresh)
    return out


def work(folder, seed, held, say):
    index = Index.open(folder)
    say()
    for gone, fresh in plan(seed, held):
        if gone:
            index.delete(gone)
            say()
        if fresh:
            index.update([vectors(s) for s in fresh.values()], list(fresh), [{"seed": s} for s in fresh.values()])
            say()
    index.close()


def child(job):
    """Run it in a process of its own, and return that and the pipe it writes to."""
    out, into = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(out)
        torch.set_num_threads(1)
        try:
            job(lambda: os.write(into, b"."))
        finally:
            os._exit(1)
    os.close(into)
    return process, out


def committed(folder, said, possible):
    """The state found, which must be the last one said or the one after it."""
    index = Index.open(folder)
    stored = {i: index.get(i) for i in index.ids()}
    found = {i: d.metadata["seed"] for i, d in stored.items()}
    assert found in possible[said : said + 2]
    assert len(index) == len(found)
    assert all(torch.equal(d.vectors, vectors(found[i])) for i, d in stored.items())
    assert index.verify() == []
    assert len(index.search(torch.ones(1, DIM), k=10**6)) == len(found)
    return found


def test_killed_at_random_moments(tmp_path):
    draw = random.Random(0)
    folder = tmp_path / "index"
    Index.create(folder, DIM, "float32")
    held, cut = {}, 0
    for turn in range(KILLS):
        possible = states(turn, held)
        process, pipe = child(lambda say, turn=turn, held=held: work(folder, turn, held, say))
        said = b""
        for _ in range(draw.randrange(1, len(possible) // 2)):
            said += os.read(pipe, 1)
        # Somewhere within the commit after that.
        for _ in range(draw.randrange(100_000)):
            pass
        os.kill(process, signal.SIGKILL)
        cut += os.WIFSIGNALED(os.waitpid(process, 0)[1])
        while more := os.read(pipe, 100):
            said += more
        os.close(pipe)
        held = committed(folder, len(said) - 1, possible)
    assert cut == KILLS
    assert held


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_killed_at_each_step_of_a_commit(tmp_path, call):
    """Deaths before and after each renaming and flushing of the first commits."""
    folder = tmp_path / "index"
    Index.create(folder, DIM, "float32")
    held, deaths = {}, 0
    for turn in range(DEATHS):
        possible = states(turn, held)

        def job(say, turn=turn, held=held):
            plain, left = getattr(os, call), [1 + turn // 2]

            def dying(*args, **kwargs):
                left[0] -= 1
                if left[0] == 0 and turn % 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                plain(*args, **kwargs)
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            setattr(os, call, dying)
            work(folder, turn, held, say)

        process, pipe = child(job)
        deaths += os.WIFSIGNALED(os.waitpid(process, 0)[1])
        said = len(os.read(pipe, 1000))
        os.close(pipe)
        held = committed(folder, max(said - 1, 0), possible)
    assert deaths == DEATHS


# ---- making, repairing, compacting, upgrading


def died(job, call, number, before):
    """Do it in a process that dies at a call of the system, before or after it; whether it did."""

    def until(say):
        plain, left = getattr(os, call), [number]

        def dying(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0 and before:
                os.kill(os.getpid(), signal.SIGKILL)
            plain(*args, **kwargs)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(os, call, dying)
        job()
        os._exit(0)

    process, pipe = child(until)
    os.close(pipe)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


MOMENTS = [("replace", True), ("fsync", False)]


def shelved(folder):
    return Library.create(folder, Recipe(keep=1.0, codec="residual2"), Words())


def good(folder, docs, count):
    """Whatever was interrupted, the same command goes on, and all is there once."""
    shelf = Library.open(folder, Words()) if (folder / "manifest.json").exists() else shelved(folder)
    report = mirror(shelf, docs)
    shelf.close()
    assert (report.passages, len(shelf)) == (count, count)
    assert shelf.names() == {p.name for p in docs.iterdir()}
    assert shelf.index.verify() == []
    assert len({h.document for h in shelf.search("subject", k=99)}) == count
    assert files.read_json(folder / "manifest.json")["codec"] == files.read_json(folder / "library.json")["codec"]
    assert not list(folder.glob("*.part"))


@pytest.fixture
def docs(tmp_path):
    return laid(tmp_path / "docs", {f"{i}.txt": f"Text {i} is about subject {i * i}." for i in range(9)})


@pytest.mark.parametrize(("call", "before"), MOMENTS)
def test_killed_while_it_is_made(tmp_path, docs, call, before):
    deaths = 0
    for number in range(1, 9):
        folder = tmp_path / str(number)
        deaths += died(lambda folder=folder: mirror(shelved(folder), docs), call, number, before)
        good(folder, docs, 9)
    assert deaths >= 5


def broken(tmp_path, docs, name):
    """An index with a block that is not what was written, a lost segment and much that is deleted."""
    folder = tmp_path / name
    shelf = shelved(folder)
    for part in (("0.txt", "1.txt", "2.txt", "3.txt"), ("4.txt", "5.txt", "6.txt"), ("7.txt", "8.txt")):
        shelf.put([Text(n, (docs / n).read_text(), {"kind": "file", "suffix": ".txt"}, file=True) for n in part])
    shelf.remove(["1.txt"])
    shelf.close()
    first, second, _ = sorted(folder.glob("*.safetensors"))
    data = bytearray(first.read_bytes())
    head = 8 + int.from_bytes(data[:8], "little")
    data[head + json.loads(data[8:head])["token.codes"]["data_offsets"][0]] ^= 255
    first.write_bytes(data)
    second.unlink()
    return folder


@pytest.mark.parametrize(("call", "before"), MOMENTS)
def test_killed_while_it_is_repaired(tmp_path, docs, call, before):
    deaths = 0
    for number in range(1, 9):
        folder = broken(tmp_path, docs, str(number))
        deaths += died(lambda folder=folder: mirror(Library.open(folder, Words()), docs), call, number, before)
        good(folder, docs, 9)
    assert deaths >= 5


@pytest.mark.parametrize(("call", "before"), MOMENTS)
def test_killed_while_it_is_compacted(tmp_path, docs, call, before):
    deaths = 0
    for number in range(1, 5):
        folder = tmp_path / str(number)
        shelf = shelved(folder)
        for name in sorted(p.name for p in docs.iterdir()):
            shelf.put([Text(name, (docs / name).read_text(), {"kind": "file", "suffix": ".txt"}, file=True)])
        shelf.remove(["4.txt"])
        shelf.close()
        deaths += died(lambda folder=folder: Index.open(folder).compact(), call, number, before)
        held = Library.open(folder, Words())
        assert held.index.verify() == []
        assert held.names() == {p.name for p in docs.iterdir()} - {"4.txt"}
        good(folder, docs, 9)
    assert deaths >= 2


@pytest.mark.parametrize(("call", "before"), MOMENTS)
def test_killed_while_it_is_brought_to_this_format(tmp_path, call, before):
    docs = laid(
        tmp_path / "docs",
        {"read.md": "# Reading\n\nOpen a file and read it line by line.\n", "new.md": "Something new."},
    )
    deaths = 0
    for number in range(1, 7):
        folder = tmp_path / str(number)
        shutil.copytree(Path(__file__).parent / "index_1", folder)
        deaths += died(lambda folder=folder: mirror(Library.open(folder, Words()), docs), call, number, before)
        held = Library.open(folder, Words())
        assert held.index.verify() == []
        assert {"read.md", "attachment-7", "letter.txt"} <= held.names()
        mirror(held, docs)
        held.close()
        assert held.names() == {"read.md", "new.md", "attachment-7", "letter.txt"}
        assert files.read_json(folder / "manifest.json")["version"] == 2
    assert deaths >= 4
