"""lmms-eval under a plan, in the environment that `make lmms` makes; elsewhere these are skipped."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

if find_spec("lmms_eval") is None:
    pytest.skip("lmms-eval is not installed", allow_module_level=True)
if subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode:
    # A torchvision for GPUs beside a torch without: its own operators are missing, and nothing here calls them.
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from lmms_eval.models import MODEL_REGISTRY_V2
from typer.testing import CliRunner

import tokensieve as ts
from tests.pictured import questions
from tests.test_loading import picture_folder  # noqa: F401 (a fixture)
from tokensieve import testbed
from tokensieve.bench.compat import tiny_models
from tokensieve.cli.main import app
from tokensieve.integrations import lmms_eval as ours

TASK = """
task: scenes
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
output_type: generate_until
doc_to_visual: !function scenes_pictures.doc_to_visual
doc_to_text: !function scenes_pictures.doc_to_text
doc_to_target: "{{{{answer}}}}"
lmms_eval_specific_kwargs: {{default: {{}}, llava_hf: {{named: true}}, qwen2_5_vl: {{named: true}}}}
generation_kwargs: {{max_new_tokens: 4}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
PICTURES = """
from PIL import Image


def doc_to_visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]


# Tasks may ask each model in words of its own.
def doc_to_text(doc, lmms_eval_specific_kwargs):
    return doc["question"] if lmms_eval_specific_kwargs.get("named") else "what ?"
"""
MARKS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|>"
    "<|vision_end|>{% elif c['type'] == 'text' %} {{ c['text'] }}{% endif %}{% endfor %}{% endfor %} answer :"
)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    questions(folder, "questions.jsonl")
    (folder / "scenes.yaml").write_text(TASK.format(folder=folder))
    (folder / "scenes_pictures.py").write_text(PICTURES)
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A tiny random Qwen2.5-VL with tokenizer and image processor."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    folder = tmp_path_factory.mktemp("qwen")
    tokenizer = testbed.load()[1].tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    tokenizer.init_kwargs.pop("processor_class", None)
    tokenizer.chat_template = TEMPLATE
    config = tiny_models.config("qwen2_5_vl")
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    for name, mark in zip(names, MARKS, strict=True):
        setattr(config, name, tokenizer.convert_tokens_to_ids(mark))
    config.text_config.vocab_size, config.text_config.max_position_embeddings = len(tokenizer), 2048
    torch.manual_seed(0)
    tiny_models.AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("processor_class", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def ask(task, tmp_path):
    """Runs the command, or lmms-eval's own where no plan is given; returns results, answers, and how the command ended."""

    def run(model, told, plan=None, *more):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        args = [
            "--model",
            model,
            "--model_args",
            told,
            "--tasks",
            "scenes",
            "--include_path",
            str(task),
            "--device",
            "cpu",
        ]
        args += ["--output_path", str(out), "--log_samples", *more]
        if plan is None:
            from lmms_eval.cli.dispatch import main

            with ours.HARNESS.called(args):
                main()
            done = None
        else:
            out.mkdir()
            plan.save(out / "plan.json")
            done = CliRunner().invoke(app, ["lmms-eval", "--plan", str(out / "plan.json"), "--", *args])
        results = [json.loads(file.read_text()) for file in out.rglob("*_results.json")]
        rows = [json.loads(row) for file in out.rglob("*_samples_*.jsonl") for row in file.read_text().splitlines()]
        return results, [row["filtered_resps"] for row in rows], done

    return run


@pytest.fixture
def llava(picture_folder):  # noqa: F811
    return f"pretrained={picture_folder},device_map=cpu,dtype=float32"


def test_where_everything_is_kept_the_answers_are_the_harness_own(ask, llava):
    (plain,), said, _ = ask("llava_hf", llava)
    (same,), kept, _ = ask("llava_hf", llava, ts.Plan(ts.stage("visionzip", keep=1.0)))
    assert kept == said
    assert same["results"] == plain["results"]
    (few,), fewer, _ = ask("llava_hf", llava, ts.Plan(ts.stage("random", keep=1)))
    assert fewer != said
    assert few["throughput"]["avg_tokensieve_tokens_kept"] == 1


def test_results_carry_the_plan_and_the_model_keeps_its_name(ask, llava):
    plan = ts.Plan([ts.stage("visionzip", keep=64), ts.stage("snapkv", keep=48)])
    (found,), _, done = ask("llava_hf", llava, plan)
    assert done.exit_code == 0
    told = found["config"]
    assert told["model"] == "llava_hf"
    assert ts.Plan.from_json(json.loads(told["model_args"].split("plan=")[1])) == plan
    assert found["results"]["scenes"]["exact_match,none"] >= 0.6
    numbers = found["throughput"]
    assert numbers["avg_tokensieve_tokens"] == 576
    assert numbers["avg_tokensieve_tokens_kept"] == 64
    assert MODEL_REGISTRY_V2.get_manifest("llava_hf") == ours.KNOWN["llava_hf"]
    assert MODEL_REGISTRY_V2.get_model_class("tokensieve-llava_hf").__name__ == "PlannedLlavaHf"


def test_batches_keep_what_single_questions_keep_under_three_plans(ask, qwen):
    """In lmms-eval this model runs in bfloat16 only, where a batch's sums are other ones: random weights then say other words."""
    told = f"pretrained={qwen},device_map=cpu,min_pixels=256,max_pixels=4096"
    for plan in (
        ts.Plan(ts.stage("divprune", keep=16)), ts.Plan(ts.stage("fastv", keep=16, layers=2)),
        ts.Plan([ts.stage("random", keep=0.5), ts.stage("snapkv", keep=0.5, window=4)]),
    ):  # fmt: skip
        kept = []
        for size in ("1", "4"):
            (found,), said, done = ask("qwen2_5_vl", told, plan, "--force_simple", "--batch_size", size)
            assert done.exit_code == 0
            assert len(said) == 5
            kept.append(
                [found["throughput"][f"avg_tokensieve_{name}"] for name in ("acted_on", "tokens", "tokens_kept")]
            )
        assert kept[0] == pytest.approx(kept[1])
        assert kept[0][2] < 0.8 * kept[0][1]


def test_what_lmms_eval_passes_over_is_an_error(ask, llava, qwen):
    _, _, done = ask("llava_hf", llava, ts.Plan(ts.stage("snapkv", keep=4)))
    assert "answered with nothing" in str(done.exception)
    assert "keep=4 leaves" in str(done.exception)
    _, _, done = ask("llava_hf", llava, ts.Plan(ts.stage("visionzip", keep=64)), "--tasks", "nothing")
    assert "ended without an answer" in str(done.exception)
    _, _, done = ask("qwen2_5_vl", f"pretrained={qwen},device_map=cpu", ts.Plan(ts.stage("tome", keep=0.5)))
    assert "the plan does not fit Qwen2_5_VLForConditionalGeneration" in str(done.exception)
    _, _, done = ask("llava_h", llava, ts.Plan(ts.stage("visionzip", keep=64)))
    assert "lmms-eval has llava_hf" in str(done.exception)


def test_answers_that_were_kept_belong_to_their_plan(ask, llava, tmp_path):
    few, kept = ts.Plan(ts.stage("random", keep=1)), ("--use_cache", str(tmp_path / "kept"))
    _, first, _ = ask("llava_hf", llava, few, *kept)
    _, again, done = ask("llava_hf", llava, few, *kept)
    assert done.exit_code == 0
    assert again == first
    _, other, _ = ask("llava_hf", llava, ts.Plan(ts.stage("visionzip", keep=256)), *kept)
    assert other != first
