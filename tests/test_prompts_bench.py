"""Benches of compressed prompts: what is recorded, resumed and said, and plans with a stage in front of the model."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import tokensieve as ts
from tests.asking import TalkingProcessor, fake_subject
from tokensieve.bench.answers import Answers
from tokensieve.bench.context import rows
from tokensieve.bench.context import run as compressing
from tokensieve.bench.context.asking import PromptAsker
from tokensieve.bench.context.cells import cells
from tokensieve.bench.context.page import page
from tokensieve.bench.context.run import PromptConfig, run, survived
from tokensieve.bench.continuations import Continuations
from tokensieve.bench.equal import WHOLE, Cell, from_files
from tokensieve.bench.questions import Question, read_questions
from tokensieve.bench.texts import Text
from tokensieve.cli.main import app
from tokensieve.testbed import lm
from tokensieve.testbed.lm.model import path as packaged

pytest.importorskip("sentencex")

LINES = [
    {"id": "a", "question": "Which code?", "answer": "48213", "context": ["One. Two. Three.", "The code is 48213. Five."],
     "kind": "x"},
    {"id": "b", "question": "Who?", "answer": ["Mara", "Ines"], "context": "Mara came. Then <|end|> it rained. " * 4,
     "kind": "y"},
    {"id": "c", "question": "no text?", "answer": "none"},
]  # fmt: skip


@pytest.fixture(scope="module")
def made():
    return lm.load()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "qa.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in LINES))
    return path


# ---- bench-prompts ------------------------------------------------------------------------------------------------------


def test_every_line_is_asked_and_a_second_run_goes_on(file, tmp_path, monkeypatch):
    plan = tmp_path / "both.json"
    ts.Plan([ts.stage("last-text", 0.5), ts.stage("snapkv", 0.5, window=4)]).save(plan)
    asked = PromptConfig("testbed", file, ["random-text:line"], [0.5], tmp_path / "out", (plan,), new_tokens=2)
    steps = []
    data = run(asked, lambda what, done, of: steps.append((done, of))).data
    keys = [
        "full",
        "none",
        *(f"{n}@0.5" for n in ("first", "last", "random sentences", "random words", "random-text:line")),
        "both",
    ]
    assert list(data["rows"]) == keys
    assert steps[-1] == (16, 16)
    assert any("1 lines have no context" in note for note in data["notes"])
    row = data["rows"]
    assert row["full"]["share"] == 1
    assert row["none"]["share"] == 0
    assert all(row[k]["share"] <= 0.5 for k in keys[2:])
    assert row["full"]["survived"] == 1
    assert row["none"]["survived"] == 0
    assert row["full"]["kinds"] == {"x": [row["full"]["kinds"]["x"][0], 1], "y": [row["full"]["kinds"]["y"][0], 1]}
    assert "random words@0.5" in page(data, tmp_path / "out").read_text()

    monkeypatch.setattr(PromptAsker, "together", lambda *_: pytest.fail("asked again"))
    again = run(asked, lambda *_: None).data
    assert again["rows"] == row
    with pytest.raises(ValueError, match="other settings"):
        run(replace(asked, seed=1), lambda *_: None)


def test_control_tokens_of_a_text_stay_text(made):
    model, tokenizer = made
    asker = PromptAsker(model, tokenizer, 2, 0)
    special = tokenizer.all_special_tokens[0]
    ids = asker.ids(f"It says {special} here.", "What?", "")
    own = tokenizer.convert_tokens_to_ids(special)
    assert ids.count(own) == asker.ids("It says nothing here.", "What?", "").count(own)


def test_a_prompt_over_the_context_is_refused(made):
    model, tokenizer = made
    with pytest.raises(ValueError, match="context ends at"):
        PromptAsker(model, tokenizer, 2, 0).ask("word " * 20_000, "What?", "")


def test_questions_asked_together_are_answered_as_alone(made, file, tmp_path):
    model, tokenizer = made
    asker = PromptAsker(model, tokenizer, 6, 0)
    asked = [("One. " * n, f"What is {n}?", "") for n in (1, 9, 4)]
    together = asker.together(asked)
    alone = [asker.ask(*one) for one in asked]
    assert [(r.said, r.tokens) for r in together] == [(r.said, r.tokens) for r in alone]
    assert len({r.seconds for r in together}) == 1
    one = PromptConfig("testbed", file, ["last-text"], [0.5], tmp_path / "one", new_tokens=3)
    two = replace(one, out=tmp_path / "two", batch=2)
    said = [
        {key: [r["said"] for r in own.values()] for key, own in run(c, lambda *_: None).data["records"].items()}
        for c in (one, two)
    ]
    assert said[0] == said[1]


def test_where_it_pays():
    assert rows.pays([100, 200, 300], [-1.0, 0.5, 2.0]) == 100
    assert rows.pays([100, 200, 300], [-3.0, 0.5, 2.0]) == 200
    assert rows.pays([100, 200, 300], [5.0, 0.5, -2.0]) is None
    assert rows.pays([100, 100], [3.0, -1.0]) == 100


def test_answers_that_survived_and_were_not_given_are_warned_of():
    row, full = {"survived": 1.0, "contained": 0.5, "words": True}, {"survived": 1.0, "contained": 0.8}
    assert "100% and was given in 50% (of the whole text in 80%): words" in rows.warning(row, full)
    assert rows.warning(row | {"survived": 0.6}, full) == ""
    assert rows.warning(row, full | {"contained": 0.5}) == ""
    assert rows.warning(row | {"survived": 0.0}, full) == ""


def test_no_line_is_recommended_that_answers_no_more_than_no_text():
    found = {
        "full": {"keep": None, "contained": 0.5},
        "none": {"keep": None, "contained": 0.1},
        "first@0.5": {"keep": 0.5, "contained": 0.1, "method": "first", "share": 0.5, "pays": None},
    }
    assert rows.verdicts(found) == ["At 0.5: no line answers more than no text does (10%)."]
    found["first@0.5"]["contained"] = 0.2
    assert rows.verdicts(found)[0].startswith("At 0.5: first answers 20% (the whole text 50%, none of it 10%)")


def test_what_loads_at_the_first_call_is_in_no_measured_time(file, tmp_path, monkeypatch):
    compress, asked = compressing.compressed, []
    monkeypatch.setattr(
        compressing, "compressed", lambda c, cell, item: asked.append(cell.key) or compress(c, cell, item)
    )
    run(PromptConfig("testbed", file, [], [0.5], tmp_path / "out", limit=1, new_tokens=1), lambda *_: None)
    assert asked[:5] == [f"{n}@0.5" for n in ("first", "last", "random sentences", "random words", "first")]


def test_survival_passes_over_case_and_blanks():
    assert survived("The  RED\nlamp.", ["red lamp"])
    assert not survived("The lamp.", ["red lamp"])


def test_questions_read_their_context(file):
    first, second, third = read_questions(file).items
    assert first.context == ("One. Two. Three.", "The code is 48213. Five.")
    assert len(second.context) == 1
    assert third.context == ()
    assert "context" not in third.to_json()
    assert first.to_json()["context"] != second.to_json()["context"]


@pytest.mark.parametrize(
    ("methods", "told"), [(["tome"], "site='encoder'"), (["question:chapter"], "sentence"), (["quest"], "question")]
)
def test_names_that_fit_no_prompt_are_refused(methods, told):
    with pytest.raises(ValueError, match=told):
        cells(methods, [0.5], [])


# ---- other benches ------------------------------------------------------------------------------------------------------


def test_texts_are_continued_behind_shorter_ones(made, monkeypatch):
    monkeypatch.setattr(Continuations, "_peak", lambda *_: None)
    model, tokenizer = made
    ids = np.asarray(tokenizer("def one(x):\n    return x + 1\n\n\n" * 20)["input_ids"], dtype=np.int64)
    text = Text("t", ids, len(ids) - 16, None, 40)
    front = ts.stage("last-text", 0.5, unit="line")
    plans = {"front": ts.Plan(front), "both": ts.Plan([front, ts.stage("keydiff", 0.5)])}
    work, made_cells = Continuations(model, 0, tokenizer), [Cell(k, k, None, p) for k, p in plans.items()]
    with work.opened([text], [WHOLE, *made_cells]) as measure:
        bytes_ = [measure(cell)[1]["kv_bytes"] for cell in (WHOLE, *made_cells)]
    assert 0.4 < bytes_[1] / bytes_[0] <= 0.5
    assert 0.4 < bytes_[2] / bytes_[1] < 0.6


def test_questions_are_asked_behind_shorter_texts(tmp_path):
    subject = fake_subject()
    subject.processor = TalkingProcessor()
    work, seen = Answers(subject, "exact", 2, 0), []
    inputs = work.prompts.inputs
    work.prompts.inputs = lambda items: seen.append([q.context for q in items]) or inputs(items)
    short = lambda items, front: [replace(q, context=("a",)) for q in items]  # noqa: E731
    work.__dict__["_fronts"] = type("Fronts", (), {"questions": staticmethod(short)})
    file = tmp_path / "p.json"
    ts.Plan([ts.stage("question", 0.25)]).save(file)
    (cell,) = from_files(subject.model, [file])
    with work.opened([Question("q", "what ?", ("0",), context=("a b c d e f",))], [WHOLE, cell]) as measure:
        measure(WHOLE)
        (record,), cost = measure(cell)
    assert seen == [[("a b c d e f",)], [("a",)]]
    assert {"said", "score"} <= set(record)
    assert cost["full_flops"] > 0


# ---- the command line ---------------------------------------------------------------------------------------------------


def test_the_command_writes_text_and_page(tmp_path):
    text, out, html = tmp_path / "t.txt", tmp_path / "o.txt", tmp_path / "p.html"
    text.write_text("One <b> is first. Two is second. Three is third. Four is last.")
    args = ["compress", str(text), "--method", "last-text", "--keep", "0.3", "--tokenizer", str(packaged())]
    result = CliRunner().invoke(app, [*args, "--out", str(out), "--page", str(html)])
    assert result.exit_code == 0, result.output
    assert out.read_text() == "Four is last."
    assert "<s>One &lt;b&gt; is first." in html.read_text()
    shown = CliRunner().invoke(app, [*args, "--show"])
    assert "[-One <b> is first." in shown.stdout
    facts = json.loads(CliRunner().invoke(app, [*args, "--json"]).stdout)
    assert facts["text"] == "Four is last."
    assert facts["after"] <= 0.3 * facts["before"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["nowhere.txt", "--question", "?"], "no such file"),
        (["{bad}", "--question", "?"], "no text in UTF-8"),
        (["{good}"], "say what the text is for"),
        (["{good}", "--plan", "p.json", "--keep", "5"], "carries its own"),
        (["{good}", "--question", "?", "--keep", "x"], "--keep 'x'"),
    ],
)
def test_commands_that_cannot_be_done_are_refused(tmp_path, args, told):
    bad, good = tmp_path / "bad.txt", tmp_path / "good.txt"
    bad.write_bytes(b"\xff\xfe1")
    good.write_text("Something. Else.")
    result = CliRunner().invoke(app, ["compress", *(a.format(bad=bad, good=good) for a in args)])
    assert result.exit_code != 0
    assert told in str(result.exception)
