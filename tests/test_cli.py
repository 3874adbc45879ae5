"""The command line, as a person meets it."""

import importlib
import json
import subprocess
import sys
from importlib import resources

import pytest
from PIL import Image
from typer.testing import CliRunner

import tokensieve as ts
from tokensieve import testbed
from tokensieve.catalog import systems
from tokensieve.cli.main import app
from tokensieve.testbed import lm


def call(*args):
    return CliRunner().invoke(app, list(args))


def fails(*args):
    """stderr of a command that must end with exit code 2 and one line."""
    done = subprocess.run([sys.executable, "-m", "tokensieve", *args], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_version_and_help():
    assert call("--version").output.strip() == ts.__version__
    for name in ("demo", "bench", "show", "methods", "systems", "models"):
        assert name in call("--help").output
        assert call(name, "--help").exit_code == 0


def test_methods_as_table_and_json():
    assert "visionzip" in call("methods").output
    cards = json.loads(call("methods", "--json", "--site", "prefill").output)
    names = [c["name"] for c in cards]
    assert "fastv" in names
    assert "fastervlm" not in names
    assert {c["family"] for c in json.loads(call("methods", "--json", "--family", "encoder").output)} == {"encoder"}


def test_models_as_table_and_json():
    assert "qwen2_5_vl" in call("models").output
    rows = {r["name"]: r for r in json.loads(call("models", "--json").output)}
    assert rows["blip"]["status"] == "refused"
    assert "cross-attention" in rows["mllama"]["why"]
    now = json.loads(call("models", "mllama", "--json").output)
    assert now == [rows["mllama"]]


def test_systems_as_table_and_json():
    rows = json.loads(call("systems", "--json").output)
    assert len(rows) == 400
    by_id = {r["id"]: r for r in rows}
    assert by_id[380]["entries"] == ["visionzip"]
    assert all(r["tier"] == 1 for r in json.loads(call("systems", "--json", "--tier", "1").output))
    assert "missing" in call("systems", "--family", "retrieval").output or call("systems").exit_code == 0


def test_errors_are_one_line():
    assert "did you mean visionzip" in fails("bench", "testbed", "--testbed", "--methods", "visonzip")
    assert "--keep" in fails("bench", "testbed", "--testbed", "--keep", "0")
    assert "either --testbed or --images" in fails("bench", "testbed")
    assert "one of scenes, clips, pairs, anyres" in fails("bench", "testbed", "--testbed", "--set", "films")
    assert "not with --images" in fails("bench", "testbed", "--images", ".", "--set", "clips")
    assert "no such folder" in fails("bench", "testbed", "--images", "/nowhere/at/all")
    assert "no such file" in fails("show", "/nowhere.png")


def test_a_bench_of_ones_own_data_says_what_it_cannot_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refused(*args):
        done = call("bench", *args)
        assert done.exit_code != 0
        return str(done.exception)

    for folder in ("texts", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "q.jsonl").write_text('{"question": "what ?"}')
    (tmp_path / "texts" / "a.txt").write_text("word " * 300)
    assert "either --testbed or --images" in refused("testbed", "--questions", "q.jsonl", "--texts", "texts")
    assert "--plan goes with --questions or --texts" in refused("--testbed", "--plan", "a.json")
    assert "no metric is called 'exat'; did you mean exact" in refused("--questions", "q.jsonl", "--metric", "exat")
    assert "--equal cost: it must be one of mean, flops, label" in refused("--questions", "q.jsonl", "--equal", "cost")
    assert "none of its 1 lines can be asked: line 1: answer is missing" in refused("--questions", "q.jsonl")
    assert "did you mean visionzip" in refused("--questions", "q.jsonl", "--methods", "visonzip")
    assert "context ends at 8192, questions included; at most 8128" in refused("--texts", "texts", "--window", "9000")
    assert "it is empty" in refused("--texts", "empty")
    assert "visionzip runs at" in refused("--texts", "texts", "--methods", "visionzip")
    assert "--device nowhere" in refused("--texts", "texts", "--device", "nowhere")
    assert not (tmp_path / "tokensieve-bench").exists()
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    assert "--metric anls: " in refused("--questions", "q.jsonl", "--metric", "anls")


@pytest.mark.slow
def test_a_person_measures_their_own_questions_and_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = ["{"]
    for i, item in enumerate(testbed.test_set(n_scenes=8, questions_per_kind=1, seed=1)):
        item.image.save(tmp_path / f"{i}.png")
        lines.append(
            json.dumps({"image": f"{i}.png", "question": item.question.text, "answer": item.answer, "kind": item.kind})
        )
    lines.append(
        json.dumps(
            {"image": "0.png", "question": "which shape is there ?", "answer": "B", "choices": ["circle", "square"]}
        )
    )
    (tmp_path / "q.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    ts.plan("fastv", 64).save("fast.json")
    asked = ("bench", "testbed", "--questions", "q.jsonl", "--methods", "fastv", "--keep", "64", "--new-tokens", "3")
    done = call(*asked, "--plan", "fast.json", "--out", "q")
    assert done.exit_code == 0, done.exception
    for said in (
        "fastv",
        "64, unranked",
        "by kind of question",
        "1 lines of the file were skipped",
        "line 1: not JSON",
    ):
        assert said in done.output
    data = json.loads((tmp_path / "q" / "results.json").read_text())
    assert {"full", "random@64", "fastv@64", "fast", "random@=0.5009"} <= set(data["rows"])
    page = (tmp_path / "q" / "report.html").read_text()
    for said in ("against random", ">1 lines<", "What was kept", "its least is 288.5"):
        assert said in page
    (tmp_path / "texts").mkdir()
    for i, one in enumerate(d for d in lm.held_out() if len(d.text) > 2000):
        (tmp_path / "texts" / f"{i}.txt").write_text(one.text[:2000])
    asked = (
        "bench",
        "testbed",
        "--texts",
        "texts",
        "--methods",
        "snapkv",
        "--keep",
        "0.25",
        "--limit",
        "2",
        "--out",
        "t",
    )
    done = call(*asked, "--window", "256")
    assert done.exit_code == 0, done.exception
    for said in ("snapkv", "ppl vs full", "before", "testbed: 2 texts"):
        assert said in done.output
    assert "asked after" in (tmp_path / "t" / "report.html").read_text()
    assert "other samples" in str(call(*asked, "--window", "128").exception)


@pytest.mark.parametrize("name", ["visionzip", "divprune"])
def test_show_writes_a_picture(tmp_path, name):
    testbed.generate(0, 3, "test").image.save(tmp_path / "scene.png")
    out = tmp_path / "shown.png"
    done = call("show", str(tmp_path / "scene.png"), "--method", name, "--keep", "64", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "64 of 576 tokens" in done.output
    assert Image.open(out).width > 1000


def test_bench_on_a_folder_counts_what_it_skipped(tmp_path):
    for i in range(2):
        testbed.generate(0, i, "test").image.save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    out = tmp_path / "out"
    question = "how many things are there ?"
    args = (
        "bench",
        "testbed",
        "--images",
        str(tmp_path),
        "--methods",
        "fastervlm",
        "--keep",
        "64",
        "--question",
        question,
    )
    done = call(*args, "--out", str(out), "--new-tokens", "2")
    assert done.exit_code == 0, done.output
    data = json.loads((out / "results.json").read_text())
    assert len(data["skipped"]) == 1
    assert "broken.png" in data["skipped"][0]
    assert set(data["rows"]) == {"full", "random@64", "uniform@64", "pool@64", "fastervlm@64"}
    assert data["rows"]["fastervlm@64"]["accuracy_mean"] is None
    assert 0 <= data["rows"]["fastervlm@64"]["agreement"] <= 1
    assert {p.name for p in out.iterdir()} == {"results.json", "pareto.png", "pareto.svg", "report.html"}


def test_what_answers_to_a_system_and_is_no_method_exists():
    table = json.loads(resources.files("tokensieve").joinpath("catalog/entries.json").read_text(encoding="utf-8"))
    assert set(table) <= {str(s.id) for s in systems()}
    for path in (path for paths in table.values() for path in paths):
        home, name = path.rsplit(".", 1)
        assert getattr(importlib.import_module(home), name).__doc__
