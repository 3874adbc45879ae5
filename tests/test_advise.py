"""Advice on a tiny model: which plan, what it loses, what it saves, or why there is none."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import tokensieve as ts
from tests.asking import fake_subject, talking_subject
from tests.models import decoder
from tokensieve.bench.equal import Shape
from tokensieve.cli.main import app
from tokensieve.planner import advise as module
from tokensieve.planner.advice import likely
from tokensieve.planner.advise import advise
from tokensieve.planner.advise_config import AdviseConfig
from tokensieve.planner.candidates import candidates_of
from tokensieve.planner.runtimes import RUNTIMES

COMMON = {
    "new_tokens": 3, "methods": ["visionzip", "fastv", "snapkv"], "keep": [0.5, 0.25], "minutes": 10,
    "sites": ["handoff", "cache"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Peak memory is no question here, and a collection takes longer than all else."""
    monkeypatch.setattr("tokensieve.bench.clocks.gc.collect", lambda: 0)


@pytest.fixture(scope="module")
def subject():
    return talking_subject()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty pictures of noise, and two questions that can be told apart about each."""
    here, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    lines = []
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(here / f"{i}.png")
        lines.append({"image": f"{i}.png", "question": "what ?", "answer": "none", "kind": "ab"[i % 2]})
    (here / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return here


def looked(subject, out, **options):
    return advise(subject.model, subject.processor, out=out, **(COMMON | options))


@pytest.fixture(scope="module")
def advice(subject, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("advice")
    return looked(subject, out, images=folder, target="memory", quality=0.6, seed=1), out


def test_the_plan_is_the_cheapest_that_keeps_the_goal_on_items_that_the_search_did_not_see(advice):
    made, out = advice
    stand = made.outcome.standings[made.name]
    assert made.why == ""
    assert made.quality.share >= 0.6
    assert made.quality.count == len(made.outcome.judges) >= 20
    cheaper = [s for s in made.outcome.standings.values() if s.cost < stand.cost / 1.02 and s.held]
    assert all(s.held.share < 0.6 for s in cheaper)
    assert made.saved["memory"] == pytest.approx(stand.cost)
    assert stand.cost < 1
    assert ts.Plan.load(out / "plan.json") == made.plan
    assert {k.split("@")[0].split()[0] for k in made.outcome.standings} >= {"random", "pool", "visionzip"}
    assert "always keeps 32" in made.outcome.left["snapkv@0.25"]


def test_what_the_sentence_and_the_page_say_was_measured(advice):
    made, out = advice
    page = (out / "advice.html").read_text()
    assert made.sentence in page.replace("&#39;", "'")
    assert f"{round(100 * (1 - made.saved['memory']))}% less cache" in made.sentence
    assert f"says {100 * made.quality.share:.1f}% of the full model's words" in made.sentence
    assert f"on {made.quality.count} images that the search did not see" in made.sentence
    assert page.count("<figure>") > 0
    assert page.count("<svg") == 1  # one kind
    answers = json.loads((out / "answers.json").read_text())
    shares = [
        ours["kv_bytes"] / answers["passes"]["full"][first]["kv_bytes"]
        for first, ours in answers["passes"][made.name].items()
    ]
    assert made.saved["memory"] == pytest.approx(np.median(shares))
    said = answers["records"]
    words = {i: {k: said[k][i]["said"].split() for k in ("full", made.name)} for i in made.outcome.judges}
    common = [sum(min(w["full"].count(x), w[made.name].count(x)) for x in set(w["full"])) for w in words.values()]
    assert made.quality.share == pytest.approx(np.mean([2 * c / 6 for c in common]), abs=1e-9)
    assert json.loads(json.dumps(made.to_json()))["name"] == made.name


@pytest.mark.parametrize(("chance", "said"), [(0.0, "below 1%"), (0.57, "57%"), (0.994, "99%"), (1.0, "above 99%")])
def test_a_chance_is_never_certainty(chance, said):
    assert likely(chance) == said


def test_called_again_it_asks_nothing_and_says_the_same(advice, subject, folder, monkeypatch):
    made, out = advice
    monkeypatch.setattr(subject, "ask", lambda *_: pytest.fail("asked again"))
    assert looked(subject, out, images=folder, target="memory", quality=0.6, seed=1) == made


def test_other_options_are_refused_by_name(advice, subject, folder):
    _, out = advice
    with pytest.raises(ValueError, match=r"other terms .*goal: 0.6 there, 0.7 asked for"):
        looked(subject, out, images=folder, target="memory", quality=0.7, seed=1)
    with pytest.raises(ValueError, match="for: 'memory' there, 'flops' asked for"):
        looked(subject, out, images=folder, target="flops", quality=0.6, seed=1)


def test_a_plan_that_was_changed_by_hand_is_not_written_over(advice, subject, folder):
    made, out = advice
    file, plain = out / "plan.json", (out / "plan.json").read_text()
    try:
        file.write_text(plain.replace('"positions": "original"', '"positions": "compact"'))
        with pytest.raises(ValueError, match=r"plan.json is not the plan that was written there"):
            looked(subject, out, images=folder, target="memory", quality=0.6, seed=1)
        file.write_text(plain.replace(made.plan.stages[0].method.name, "visoinzip"))
        with pytest.raises(ValueError, match="no method is called 'visoinzip'"):
            ts.Plan.load(file)
    finally:
        file.write_text(plain)


def test_a_model_that_is_always_wrong_gets_no_plan(subject, folder, tmp_path):
    made = looked(subject, tmp_path, questions=folder / "q.jsonl", quality=0.5, sites=["handoff"])
    assert (made.plan, made.why) == (None, "wrong")
    assert "answers none of the 40 questions right by 'exact'" in made.sentence
    page = (tmp_path / "advice.html").read_text()
    assert "none of the 40" in page
    assert "for want of time" not in page  # that was not the reason
    assert not (tmp_path / "plan.json").exists()


def test_twelve_questions_say_how_many_are_needed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_load", lambda *_: pytest.fail("no model is needed"))
    lines = (folder / "q.jsonl").read_text().splitlines()[:12]
    (folder / "few.jsonl").write_text("\n".join(lines))
    made = advise("testbed", questions=folder / "few.jsonl", out=tmp_path)
    assert made.sentence == (
        "Nothing can be told: 12 questions are too few. A quality of 98% takes 58 at least, and 149 for the chance to be 95%, "
        "where a plan loses none."
    )


@pytest.mark.parametrize(("name", "packaged"), [("testbed", True), ("smollm2", True), ("somebody/model", False)])
def test_a_packaged_model_is_not_looked_for_on_the_hub(name, packaged, folder, tmp_path, monkeypatch):
    looked_up = []
    monkeypatch.setattr(module, "encodes", lambda name: looked_up.append(name))
    (folder / "few.jsonl").write_text("\n".join((folder / "q.jsonl").read_text().splitlines()[:12]))
    assert advise(name, questions=folder / "few.jsonl", out=tmp_path).why == "few"
    assert looked_up == ([] if packaged else [name])


def test_time_that_does_not_suffice_says_the_least(subject, folder, tmp_path):
    made = looked(subject, tmp_path, images=folder, quality=0.6, minutes=1e-5)
    assert (made.plan, made.why) == (None, "late")
    assert "Nothing can be told in 1e-05 minutes" in made.sentence
    assert made.outcome.needed > 1e-5
    assert made.sentence.endswith("on this machine. Give more --minutes, or fewer --new-tokens, and another --out.")


def test_a_page_of_plans_that_nobody_judged_says_so(subject, folder, tmp_path, monkeypatch):
    """Time ends when the first items were asked."""
    monkeypatch.setattr("tokensieve.planner.halving._Search._late", lambda *_: True)
    monkeypatch.setattr("tokensieve.planner.halving._Search._late_to_judge", lambda _: True)
    made = looked(subject, tmp_path, images=folder, quality=0.01, target="memory")
    page = (tmp_path / "advice.html").read_text()
    assert (made.why, made.outcome.judges) == ("late", [])
    assert "no plan was judged on others" in page
    assert "Full circles" not in page
    assert "8 of the images were asked" in page
    assert page.count("always keeps 32") == 1  # the reason once, for all that it keeps away


def test_a_search_that_nothing_survives_says_what_was_nearest(subject, folder, tmp_path):
    made = looked(
        subject, tmp_path, images=folder, target="flops", quality=1.0, methods=["fastv"], keep=[0.25], limit=40
    )
    assert made.why == "few"
    made = looked(subject, tmp_path / "b", images=folder, target="flops", quality=0.94, keep=[0.05], sites=["handoff"])
    assert made.why == "short"
    assert made.sentence.startswith("Nothing was found that reaches 94%: of ")


def test_an_interrupted_search_ends_with_the_same(advice, subject, folder, tmp_path, monkeypatch):
    made, _ = advice
    plain, asked = module.asking.Asking.__call__, []

    def stop(self, items, candidates):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(items)
        return plain(self, items, candidates)

    options = {"images": folder, "target": "memory", "quality": 0.6, "seed": 1}
    with monkeypatch.context() as here:
        here.setattr(module.asking.Asking, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            looked(subject, tmp_path, **options)
    again = looked(subject, tmp_path, **options)
    assert (again.name, again.quality) == (made.name, made.quality)
    assert again.outcome.answers == made.outcome.answers


@pytest.mark.slow
def test_memory_that_runs_out_halves_what_is_asked_at_once(advice, subject, folder, tmp_path, monkeypatch):
    plain = subject.ask

    def ask(inputs, new_tokens):
        if len(inputs["input_ids"]) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return plain(inputs, new_tokens)

    options = {
        "images": folder,
        "target": "flops",
        "quality": 0.6,
        "methods": ["visionzip"],
        "keep": [0.25],
        "sites": ["handoff"],
    }
    expected = looked(subject, tmp_path / "a", **options)
    monkeypatch.setattr(module, "_load", lambda asked: _asking(subject, ask))
    made = looked(subject, tmp_path / "b", **options)
    assert (made.why, made.name is None) == (expected.why, expected.name is None)
    assert "out of memory with 8 prompts" in (tmp_path / "b" / "advice.html").read_text()


def _asking(subject, ask):
    made = fake_subject()
    made.model, made.processor, made.ask = subject.model, subject.processor, ask
    return made


# ---- texts --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_texts_judge_plans_of_the_cache(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(14):
        (folder / f"{i}.txt").write_text(" ".join(f"word{(i * j) % 7}" for j in range(60)))
    model = decoder()
    made = advise(
        model, _Letters(), texts=folder, out=tmp_path / "out", target="memory", quality=0.9, minutes=10,
        methods=["keydiff"], keep=[0.5], window=128,
    )  # fmt: skip
    assert {k.split("@")[0] for k in made.outcome.standings} <= {
        "random cache",
        "uniform cache",
        "keydiff",
        "random",
        "uniform",
    }
    answers = json.loads((tmp_path / "out" / "answers.json").read_text())["records"]
    assert made.plan is not None
    judges = made.outcome.judges
    sizes = {
        t.name: t.size
        for t in module._found(AdviseConfig(model, _Letters(), texts=folder, window=128), lambda *_: None)[1].items
    }
    ours, full = (sum(sizes[i] * answers[k][i]["bits"] for i in judges) for k in (made.name, "full"))
    assert made.quality.share == pytest.approx(1 - (ours / full - 1))
    assert "of full by bits per byte (" in made.sentence


class _Letters:
    """A token a letter."""

    def __call__(self, text, verbose=True, add_special_tokens=True):
        return {"input_ids": [6 + ord(c) % 58 for c in text]}

    def decode(self, ids):
        return "x" * len(ids)


# ---- what is tried ------------------------------------------------------------------------------------------------------


def named(subject, sites, methods=None, runtime="transformers", keep=(0.5,)):
    served = RUNTIMES.get(runtime)(subject.model)
    return candidates_of(subject.model, subject.processor.tokenizer, sites, methods, keep, Shape(64, 11), served)


def test_sites_limit_what_is_tried(subject):
    for site in ("encoder", "handoff", "prefill", "cache"):
        made = named(subject, [site])
        assert {s.site for c in made.cells.values() for s in c.plan.stages} == {site}
        assert "random" in {c.method for c in made.cells.values()}
        assert len(made.cells) > 3
    every = named(subject, ["encoder", "handoff", "prefill", "cache"])
    assert len(every.cells) > 60
    assert [c.method for c in every.cells.values()][:3] == ["random", "random", "random"]
    bad = named(subject, ["handoff"], ["fastv", "visionzip"])
    assert bad.left == {"fastv": "it acts at prefill, and --sites says handoff"}
    with pytest.raises(ValueError, match="no method is called 'visonzip'"):
        named(subject, ["handoff"], ["visonzip"])


def test_a_runtime_limits_what_is_tried(subject):
    made = named(subject, ["encoder", "handoff", "prefill", "cache"], runtime="vllm")
    assert all([s.site for s in c.plan.stages] == ["handoff"] for c in made.cells.values())
    assert {"visionzip", "divprune", "random"} <= {c.method for c in made.cells.values()}
    assert "reads the text" in made.left["cdpruner"]
    assert "stages inside the language model" in made.left["fastv"]


def test_a_page_of_what_vllm_serves_says_how_vllm_is_started(subject, folder, tmp_path):
    made = looked(
        subject,
        tmp_path,
        images=folder,
        quality=0.01,
        target="memory",
        runtime="vllm",
        methods=["visionzip", "fastv"],
        keep=[0.5],
    )
    assert [s.site for s in made.plan.stages] == ["handoff"]
    page = (tmp_path / "advice.html").read_text()
    assert f'{{"tokensieve": {{"plan": "{tmp_path}/plan.json"}}}}' in page
    assert "ts.sieve" not in page


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "neither --questions nor --images nor --texts"),
        ({"questions": "q", "texts": "t"}, "--questions and --texts: say one"),
        ({"questions": "q", "quality": 98}, "quality=98: .* lies in"),
        ({"questions": "q", "minutes": -1}, "minutes=-1"),
        ({"questions": "q", "target": "speed"}, "--for speed: it must be one of latency, memory, flops"),
        ({"questions": "q", "sites": ["attic"]}, "--sites attic: they are encoder"),
        ({"questions": "q", "sites": ["cache"], "target": "flops"}, "leave the FLOPs of a prefill as they are"),
        ({"texts": "t", "target": "flops"}, "leave the FLOPs of a prefill as they are"),
        ({"texts": "t", "sites": ["handoff"]}, "texts have no visual tokens"),
        ({"texts": "t", "runtime": "vllm"}, "vLLM serves plans at the handoff alone"),
        ({"questions": "q", "runtime": "vllm", "sites": ["prefill"]}, "vLLM serves plans at the handoff alone"),
        ({"questions": "q", "runtime": "tgi"}, "no runtime is called 'tgi'"),
        ({"questions": "q", "metric": "exat"}, "no metric is called 'exat'"),
    ],
)
def test_what_cannot_be_had_is_refused(options, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        advise("testbed", out=tmp_path, **options)


def test_two_goals_exclude_each_other():
    asked = ["advise", "testbed", "--questions", "q.jsonl", "--for", "memory", "--for", "latency"]
    found = CliRunner().invoke(app, asked)
    assert "--for memory --for latency: a plan is chosen by one of them" in str(found.exception)


def test_the_command_prints_the_sentence(folder, tmp_path):
    few = folder / "few.jsonl"
    few.write_text("\n".join((folder / "q.jsonl").read_text().splitlines()[:12]))
    asked = ["advise", "testbed", "--questions", str(few), "--out", str(tmp_path / "here")]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 0, found.output
    assert "12 questions are too few" in found.output
    assert "advice.html" in found.output
    found = CliRunner().invoke(app, [*asked, "--json"])
    assert json.loads(found.output)["why"] == "few"


def test_an_encoder_is_handed_over_with_its_inputs(tmp_path, monkeypatch):
    from tests.tiny_encoders import made
    from tokensieve.cli import encoders

    tiny = made("ViTModel").model
    tiny.save_pretrained(tmp_path / "vit")
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"vit is an encoder; .*give --inputs FOLDER"):
        advise(str(tmp_path / "vit"), texts=tmp_path, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"ViTModel is an encoder; .*give --inputs FOLDER"):
        advise(tiny, object(), images=tmp_path, out=tmp_path / "out")
    with pytest.raises(ValueError, match="say one of them"):
        advise(tiny, inputs=tmp_path, texts=tmp_path)
    with pytest.raises(ValueError, match="needs what prepares its inputs"):
        advise(tiny, inputs=tmp_path)
    given = {}
    monkeypatch.setattr(module, "bench_encoder", lambda model, inputs, **options: given.update(options, model=model))
    advise(tiny, object(), inputs=tmp_path, quality=0.9, batch=4)
    assert (given["fidelity"], given["batch"], given["model"].kind) == (0.9, 4, "texts")
    monkeypatch.setattr(encoders, "bench_encoder", lambda model, inputs, **options: given.update(options, at=inputs))
    ask = ["advise", "m", "--inputs", "here", "--quality", "0.95", "--keep", "0.5"]
    assert CliRunner().invoke(app, ask).exit_code == 0
    assert given["fidelity"] == 0.95
    assert given["keep"] == "0.5"
    assert str(given["at"]) == "here"
    for odd, said in ((["--window", "99"], "--window is not for encoders"), (["--for", "memory"], "--for latency")):
        assert said in str(CliRunner().invoke(app, [*ask, *odd]).exception)
