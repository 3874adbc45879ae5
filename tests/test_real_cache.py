"""The cache leaderboard of a real model: what is measured of a copy, how it goes on, and what its page says."""

import json
from functools import partial

import numpy as np
import pytest
import torch

import tokensieve as ts
from benchmarks import cache_plot, real_cache, real_page
from benchmarks.real_cache import Step, judged, lines, measure, run
from benchmarks.real_texts import TASKS, Text, Texts
from benchmarks.systems import smollm2
from tests.models import decoder
from tokensieve.sites.cache.recording import record
from tokensieve.sites.model.compatibility import cache_argument, cache_in
from tokensieve.testbed import lm

STEP = Step(48, 2, (0.5,), ("random", "keydiff"))


def some(task, length, number):
    ids = np.random.default_rng((number, len(task))).integers(10, 60, length)
    return Text(ids, length - 6, ((length - 5, length - 3), (length - 2, length)))


@pytest.fixture(scope="module")
def model():
    return decoder()


def test_the_full_cache_says_what_the_model_does(model):
    text = some("code", 48, 0)
    ids = torch.as_tensor(text.ids)[None]
    with torch.no_grad():
        logits = model(ids).logits[0, text.context - 1 : -1].log_softmax(-1)
    gold = ids[0, text.context :]
    nats = -logits.gather(1, gold[:, None])[:, 0]
    found = record(model, ids[:, : text.context])
    row = judged(model, found.full(), found.logits, text)
    assert row["nats"] == pytest.approx(nats[[1, 2, 4, 5]].mean().item(), rel=1e-5)
    right = logits.argmax(-1) == gold
    assert row["right"] == np.mean([right[1:3].all(), right[4:6].all()])
    assert row["bytes"] == 2 * sum(layer.keys.nbytes for layer in found.cache.layers)


def test_a_method_says_what_it_does_in_a_run_of_its_own(model):
    text = some("code", 48, 1)
    row = measure(model, None, text, STEP)["keydiff@0.5"]
    ids = torch.as_tensor(text.ids)[None]
    with torch.no_grad():
        with ts.sieve(model, "keydiff", keep=0.5):
            first = model(ids[:, : text.context], use_cache=True)
        held = ts.cache_bytes(cache_in(first))
        with ts.sieve(model, ts.Plan([])):
            rest = model(ids[:, text.context : -1], **cache_argument(model, cache_in(first)))
    logits = torch.cat([first.logits[0, -1:], rest.logits[0]]).log_softmax(-1)
    nats = -logits.gather(1, ids[0, text.context :, None])[:, 0]
    assert row["nats"] == pytest.approx(nats[[1, 2, 4, 5]].mean().item(), rel=1e-5)
    assert row["bytes"] == held


@pytest.fixture
def measured(model, tmp_path, monkeypatch):
    """A plan of two texts a task on a tiny model, run into a file."""

    class Few:
        def __init__(self, tokenizer):
            self.get = some

    monkeypatch.setattr(real_cache, "PLAN", (STEP,))
    monkeypatch.setattr(real_page, "PLAN", (STEP,))
    monkeypatch.setattr(real_cache, "Texts", Few)
    monkeypatch.setattr(real_cache.real, "load", lambda name: (model, None))
    monkeypatch.setattr(real_cache.real, "get", lambda name: lm.path())
    file = tmp_path / "lines.jsonl"
    run(file)
    return file


