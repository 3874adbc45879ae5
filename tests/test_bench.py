"""The bench: cost, cells, results on disk, plots, page, pictures."""

import json
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

import tokensieve as ts
from tests.asking import fake_subject, noise
from tests.models import SIDE, llava
from tokensieve.bench import columns, overlay, plots, report, results, run, tables
from tokensieve.bench.data import from_folder
from tokensieve.bench.measure import break_even, measure
from tokensieve.bench.subject import prepare


@pytest.fixture(scope="module")
def subject():
    return fake_subject()


@pytest.fixture
def samples():
    return noise(4)


SETTINGS = results.Settings("fake", "here", "what ?", 4, 0, 2, 3, "float32", "cpu")
PAIRS = run.cells(["visionzip", "fastv"], [16])


@pytest.fixture
def done(subject, samples, tmp_path):
    return run.run(subject, samples, PAIRS, tmp_path, SETTINGS, ["broken.png: cannot identify"]), tmp_path


def test_flops_are_those_that_torch_counts():
    model = llava("eager")  # the counter does not see the CPU's fused attention
    language = model.model.language_model
    x = torch.randn(1, 50, 48)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        language(inputs_embeds=x)
    plan = ts.stage("uniform", keep=30)
    cost = ts.cost(model, plan, tokens=30, text=20)
    assert cost.full_flops == cost.flops
    assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.03)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model.vision_tower(torch.randn(1, 3, 32, 32))
    assert ts.cost(model, plan, tokens=64).encoder_flops == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_cost_counts_tokens_where_they_are():
    model = llava()
    handoff = ts.cost(model, ts.stage("fastervlm", keep=16), tokens=64)
    inside = ts.cost(model, ts.stage("fastv", keep=16), tokens=64)
    encoder = ts.cost(model, ts.stage("tome", keep=16), tokens=64)
    assert (handoff.final, handoff.mean) == (16, 16)
    assert (inside.final, inside.mean) == (16, 40)
    assert handoff.kv_bytes < inside.kv_bytes < inside.full_kv_bytes
    assert encoder.encoder_flops < encoder.full_encoder_flops == handoff.encoder_flops
    assert ts.cost(model, ts.stage("fastv", keep=ts.Keep(average=40)), tokens=64).final == 16
    alone = ts.cost(model.model.vision_tower, ts.stage("tome", keep=16), tokens=64)
    assert (alone.flops, alone.final) == (0, 16)
    with pytest.raises(ValueError, match="handoff"):
        ts.cost(model.model.vision_tower, ts.stage("fastervlm", keep=16, site="handoff"), tokens=64)


def test_a_cell_says_what_was_done(subject, samples):
    batches = prepare(subject, samples, 2)
    row, full = measure(subject, batches, None, None, 3, 0)
    assert row["accuracy_mean"] is None
    assert row["mean_tokens"] == SIDE * SIDE
    kept, _ = measure(subject, batches, ts.Plan(ts.stage("fastv", keep=16)), full, 3, 0)
    assert (kept["final_tokens"], kept["mean_tokens"], kept["layer_tokens"]) == (16, 40, [64, 64, 16, 16])
    assert kept["kv_bytes"] < row["kv_bytes"]
    assert kept["kl"] >= 0
    assert 0 <= kept["agreement"] <= 1
    assert kept["overhead"] > 0
    assert kept["ms"]["selection"] > 0
    same, _ = measure(subject, batches, ts.Plan(ts.stage("fastv", keep=1.0)), full, 3, 0)
    assert same["agreement"] == 1
    assert same["kl"] == pytest.approx(0, abs=1e-6)


def test_accuracy_is_counted_by_kind(subject, samples):
    batches = prepare(subject, samples, 2)
    _, full = measure(subject, batches, None, None, 3, 0)
    labelled = [replace(s, answer=a, kind=k) for s, a, k in zip(samples, full.answers, "aabb", strict=True)]
    labelled[3] = replace(labelled[3], answer="something else")
    row, _ = measure(subject, prepare(subject, labelled, 2), None, None, 3, 0)
    assert row["accuracy"] == {"a": 1.0, "b": 0.5}
    assert row["accuracy_mean"] == 0.75


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ({"prefill": 20, "selection": 8, "decode": 2}, {"min_tokens": 116, "max_answer": None, "pays": True}),
        ({"prefill": 20, "selection": 90, "decode": 2}, {"min_tokens": 640, "max_answer": None, "pays": False}),
        ({"prefill": 20, "selection": 0, "decode": 4}, {"min_tokens": 64, "max_answer": 40, "pays": True}),
        ({"prefill": 120, "selection": 1, "decode": 2}, {"min_tokens": None, "max_answer": None, "pays": False}),
    ],
)
def test_break_even(ours, expected):
    full = {"prefill": 100, "encoder": 10, "selection": 0, "decode": 2}
    assert break_even(full, {"encoder": 10, **ours}, n=576, m=64) == pytest.approx(expected, abs=1)


