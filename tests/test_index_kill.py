"""A writer killed at any moment leaves every committed document, and no other."""

import os
import random
import signal
import sys

import pytest
import torch

from tokensieve.retrieval import Index

DIM = 4
KILLS = 50
DEATHS = 24
STEPS = 40

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def vectors(seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1 + seed % 5, DIM, generator=g)


def plan(seed, held):
    """Operations on a dictionary of ids to seeds: what to delete, and what to add or replace."""
    draw = random.Random(seed)
    held = dict(held)
    for step in range(STEPS):
        gone = draw.sample(sorted(held), min(len(held), draw.randrange(4))) if step % 2 else []
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
    found = {i: index.get(i).metadata["seed"] for i in index.ids()}
    assert found in possible[said : said + 2]
    assert len(index) == len(found)
    for i, seed in found.items():
        assert torch.equal(index.get(i).vectors, vectors(seed))
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
