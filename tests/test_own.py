"""People's own questions under one plan after another: what is said, what it costs, and what it is held against."""

import copy
import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import tokensieve as ts
from benchmarks import own_cost
from tests.asking import talking_subject
from tokensieve.bench import columns, equal
from tokensieve.bench.answers import Answers
from tokensieve.bench.asking import QuestionPrompts
from tokensieve.bench.equal import FULL, WHOLE, Cell, Shape
from tokensieve.bench.own import _questions_rows
from tokensieve.bench.questions import Question
from tokensieve.bench.results import OwnSettings, Results, beats_random
from tokensieve.bench.rounds import Rounds
from tokensieve.sites.model.structure import find

SHAPE = Shape(64, 11)
SETTINGS = OwnSettings("fake", "q.jsonl", "", 6, 0, 4, 3, "float32", "cpu", "exact", "mean")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Peak memory is no question here, and a collection takes longer than all else."""
    monkeypatch.setattr("tokensieve.bench.clocks.gc.collect", lambda: 0)


@pytest.fixture(scope="module")
def subject():
    return talking_subject()


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    files = [folder / f"{i}.png" for i in range(6)]
    for file in files:
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(file)
    return [Question(f"q{i}", "what ?", ("0",), (f,), kind="ab"[i % 2], mark=str(i)) for i, f in enumerate(files)]


def cells(model, *names, keep=16, how="mean"):
    return equal.cells(model, ["random", *names], [keep], how, SHAPE)[0]


def rounds(subject, items, tmp_path, made, work=None, **changes):
    results = Results.open(tmp_path, replace(SETTINGS, **changes), [], [q.to_json() for q in items])
    return Rounds(results, work or Answers(subject, "exact", 3, 0), made)


# ---- plans at equal cost ------------------------------------------------------------------------------------------------


def test_plans_reach_the_same_mean_or_stand_at_their_least_unranked(subject):
    model = subject.model
    made = {c.method: c for c in cells(model, "fastv", "pyramiddrop", keep=40)}
    for cell in made.values():
        assert ts.cost(model, cell.plan, tokens=64).mean == pytest.approx(40, abs=1.5), cell.method
        assert not cell.unranked
    least = next(c for c in cells(model, "fastv", keep=16) if c.method == "fastv")
    assert "cannot reach 16 mean tokens, its least is 32.5" in least.unranked
    assert ts.cost(model, least.plan, tokens=64).mean == 32.5
    share = next(c for c in cells(model, "fastv", keep=0.75) if c.method == "fastv")
    assert ts.cost(model, share.plan, tokens=64).mean == pytest.approx(48)
    label = next(c for c in cells(model, "fastv", how="label") if c.method == "fastv")
    assert ts.cost(model, label.plan, tokens=64).final == 16


def test_plans_reach_the_same_flops(subject):
    made = cells(subject.model, "fastv", "divprune", keep=0.8, how="flops")
    costs = [ts.cost(subject.model, c.plan, tokens=64, text=11) for c in made]
    assert all(0.75 <= c.flops / c.full_flops <= 0.8 for c in costs)
    with pytest.raises(ValueError, match="must be a share"):
        cells(subject.model, "divprune", keep=16, how="flops")


def test_a_method_that_does_not_fit_the_model_is_left_out_by_name(subject):
    made, left = equal.cells(subject.model, ["divprune", "trimmed-llama"], [16], "mean", SHAPE)
    assert [c.key for c in made] == ["divprune@16"]
    assert "0 layers" in left["trimmed-llama"]


def test_plans_from_files(subject, tmp_path):
    ts.plan("fastv", 16).save(tmp_path / "mine.json")
    assert [(c.key, c.keep) for c in equal.from_files(subject.model, [tmp_path / "mine.json"])] == [("mine", 16)]
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other.json: it is no plan"):
        equal.from_files(subject.model, [tmp_path / "other.json"])
    with pytest.raises(FileNotFoundError, match="no such file"):
        equal.from_files(subject.model, [tmp_path / "nowhere.json"])
    ts.Plan(ts.stage("fastv", 16, layers=30)).save(tmp_path / "deep.json")
    with pytest.raises(ValueError, match=r"deep.json is for another architecture: .*layer"):
        equal.from_files(subject.model, [tmp_path / "deep.json"])


def test_random_is_added_where_none_has_the_same_cost():
    plan, cache = ts.plan("fastv", 16), ts.plan("snapkv", 0.25)
    here = [Cell("random@16", "random", 16, ts.plan("random", 16)), Cell("fastv@16", "fastv", 16, plan)]
    (new,) = equal.random_beside({"random@16": 0.25, "fastv@16": 0.625}, here)
    assert (new.key, new.keep, new.added) == ("random@=0.625", 0.625, True)
    assert equal.random_beside({"random@16": 0.25, "fastv@16": 0.254}, here) == []
    assert equal.random_beside({"random@16": 0.25, "fastv@16": 0.995}, here) == []
    held = [Cell("random@0.2", "random", 0.2, ts.plan("random", 0.2, site="cache")), Cell("z", "zipcache", 0.2, cache)]
    (new,) = equal.random_beside({"random@0.2": 0.25, "z": 0.125}, held)
    assert (new.keep, new.plan.stages[0].site) == (0.1, "cache")
    costs = {"random@16": 0.25, "random@=0.625": 0.62, "fastv@16": 0.625}
    every = [*here, Cell("random@=0.625", "random", 0.625, plan)]
    assert equal.nearest_random(every[1], costs, every).key == "random@=0.625"
    assert equal.nearest_random(every[1], {"random@16": 0.25, "fastv@16": 0.625}, here) is None
    assert equal.nearest_random(here[0], costs, every) is None


# ---- asking -------------------------------------------------------------------------------------------------------------


def test_the_encoder_runs_once_an_image_for_all_plans_that_leave_it_as_it_is(subject, items, tmp_path):
    rows, root = [], find(subject.model).vision.root
    handle = root.register_forward_pre_hook(
        lambda m, args, kwargs: rows.append(len(kwargs.get("pixel_values", args[0] if args else None))),
        with_kwargs=True,
    )
    made = cells(subject.model, "visionzip", "divprune", "fastervlm", "fastv")
    run = rounds(subject, items, tmp_path, made)
    run.run(items, 4)
    assert rows == [4, 2]
    assert [c.key for c in run.cells if c.added] == ["random@=0.5078"]
    tome = cells(subject.model, "tome")
    rows.clear()
    rounds(subject, items, tmp_path / "tome", tome).run(items, 4)
    handle.remove()
    assert rows == [4, 4, 2, 2]


def test_answers_are_those_of_the_model_under_each_plan(subject, items):
    work = Answers(subject, "exact", 3, 0)
    cell = cells(subject.model, "visionzip")[-1]
    with work.opened(items[:3], [WHOLE, cell]) as measure:
        (full, cost), (ours, less) = measure(WHOLE), measure(cell)
    inputs = work.prompts.inputs(items[:3])
    for records, plan in ((full, None), (ours, cell.plan)):
        with ts.sieve(subject.model, plan or ts.Plan([])):
            out = subject.ask(inputs, 3)
        said = subject.texts(inputs, out)
        assert [r["said"] for r in records] == said
        if plan is None:
            first = out.logits[0].log_softmax(-1)
        kl = (first.exp() * (first - out.logits[0].log_softmax(-1))).sum(-1)
        assert [r["kl"] for r in records] == pytest.approx(kl.tolist(), abs=2e-5)
    assert [r["same"] for r in ours] == [a["said"] == b["said"] for a, b in zip(full, ours, strict=True)]
    assert (cost["mean_tokens"], less["mean_tokens"]) == (64, 16)
    assert less["kv_bytes"] < cost["kv_bytes"]
    assert less["ms"]["encoder"] == cost["ms"]["encoder"] > 0
    assert less["flops"] < cost["flops"] == cost["full_flops"] == less["full_flops"]


def test_plans_of_the_cache_stand_beside_random_that_holds_as_many_bytes(subject, items, tmp_path):
    asked = [*items[:2], Question("text", "no picture ?", ("0",))]
    run = rounds(subject, asked, tmp_path, cells(subject.model, "snapkv", keep=40))
    run.run(asked, 2)
    _questions_rows(run)
    rows = run.results.data["rows"]
    ours, full = rows["snapkv@40"], rows[FULL]
    assert ours["mean_tokens"] == full["mean_tokens"] == pytest.approx(2 * 64 / 3, abs=0.01)
    assert ours["flops_share"] == 1
    beside = rows[ours["random_at"]]
    assert (beside["site"], beside["added"]) == ("cache", True)
    assert beside["kv_bytes"] == pytest.approx(ours["kv_bytes"], rel=0.04)
    assert rows["random@40"]["mean_tokens"] < full["mean_tokens"]


@pytest.mark.parametrize("plan", [None, "visionzip", "fastv"])
def test_choices_are_judged_by_their_likelihood(subject, items, plan):
    asked = [replace(q, choices=("yes", "no way", "b"), answers=("b",)) for q in items[:2]]
    work = Answers(subject, "exact", 3, 0)
    cell = WHOLE if plan is None else cells(subject.model, plan, keep=40)[-1]
    with work.opened(asked, [WHOLE, cell]) as measure:
        measure(WHOLE)
        records, _ = measure(cell)
    inputs = work.prompts.inputs(asked)
    whole_plan = ts.Plan([]) if cell.plan is None else cell.plan
    for i, record in enumerate(records):
        scores = []
        for choice, ids in zip(asked[i].choices, work.prompts.choices(asked[i]), strict=True):
            more = torch.tensor([ids])
            row = {k: v[i : i + 1] for k, v in inputs.items()}
            row["input_ids"] = torch.cat([row["input_ids"], more], 1)
            row["attention_mask"] = torch.ones_like(row["input_ids"])
            # Tokens of the answer are no part of what a method inside the language model may read.
            with torch.no_grad(), ts.sieve(subject.model, whole_plan):
                cache = ts.prefill(subject.model, {k: v[i : i + 1] for k, v in inputs.items()})
                out = subject.model(input_ids=more, past_key_values=cache, attention_mask=row["attention_mask"]).logits
                first = subject.model(**{k: v[i : i + 1] for k, v in inputs.items()}).logits[:, -1:]
            log = torch.cat([first, out[:, :-1]], 1).log_softmax(-1)
            scores.append(log.gather(2, more[..., None]).sum().item() / len(choice))
        assert record["said"] == asked[i].choices[int(np.argmax(scores))]
        assert record["score"] == float(record["said"] == "b")


# ---- rounds -------------------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_and_ends_with_the_same_numbers(subject, items, tmp_path):
    made = cells(subject.model, "visionzip", "fastv")
    at_once = rounds(subject, items, tmp_path / "once", made)
    at_once.run(items, 2)
    run = rounds(subject, items, tmp_path / "twice", made)

    def stop(done, total, what):
        if done >= total / 2:
            raise KeyboardInterrupt

    run.step = stop
    with pytest.raises(KeyboardInterrupt):
        run.run(items, 2)
    held = json.loads((tmp_path / "twice" / "results.json").read_text())
    assert 0 < len(held["records"][FULL]) < len(items)
    asked = []
    work = Answers(subject, "exact", 3, 0)
    inner = work.opened
    work.opened = lambda batch, todo: asked.append([q.name for q in batch]) or inner(batch, todo)
    again = rounds(subject, items, tmp_path / "twice", made, work)
    again.run(items, 2)
    assert set(held["records"][FULL]).isdisjoint({n for names in asked for n in names})
    assert again.records == at_once.records
    assert [c.key for c in again.cells] == [c.key for c in at_once.cells]
    with pytest.raises(ValueError, match=r"other settings \(score\)"):
        rounds(subject, items, tmp_path / "twice", made, score="f1")


def test_where_memory_runs_out_the_batch_is_halved_and_it_is_said(subject, items, tmp_path, monkeypatch):
    plain, asked = subject.ask, []

    def ask(inputs, new_tokens):
        asked.append(len(inputs["input_ids"]))
        if asked[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return plain(inputs, new_tokens)

    made = cells(subject.model, "visionzip")[1:]  # random draws by the place in a batch
    expected = rounds(subject, items, tmp_path / "plain", made)
    expected.run(items, 2)
    monkeypatch.setattr(subject, "ask", ask)
    run = rounds(subject, items, tmp_path / "halved", made)
    run.run(items, 6)
    for key in (FULL, "visionzip@16"):
        told = [[(r["said"], r["same"]) for r in made.records[key].values()] for made in (run, expected)]
        assert told[0] == told[1]
    assert run.notes == [
        "out of memory with 6 prompts; from q0 on there are 3 in a batch",
        "out of memory with 3 prompts; from q0 on there are 1 in a batch",
    ]

    def never(inputs, new_tokens):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(subject, "ask", lambda i, n: plain(i, n) if "pixel_values" not in i else never(i, n))
    with pytest.raises(ValueError, match=r"out of memory with one prompt \(q0\)"):
        rounds(subject, items, tmp_path / "never", cells(subject.model)).run(items, 4)


def test_a_plan_that_fails_is_left_out_and_the_others_go_on(subject, items, tmp_path):
    bad = Cell("snapkv@16", "snapkv", 16, ts.plan("snapkv", 16))
    run = rounds(subject, items, tmp_path, [*cells(subject.model, "visionzip"), bad])
    run.run(items, 4)
    assert "always keeps 32" in run.left["snapkv@16"]
    here, names = run.answered([q.name for q in items])
    assert [c.key for c in here] == [FULL, "random@16", "visionzip@16"]
    assert names == [q.name for q in items]


def test_an_item_that_a_plan_cannot_take_is_left_out_for_all(tmp_path):
    asked = [Question(f"q{i}", "?", ("a",)) for i in range(6)]
    results = Results.open(tmp_path, SETTINGS, [], [q.to_json() for q in asked])
    work = Loaded()
    work.batches = lambda items, size: [[i] for i in items]
    inner = work.opened

    def opened(batch, made):
        plain = inner(batch, made).enter_result

        def measure(cell):
            if cell.method == "good" and batch[0].name == "q2":
                raise ValueError("good takes no question 2")
            return plain(cell)

        return nullcontext(measure)

    work.opened = opened
    plan = ts.plan("random", 16)
    run = Rounds(results, work, [Cell("random@16", "random", 16, plan), Cell("good@16", "good", 16, plan)])
    run.run(asked, 1)
    _questions_rows(run)
    assert run.left == {}
    assert results.data["items"] == ["q0", "q1", "q3", "q4", "q5"]
    assert all(len(row["answers"]) == 5 for row in results.data["rows"].values())
    assert run.notes == ["q2: left out for all, since good@16 cannot take it (good takes no question 2)"]


# ---- what is told of it -------------------------------------------------------------------------------------------------


class Loaded:
    """Work whose scores are known: each cell is right on the first so many of the items."""

    def __init__(self):
        self.right = {FULL: 20, "good@16": 18, "random@16": 6, "weak@16": 7, "inside@16": 18, "random@=0.625": 17}
        self.tokens = {FULL: 64, "inside@16": 40, "random@=0.625": 40}

    def batches(self, items, size):
        return [items]

    def warm_up(self):
        pass

    def opened(self, items, made):
        def measure(cell):
            right = self.right[cell.key]
            records = [
                {"score": float(i < right), "said": str(i), "same": i < right, "kl": 0.1} for i in range(len(items))
            ]
            return records, {"count": len(items)}

        return nullcontext(measure)

    def row_of(self, passes):
        ms = dict.fromkeys(("encoder", "selection", "prefill", "decode", "total"), 1.0)
        return {"ms": ms, "kv_bytes": 1, "peak_bytes": None, "mean_tokens": 16, "final_tokens": 16, "flops_share": 0.5}

    def costs(self, passes, made):
        return [{c.key: self.tokens.get(c.key, 16) / 64 for c in made if c.plan is not None and c.key in passes}]


def test_differences_are_paired_against_full_and_against_random_at_equal_cost(tmp_path):
    plan = ts.plan("random", 16)
    made = [Cell(f"{n}@16", n, 16, plan) for n in ("random", "good", "weak")]
    made.append(Cell("inside@16", "inside", 16, plan, "cannot reach 16 mean tokens, its least is 40"))
    asked = [Question(f"q{i}", "?", ("a",), kind="x") for i in range(24)]
    results = Results.open(tmp_path, SETTINGS, [], [q.to_json() for q in asked])
    run = Rounds(results, Loaded(), made)
    run.run(asked, 24)
    _questions_rows(run)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert rows["good@16"]["random_at"] == "random@16"
    assert rows["inside@16"]["random_at"] == "random@=0.625"
    assert rows["good@16"]["accuracy_mean"] == pytest.approx(18 / 24, abs=1e-4)
    shown = {key: {c.name: c.show(row, rows) for c in columns.columns("page", rows)} for key, row in rows.items()}
    assert shown["good@16"]["vs random"].startswith("+50.0 [+")
    assert shown["good@16"]["vs full"] == "not distinguishable"
    assert int(shown["good@16"]["needs full"]) > 24
    assert shown["weak@16"]["vs random"] == "not distinguishable"
    assert shown["weak@16"]["vs full"].startswith("-54.2 [-")
    assert shown[FULL]["vs full"] == ""
    assert shown["inside@16"]["keep"] == "16, unranked"
    assert "its least is 40" in shown["inside@16"]["note"]
    assert beats_random(rows, rows["good@16"]) is True
    assert beats_random(rows, rows["weak@16"]) is None
    names = [c.name for c in columns.columns("terminal", rows)]
    assert {"vs full", "vs random"} <= set(names)
    assert not {"x floor", "ppl", "held", "final tok"} & set(names)


def test_what_a_bench_takes_is_told_beside_the_calls_that_it_needs(subject, items, monkeypatch):
    """The encoder's calls count once, within the model's or beside them; what is not open any more is not clocked."""
    ticks = iter(range(1000))
    monkeypatch.setattr(own_cost, "process_time", lambda: float(next(ticks)))
    plain = copy.deepcopy(subject)
    monkeypatch.setattr(own_cost.Subject, "load", lambda name: plain)
    inputs = QuestionPrompts(plain).inputs(items[:1])
    spent = Counter()
    with own_cost.clocked(spent):
        loaded = own_cost.Subject.load("fake")
        began = next(ticks)
        loaded.model(**inputs)
        whole = next(ticks) - began
        loaded.anatomy.vision.root(inputs["pixel_values"])
        assert spent == {"loading": 1.0, "calls": 2.0}
        assert whole == 3
    assert own_cost.Subject.load("fake") is plain
    assert spent["loading"] == 1.0