def test_baselines_always_run_and_names_are_checked_first():
    assert [name for name, _ in run.cells(["visionzip"], [16, 8])] == ["random", "uniform", "pool", "visionzip"] * 2
    with pytest.raises(ValueError, match="did you mean visionzip"):
        run.cells(["visonzip"], [16])


def test_results_are_whole_after_every_cell_and_resumed(subject, samples, tmp_path, monkeypatch):
    seen = []

    def stop_at_third(done, total, what):
        seen.append(json.loads((tmp_path / "results.json").read_text())["rows"] if done else {})
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(subject, samples, PAIRS, tmp_path, SETTINGS, progress=stop_at_third)
    assert [len(rows) for rows in seen] == [0, 1, 2, 3]
    measured = []
    original = run._cell
    monkeypatch.setattr(run, "_cell", lambda *a: measured.append(a[2]) or original(*a))
    again = run.run(subject, samples, PAIRS, tmp_path, SETTINGS)
    assert measured == ["pool", "visionzip", "fastv"]
    assert list(again.rows) == ["full", *(f"{n}@{k}" for n, k in PAIRS)]
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(ValueError, match=r"other settings \(seed\); choose another --out"):
        run.run(subject, samples, PAIRS, tmp_path, replace(SETTINGS, seed=1))
    other = Image.new("RGB", samples[0].image.size)
    for change in ({"image": other}, {"question": "what else ?"}, {"answer": "7"}):
        with pytest.raises(ValueError, match=r"other samples .* choose another --out"):
            run.run(subject, [replace(samples[0], **change), *samples[1:]], PAIRS, tmp_path, SETTINGS)


def test_a_file_that_is_no_results_file_is_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="format is 'other'"):
        results.load(tmp_path / "results.json")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match="not a results file"):
        results.load(tmp_path / "results.json")


def test_table_plot_and_page(done):
    made, folder = done
    data = made.data
    assert data["format"] == results.FORMAT
    assert (
        data["environment"]["versions"]["torch"] == torch.__version__.split("+")[0]
        or data["environment"]["versions"]["torch"]
    )
    assert tables.table(data).row_count == len(PAIRS) + 1
    data["rows"]["visionzip@16"]["agreement"] = 0.0
    console = Console(width=240, record=True, file=StringIO())
    console.print(tables.table(data))
    text = console.export_text()
    for head in ("final tok", "mean tok", "FLOPs", "encode", "select", "prefill", "decode", "x floor", "pays"):
        assert head in text
    assert "not above random" in next(line for line in text.splitlines() if "visionzip" in line)
    for file in plots.pareto(data, folder):
        assert file.stat().st_size > 5000
    data["samples"][0]["question"] = "<script>alert(1)</script>"
    data["rows"]["visionzip@16"]["answers"][0] = "<img src=x>"
    picture = Image.new("RGB", (8, 8))
    html = report.write(data, folder, [("visionzip", "a & b", picture)]).read_text()
    assert "<script>alert" not in html
    assert "<img src=x>" not in html
    assert "a &amp; b" in html
    heads = [cell.split("<")[0] for cell in html.split("<th>")[1:]]
    split = ["encoder", "selection", "prefill", "decode", "total", "floor", "overhead", "pays", "note"]
    assert heads[3:5] == ["mean tokens", "final"]
    assert heads[heads.index("encoder") : heads.index("note") + 1] == split
    assert "did no better than tokens drawn at random: " in html
    assert "broken.png: cannot identify" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert html.count("data:image/") == 2


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_terminal_is_spared_columns_and_told_which(done, width):
    """What is left stands whole: nothing is squeezed to nothing."""
    data = done[0].data
    console = Console(width=width, record=True, file=StringIO())
    console.print(tables.table(data, width))
    text = console.export_text()
    heads = [cell.strip() for cell in text.splitlines()[2].strip("┃\n").split("┃")]
    whole = [column.header for column in tables.table(data).columns]
    assert heads == [name for name in whole if name in heads]
    assert heads[:2] == ["method", "keep"]
    left = " ".join(text.split()).partition("see the report: ")[2].split(", ")
    assert sorted(left) == sorted(set(whole) - set(heads))
    assert "left out" not in str(tables.table(data, 240).caption)


