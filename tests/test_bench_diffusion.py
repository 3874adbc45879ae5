"""bench-diffusion: images from the same noise with and without sieves, and what a step costs."""

import json

import pytest

from tests.test_cli import call

pytest.importorskip("diffusers")
import diffusers

from tokensieve.bench.compat import denoisers
from tokensieve.bench.diffusion import page, step
from tokensieve.core.stage import stage

NUMBERS = ("time", "selection", "floor", "flops", "psnr", "ssim")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A stock pipeline, with random weights."""
    home = tmp_path_factory.mktemp("pipeline")
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    )
    options = {**denoisers.TINY["DiTTransformer2DModel"].options, "num_embeds_ada_norm": 1000}
    made = diffusers.DiTPipeline(diffusers.DiTTransformer2DModel(**options), vae, diffusers.DDIMScheduler())
    made.save_pretrained(home)
    return home


def bench(folder, out, *more):
    told = ("--methods", "tome", "--keep", "0.5", "--images", "2", "--steps", "2", "--out", str(out))
    return call("bench-diffusion", str(folder), *told, *more)


def test_a_stock_pipeline_is_compared_and_a_second_run_goes_on(folder, tmp_path):
    first = bench(folder, tmp_path)
    assert first.exit_code == 0, first.output
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["rows"]) == ["tome 0.5", "random 0.5", "uniform 0.5", "pool 0.5"]
    for row in results["rows"].values():
        assert all(isinstance(row[name], float) for name in NUMBERS)
        assert 0.4 < row["flops"] < 1
        assert [m["grid"] for m in row["kept"]] == [[8, 8]] * 2
        assert all(len(m["kept"]) == 32 for m in row["kept"])
        assert row["baseline"] == (row["method"] != "tome")
    html = (tmp_path / "report.html").read_text()
    assert "tome 0.5" in html
    assert html.count("data:image/png") == 1 + 4 * 4
    results["rows"]["tome 0.5"]["psnr"] = 99.0
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert bench(folder, tmp_path).exit_code == 0
    assert json.loads((tmp_path / "results.json").read_text())["rows"]["tome 0.5"]["psnr"] == 99.0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--keep", "half"), "--keep 'half': numbers"),
        (("--keep", "0"), "keep=0.0; it must be"),
        (("--acts", "1"), "--acts '1': two numbers"),
        (("--methods", "tom"), "no method is called 'tom'; did you mean tome"),
        (("--methods", "visionzip"), "visionzip runs at handoff"),
        (("--methods", "cat-pruning"), "cat-pruning goes by earlier steps of a run"),
    ],
)
def test_bad_input_is_said(folder, tmp_path, more, says):
    assert says in str(bench(folder, tmp_path, *more).exception)


def test_a_folder_of_another_comparison_is_left_alone(folder, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"asked": {"model": "other"}, "rows": {}}))
    assert "take another --out" in str(bench(folder, tmp_path).exception)


def test_what_cannot_be_loaded_is_said(tmp_path):
    assert "cannot load" in str(bench(tmp_path / "nothing", tmp_path / "out").exception)


def test_operations_are_those_of_the_shorter_attention():
    """All of it is counted: projections of 64 and 32 tokens, products of queries and keys, and what the choice multiplies: of
    every token that leaves with every one that stays."""
    model, given = denoisers.build("DiTTransformer2DModel"), denoisers.TINY["DiTTransformer2DModel"].call()
    plain = step.flops(model, given)
    found = step.cost(model, given, stage("uniform", 0.5, site="diffusion"), rounds=1)
    width, rows, layers = 32, 2, 3
    per_layer = rows * (2 * 4 * 32 * width**2 + 2 * 2 * (64**2 - 32**2) * width - 2 * 32 * 32 * width)
    assert plain - round(found["flops"] * plain) == layers * per_layer
    assert found["tokens"] == 64
    assert found["floor"] <= found["time"]


def test_it_pays_from_the_size_on_from_which_every_larger_one_does():
    assert page.pays_from({"64": 1.2, "256": 0.9, "1024": 0.6}) == "256"
    assert page.pays_from({64: 0.9, 256: 1.1}) == "not up to 256"
    assert page.pays_from({}) == ""