def test_a_run_goes_on_where_it_was_stopped(measured, monkeypatch):
    whole = [*lines(measured)]
    assert len(whole) == 1 + 2 * len(TASKS)
    # All tasks have their first text before any has its second.
    assert [line["number"] for line in whole[1:]] == [0] * len(TASKS) + [1] * len(TASKS)
    text = measured.read_text()
    measured.write_text(text[: len(text) * 2 // 3])
    count = len([*lines(measured)])
    calls, plain = [], measure
    monkeypatch.setattr(real_cache, "measure", lambda *args: calls.append(1) or plain(*args))
    run(measured)
    assert len(calls) == len(whole) - count
    assert sorted(lines(measured), key=json.dumps) == sorted(whole, key=json.dumps)


def test_results_of_other_weights_are_not_mixed(measured):
    head, *rest = measured.read_text().splitlines()
    measured.write_text("\n".join([json.dumps(json.loads(head) | {"weights": "other"}), *rest]) + "\n")
    with pytest.raises(ValueError, match="results of other weights; delete it"):
        run(measured)
    measured.write_text("{}\n")
    with pytest.raises(ValueError, match="holds no lines of"):
        run(measured)


def test_the_page_tells_counts_and_what_cannot_be_told_apart(measured, tmp_path, monkeypatch):
    head, *rest = lines(measured)
    page = real_page.page(rest, head)
    assert "### 48 tokens, keep = 0.5\n\n2 of 2 texts a task. Too few for intervals" in page
    row = next(line for line in page.splitlines() if line.startswith("| keydiff"))
    assert row.count("|") == 3 + len(TASKS)
    full = next(line for line in page.splitlines() if line.startswith("| **full**"))
    assert " to " not in row + full
    monkeypatch.setattr("tokensieve.bench.paired.FEWEST", 2)
    row = next(line for line in real_page.page(rest, head).splitlines() if line.startswith("| keydiff"))
    assert row.count(" to ") == len(TASKS)
    monkeypatch.setattr(real_page, "PLOT", tmp_path / "plot.png")
    monkeypatch.setattr(real_page, "plot", partial(cache_plot.plot))
    real_page.draw(rest, 48)
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert "Not reached: 0 of 2 texts a task." in real_page.page([], head)
    assert "goes on where it stopped" in real_page.page(rest[:-1], head)
    assert "goes on where it stopped" not in page


def test_points_of_a_line_are_of_the_same_texts():
    def line(task, number, *budgets, length=48):
        return {
            "task": task,
            "number": number,
            "length": length,
            "rows": {"full": {}} | {f"h2o@{b}": {} for b in budgets},
        }

    both = [x for task in TASKS for x in (line(task, 0, 0.25), line(task, 0, 0.5, 0.1))]
    begun = line("code", 3, 0.9)  # a budget of one task alone is not waited for
    more = [line(task, 1, 0.25) for task in TASKS]
    assert real_page.shared([*both, begun, *more, line("code", 0, 0.25, length=96)], 48) == both
    assert real_page.shared(more, 48) == more


@pytest.fixture
def judges(model, tmp_path, monkeypatch):
    """Checks of systems on a tiny model, four texts a task."""

    class Few:
        def __init__(self, tokenizer):
            self.get = some

    monkeypatch.setattr(smollm2, "FILE", tmp_path / "systems.json")
    monkeypatch.setattr(smollm2, "SAMPLES", 4)
    monkeypatch.setattr(smollm2, "LENGTH", 48)
    monkeypatch.setattr(smollm2, "tried", lambda: {f"{n}@0.5": (ts.get_method(n), 0.5) for n in ("random", "keydiff")})
    monkeypatch.setattr(smollm2, "Texts", Few)
    monkeypatch.setattr(smollm2.real, "load", lambda name, dtype: (model, None))
    monkeypatch.setattr(smollm2.real, "get", lambda name: lm.path())
    cached = smollm2.measured
    cached.cache_clear()
    yield smollm2
    cached.cache_clear()


def test_systems_are_judged_on_copies_of_one_prefill(judges, model, monkeypatch):
    rows = judges.measured()
    assert [*rows] == [f"{task} {i}" for i in range(4) for task in judges.READ + judges.ASKED]
    text = some("code", 48, 2)
    assert rows["code 2"]["keydiff@0.5"] == measure(model, None, text, STEP)["keydiff@0.5"]
    told = judges.told("keydiff@0.5", "random@0.5")
    low, high = told[f"keydiff@0.5 less random@0.5{judges.BETWEEN}"][0]
    assert low < told[f"keydiff@0.5{judges.OF}"][0] - told[f"random@0.5{judges.OF}"][0] < high
    # What was measured is not measured again, and what was not is.
    judges.measured.cache_clear()
    calls, plain = [], judges.compared
    monkeypatch.setattr(judges, "compared", lambda *args: calls.append(1) or plain(*args))
    monkeypatch.setattr(judges, "SAMPLES", 5)
    assert len(judges.measured()) == 20
    assert len(calls) == 4


def test_an_effect_shows_only_where_its_interval_leaves_none_out(judges, monkeypatch):
    nats = {"one": [1.0, 1.1, 1.2, 1.3], "other": [1.2, 1.3, 1.3, 1.6], "like": [0.5, 1.6, 1.0, 1.4]}
    rows = {
        f"{task} {i}": {name: {"nats": some[i], "right": some[i] / 2, "bytes": 1} for name, some in nats.items()}
        for i in range(4)
        for task in judges.READ + judges.ASKED
    }
    monkeypatch.setattr(judges, "measured", lambda: rows)
    assert judges.less("one", "other")
    assert not judges.less("other", "one")
    assert not judges.less("one", "other", "like")
    assert judges.more("other", "one")
    assert not judges.more("one", "other")
    assert not judges.more("other", "one", "like")


def test_better_than_random_is_told_by_its_interval():
    rows = {
        "full": [{"nats": 1.0, "right": 1.0}] * 6,
        "random": [{"nats": 2.0 + i / 10, "right": 0.0} for i in range(6)],
        "good": [{"nats": 1.2 + i / 100, "right": 1.0} for i in range(6)],
        "like": [{"nats": 2.2 + (-1) ** i / 2, "right": 0.0} for i in range(6)],
    }
    assert real_page.cell("code", rows, "full") == "1.00"
    assert "°" not in real_page.cell("code", rows, "good")
    assert real_page.cell("code", rows, "like").endswith("°")
    assert real_page.cell("lists", rows, "good") == "100 (+0 to +0)"
    assert "°" not in real_page.cell("code", rows, "random")
    worse = rows | {"worse": [{"nats": 9.0 + i, "right": 0.0} for i in range(6)]}
    assert real_page.cell("code", worse, "worse").endswith("‡")
    assert "‡" not in real_page.cell("code", rows, "good") + real_page.cell("code", rows, "like")


@pytest.fixture(scope="module")
def texts():
    return Texts(lm.load()[1])


@pytest.mark.parametrize("task", TASKS)
def test_texts_are_what_they_are_said_to_be(texts, task, monkeypatch):
    page = "x\n\nNAME\n\nfoo - says what foo is\n\nSYNOPSIS\n\n" + "foo is called so, and so, and so on. " * 60
    module = "def double(x):\n    return 2 * x\n\n" * 60
    monkeypatch.setitem(vars(texts), "_documents", {"manual": ["short", page, page * 2], "code": [module]})
    monkeypatch.setitem(vars(texts), "reference", np.arange(100, 1100))
    text = texts.get(task, 400, 0)
    assert np.array_equal(text.ids, texts.get(task, 400, 0).ids)
    assert 380 < len(text.ids) <= 400
    assert all(text.context <= a < b <= len(text.ids) for a, b in text.answers)
    told = texts.tokenizer.decode(text.ids[slice(*text.answers[0])])
    if task == "summaries":
        assert told == "says what foo is"
        assert "NAME" not in texts.tokenizer.decode(text.ids)
        with pytest.raises(ValueError, match=r"2 texts of kind 'manual' of 400 tokens, not 3"):
            texts.get(task, 400, 2)
    if task.startswith("facts"):  # what is asked stands in the prompt
        assert told in texts.tokenizer.decode(text.ids[: text.context])
    if task == "lists":
        assert np.isin(text.ids[text.context + 1 :], text.ids[: text.context]).all()