def test_a_column_from_outside_stands_on_the_terminal_the_page_and_in_the_readme(tmp_path, monkeypatch):
    """One function is all it takes."""
    from benchmarks import readme

    row = {"method": "full", "keep": None, "accuracy": {"count": 0.5}, "accuracy_mean": 0.5, "mean_tokens": 64}
    row |= {
        "final_tokens": 64,
        "flops_share": 1.0,
        "kv_bytes": 1000,
        "ms": dict.fromkeys(("encoder", "selection", "prefill", "decode"), 1),
    }
    other = {**row, "method": "visionzip", "keep": readme.KEEP, "accuracy_mean": 0.25}
    env = {"cpu": "c", "cores": 2, "threads": 1, "versions": {"torch": "1", "transformers": "5", "tokensieve": "0"}}
    data = {"rows": {"full": row, "visionzip@160": other}, "samples": [], "skipped": [], "environment": env}
    data["settings"] = {"model": "m", "samples": 0, "seed": 0, "batch": 1, "data": "d", "dtype": "f", "device": "cpu"}

    @columns.register_column("of full", "of the full model", "{:.2f}")
    def of_full(row, rows):
        return row["accuracy_mean"] / rows["full"]["accuracy_mean"]

    try:
        console = Console(record=True, width=200)
        console.print(tables.table(data))
        (tmp_path / "pareto.svg").write_text("<svg/>")
        for text in (console.export_text(), readme.table(data), report.write(data, tmp_path).read_text()):
            assert "of full" in text or "of the full model" in text
            assert "0.50" in text
    finally:
        columns.COLUMNS.forget("of full")


def test_a_method_below_random_is_named():
    base = {"accuracy_mean": 0.5, "keep": 16, "mean_tokens": 16}
    rows = {"random@16": {**base, "method": "random"}, "x@16": {**base, "method": "x"}}
    rows["in@16"] = {**base, "method": "in", "accuracy_mean": 0.9, "mean_tokens": 40}
    assert results.beats_random(rows, rows["x@16"]) is False
    assert results.beats_random(rows, rows["random@16"]) is None
    assert columns.note(rows["x@16"], rows) == "not above random"
    assert columns.note(rows["in@16"], rows) == "2.5x random's tokens"


@pytest.mark.parametrize("name", ["visionzip", "fastervlm", "divprune", "fastv", "tome"])
def test_overlays(subject, samples, name):
    shown = overlay.look(subject, samples[0], ts.Plan(ts.stage(name, keep=16)), new_tokens=2)
    drawn = overlay.overlay(shown, 64)
    assert drawn.size == (64, 64)
    ranks = overlay.heat(shown, 64)
    assert (ranks is None) == (shown.score is None)
    assert overlay.sheet(shown, "title", 64).size == (3 * 64 + 16, 64 + 44)


def test_dropped_tokens_are_dim_and_kept_ones_untouched(subject, samples):
    shown = overlay.look(subject, samples[0], ts.Plan(ts.stage("fastervlm", keep=16)), new_tokens=1)
    side = 8 * SIDE
    plain = np.asarray(shown.image.resize((side, side), Image.Resampling.BICUBIC), dtype=float)
    drawn = np.asarray(overlay.overlay(shown, side), dtype=float)
    kept = set(shown.reduction.kept[0].tolist())
    for token in range(SIDE * SIDE):
        cell = (slice(token // SIDE * 8 + 2, token // SIDE * 8 + 6), slice(token % SIDE * 8 + 2, token % SIDE * 8 + 6))
        factor = 1 if token in kept else overlay.DIM
        assert np.abs(drawn[cell] - factor * plain[cell]).max() <= 1


def test_folders_skip_what_cannot_be_read(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:40])
    (tmp_path / "c.jpg").write_text("no image")
    (tmp_path / "notes.txt").write_text("ignored")
    samples, skipped = from_folder(tmp_path, "what ?")
    assert [s.name for s in samples] == ["b.png"]
    assert [line.split(":")[0] for line in skipped] == ["a.png", "c.jpg"]
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError, match="none of its 2 images can be read"):
        from_folder(tmp_path, "what ?")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        from_folder(tmp_path / "nowhere", "what ?")
