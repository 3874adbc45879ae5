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


def call(*args):
    return CliRunner().invoke(app, list(args))


def fails(*args):
    """stderr of a command that must end with exit code 2 and one line."""
    done = subprocess.run(
        [sys.executable, "-c", "from tokensieve.cli.main import main; main()", *args], capture_output=True, text=True
    )
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
