"""lm-eval under a plan: its own numbers where everything is kept, and what a plan does where it acts."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

import tokensieve as ts
from tests.pictured import questions
from tokensieve import testbed
from tokensieve.cli.main import app
from tokensieve.testbed import lm

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.tasks import TaskManager  # noqa: E402

from tokensieve.integrations import lm_eval as ours  # noqa: E402

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {file}.cache}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{text}}}}"
doc_to_target: {target}
"""
KINDS = {
    "choose": ("multiple_choice", "answer", 'doc_to_choice: "{{choices}}"\nmetric_list: [{metric: acc}]\n'),
    "write": (
        "generate_until", '"{{choices[0]}}"',
        'generation_kwargs: {until: ["\\n"], max_gen_toks: 6}\nmetric_list: [{metric: exact_match}]\n',
    ),
    "roll": ("loglikelihood_rolling", '"{{text}}"', "metric_list: [{metric: word_perplexity}]\n"),
}  # fmt: skip
TASKS = ["choose", "write"]
FACTS = {"river": "window", "stone": "silver", "garden": "door"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tasks of JSON lines; texts of different lengths, one choice of one token, one of several."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for i in range(5):
        lines = [f"The code of {a} is {b}." for a, b in FACTS.items()]
        text = "\n".join([*lines, "There is more to say. " * (3 + 4 * i), "The code of stone is"])
        rows.append({"text": text, "choices": ["silver", "window of the garden", "door"], "answer": 0})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, (kind, target, more) in KINDS.items():
        told = CHOICE.format(name=name, file=folder / "rows.jsonl", kind=kind, target=target)
        (folder / f"{name}.yaml").write_text(told + more)
    return folder


@pytest.fixture(scope="module")
def ask(folder):
    def run(model, plan=None, tasks=TASKS, batch=1, **more):
        told = {"pretrained": str(lm.path()), "dtype": "float32", "max_length": 512} | (
            {"plan": plan.to_json()} if plan else {}
        )
        return lm_eval.simple_evaluate(
            model=model, model_args=told, tasks=tasks, batch_size=batch, device="cpu", bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False), **more,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def plain(ask):
    return ask("hf")


def answers(results, task):
    return [row["resps"] for row in sorted(results["samples"][task], key=lambda row: row["doc_id"])]


def likelihoods(results):
    return torch.tensor([[float(one[0][0]) for one in row] for row in answers(results, "choose")])


@pytest.mark.parametrize("plan", [ts.Plan(ts.stage("snapkv", keep=1.0)), ts.Plan([])], ids=["share", "none"])
def test_where_everything_is_kept_the_numbers_are_the_harness_own(ask, plain, plan):
    same = ask("tokensieve-hf", plan)
    assert [answers(same, task) for task in TASKS] == [answers(plain, task) for task in TASKS]
    assert same["results"] == plain["results"]


def test_likelihoods_behind_a_whole_cache_are_the_harness_own(ask, plain):
    """Two passes instead of one, over the same numbers."""
    with pytest.warns(UserWarning, match=r"'keydiff' at site='cache' kept every token of every prompt"):
        whole = ask("tokensieve-hf", ts.Plan(ts.stage("keydiff", keep=4096)))
    assert torch.allclose(likelihoods(whole), likelihoods(plain), atol=1e-3)
    assert answers(whole, "write") == answers(plain, "write")


@pytest.fixture(scope="module")
def model():
    return lm.load()


def by_hand(model, tokenizer, plan, context, continuation):
    """The likelihood without padding or batches, and what is written."""
    ids = torch.tensor([tokenizer.encode(context, add_special_tokens=False)])
    more = torch.tensor([tokenizer.encode(context + continuation, add_special_tokens=False)])[:, ids.shape[1] :]
    with ts.sieve(model, plan):
        cache = ts.prefill(model, ids[:, :-1])
    with ts.sieve(model, ts.Plan([])), torch.no_grad():
        tail = torch.cat([ids[:, -1:], more[:, :-1]], 1)
        places = torch.arange(ids.shape[1] - 1, ids.shape[1] - 1 + tail.shape[1])[None]
        mask = torch.ones(1, ids.shape[1] - 1 + tail.shape[1], dtype=torch.long)
        logits = model(tail, past_key_values=cache, position_ids=places, attention_mask=mask).logits
    said = logits.float().log_softmax(-1).gather(2, more[..., None]).sum()
    with ts.sieve(model, plan):
        written = model.generate(ids, max_new_tokens=6, do_sample=False)
    return float(said), tokenizer.decode(written[0, ids.shape[1] :]).split("\n")[0]


@pytest.mark.parametrize(("name", "batch"), [("keydiff", 3), ("adakv", "auto"), ("zipcache", 2)])
def test_a_cache_plan_acts_alike_in_batches_of_any_size(ask, plain, model, folder, name, batch):
    plan = ts.Plan(ts.stage(name, keep=0.5))
    found = ask("tokensieve-hf", plan, batch=batch, max_batch_size=4)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    hand = [[by_hand(*model, plan, row["text"], " " + choice) for choice in row["choices"]] for row in rows]
    told = torch.tensor([[said for said, _ in row] for row in hand])
    assert torch.allclose(likelihoods(found), told, atol=2e-3)
    assert not torch.allclose(told, likelihoods(plain), atol=0.1)
    assert [a[0][0] for a in answers(found, "write")] == [row[0][1] for row in hand]


def test_results_carry_the_plan_and_what_it_kept(ask):
    plan = ts.Plan(ts.stage("keydiff", keep=0.25))
    told = ask("tokensieve-hf", plan)["config"]
    assert ts.Plan.from_json(told["tokensieve"]["plan"]) == plan
    assert told["model_args"]["plan"] == plan.to_json()
    assert told["tokensieve"]["tokens_kept"] == pytest.approx(0.25 * told["tokensieve"]["tokens"], abs=1)
    assert told["tokensieve"]["untouched"] == 0


@pytest.mark.parametrize(
    ("plan", "tasks", "says"),
    [
        (ts.Plan(ts.stage("keydiff", keep=0.5)), ["roll"], "contexts of one token"),
        (ts.Plan(ts.stage("keydiff", keep=64, every=8)), ["choose"], "decodes nothing, so every=8 of 'keydiff'"),
        (ts.Plan(ts.stage("tidaldecode", keep=64)), ["choose"], "'tidaldecode', which reads a few entries"),
        (ts.Plan(ts.stage("visionzip", keep=64)), ["write"], "the plan does not fit LlamaForCausalLM"),
    ],
    ids=["rolling", "every", "reading", "pictures"],
)  # fmt: skip
def test_what_would_not_act_is_refused(ask, plan, tasks, says):
    with pytest.raises(ValueError, match=says):
        ask("tokensieve-hf", plan, tasks)


PICTURED = """
task: look
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/looks.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
output_type: generate_until
doc_to_text: "<image> {{{{question}}}} answer :"
doc_to_image: !function pictures.opened
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 4}}
metric_list: [{{metric: exact_match}}]
"""
OPENED = """
from PIL import Image


def opened(doc):
    return [Image.open(doc["image"]).convert("RGB")]
"""


@pytest.mark.slow
def test_a_vision_language_model_answers_under_a_plan(tmp_path):
    questions(tmp_path, "looks.jsonl")
    (tmp_path / "look.yaml").write_text(PICTURED.format(folder=tmp_path))
    (tmp_path / "pictures.py").write_text(OPENED)

    def look(model, batch=1, **plan):
        return lm_eval.simple_evaluate(
            model=model, model_args={"pretrained": str(testbed.path()), "dtype": "float32", "max_length": 700, **plan},
            tasks=["look"], batch_size=batch, device="cpu", bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        )  # fmt: skip

    plain = look("hf-multimodal")
    whole = ts.Plan([ts.stage("visionzip", keep=1.0), ts.stage("fastv", keep=1.0)])
    assert answers(look("tokensieve-hf-multimodal", plan=whole.to_json()), "look") == answers(plain, "look")
    few = ts.Plan(ts.stage("visionzip", keep=64)).to_json()
    one, all_ = (look("tokensieve-hf-multimodal", batch, plan=few) for batch in (1, 5))
    assert answers(one, "look") == answers(all_, "look")
    assert one["config"]["tokensieve"] == all_["config"]["tokensieve"]
    assert one["config"]["tokensieve"]["tokens_kept"] == 64


@pytest.mark.slow
def test_answers_of_another_plan_are_not_taken(ask, tmp_path):
    half, kept = ts.Plan(ts.stage("keydiff", keep=0.5)), str(tmp_path / "answers")
    first = ask("tokensieve-hf", half, use_cache=kept)
    again = ask("tokensieve-hf", half, use_cache=kept)
    assert answers(again, "write") == answers(first, "write")
    with pytest.raises(ValueError, match="under another; name another file"):
        ask("tokensieve-hf", ts.Plan(ts.stage("keydiff", keep=0.25)), use_cache=kept)
    ask("hf", use_cache=str(tmp_path / "plain"))
    with pytest.raises(ValueError, match="without this plan"):
        ask("tokensieve-hf", half, use_cache=str(tmp_path / "plain"))


@pytest.mark.slow
def test_the_command_runs_with_the_plan_beside_the_weights(folder, tmp_path):
    shutil.copytree(lm.path(), tmp_path / "model", ignore=shutil.ignore_patterns("heldout*"))
    plan = ts.Plan(ts.stage("random", keep=0.25, site="cache"))
    plan.save(tmp_path / "model")
    args = ["--model", "hf", "--model_args", f"pretrained={tmp_path / 'model'}", "--tasks", "write", "--device", "cpu"]
    args += ["--include_path", str(folder), "--output_path", str(tmp_path / "out.json")]
    done = CliRunner().invoke(app, ["lm-eval", "--seed", "3", "--", *args])
    assert done.exit_code == 0, done.output
    (file,) = tmp_path.glob("out*.json")
    told = json.loads(file.read_text())["config"]
    assert told["model"] == "tokensieve-hf"
    assert ts.Plan.from_json(told["tokensieve"]["plan"]) == plan
    assert told["tokensieve"]["seed"] == 3


def test_a_release_without_a_hook_is_named():
    class Other:
        def generate_until(self): ...

    with pytest.raises(ImportError, match=r"has no Other\._loglikelihood_tokens.*pip install lm-eval==0\.4\.13"):
        ours.check_hooks(Other, ("generate_until", "_loglikelihood_tokens"), "lm-eval", ours.TESTED)
