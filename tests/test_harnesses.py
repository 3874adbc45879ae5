"""A harness's command line and its model under a plan, without a harness."""

import json

import pytest
import torch
from typer.testing import CliRunner

import tokensieve as ts
from tests.models import decoder, llava, prompt, text
from tokensieve.cli.main import app
from tokensieve.integrations.command import Harness
from tokensieve.integrations.planned import Planned, read_plan

PLAN = ts.Plan(ts.stage("keydiff", keep=0.5))
ADDS = Harness("lm-eval", ("hf", "hf-multimodal"), "run", adds=True)
LAST = Harness("lmms-eval", ("llava_hf",), "eval", adds=False)


def test_the_plan_goes_into_the_arguments_of_the_model():
    args = ["run", "--model=hf", "--model_args", "pretrained=a"]
    assert ADDS.model(args) == ADDS.model(["--model", "tokensieve-hf"]) == "hf"
    *before, option, value = ADDS.told(args, PLAN, 3)
    assert before == args
    assert (option, json.loads(value)) == ("--model_args", {"plan": PLAN.to_json(), "sieve_seed": 3})
    assert ADDS.told(args, None, 0) == args
    told = LAST.told(["--model_args=pretrained=a,dtype=float32", "--tasks", "b"], PLAN, 0)
    assert told[-1].startswith("pretrained=a,dtype=float32,plan={")
    assert ts.Plan.from_json(json.loads(told[-1].split("plan=", 1)[1])) == PLAN


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["ls", "tasks"], "lm-eval ls runs no model"),
        (["--config", "a.yaml"], "--config: a configuration file may name models"),
        (["--tasks", "a"], "no --model behind --; a plan goes with hf"),
        (["--model", "vllm"], "--model vllm: a plan goes with models of transformers; lm-eval has hf"),
        (["--model"], "--model has no value"),
    ],
)
def test_arguments_that_no_plan_goes_with_are_refused(args, says):
    with pytest.raises(ValueError, match=says):
        ADDS.model(args)


def test_plans_are_read_from_wherever_they_stand(tmp_path):
    PLAN.save(tmp_path)
    file = str(tmp_path / "tokensieve.json")
    told = (PLAN, PLAN.to_json(), json.dumps(PLAN.to_json()), file)
    assert [read_plan(one, "elsewhere") for one in told] == [PLAN] * 4
    assert read_plan(None, str(tmp_path)) == PLAN
    with pytest.raises(FileNotFoundError, match="no plan: give --plan"):
        read_plan(None, "elsewhere")


def test_what_a_plan_kept_is_added_up():
    model = decoder()
    planned = Planned(model, PLAN, 0)
    with planned:
        model.generate(**text(40, 60), max_new_tokens=2)
        model.generate(**text(20), max_new_tokens=2)
    assert planned.facts() == {"acted_on": 3, "tokens": 40.0, "tokens_kept": 20.0, "untouched": 0}
    assert ts.attached(model) == ()
    assert "generate" not in vars(model)


def test_prompts_without_pictures_are_counted_apart_and_never_taken_for_the_plan():
    model = llava()
    planned = Planned(model, ts.Plan(ts.stage("divprune", keep=16)), 0)
    words = {k: v[:, -6:] for k, v in prompt((1,)).items() if k != "pixel_values"}
    with pytest.raises(RuntimeError, match="'divprune' at site='handoff' never acted"), planned:
        model.generate(**words, max_new_tokens=2)
    with planned:
        model.generate(**prompt((1, 2)), max_new_tokens=2)
    assert planned.facts() == {"acted_on": 3, "tokens": 64.0, "tokens_kept": 16.0, "untouched": 1}


def test_an_error_that_a_harness_passes_over_is_raised_in_the_end():
    model = decoder()
    planned = Planned(model, ts.Plan(ts.stage("snapkv", keep=4)), 0)
    asked = []

    def harness():
        for _ in range(2):
            try:
                asked.append(model.generate(**text(60), max_new_tokens=2))
            except ValueError:
                asked.append("")

    with pytest.raises(RuntimeError, match=r"answered with nothing, .* ValueError was raised: keep=4 leaves"), planned:
        harness()
    assert asked == ["", ""]
    harness()
    assert all(isinstance(one, torch.Tensor) for one in asked[2:])


def test_a_model_without_a_cache_is_no_model_under_a_cache_plan():
    model = decoder()
    with pytest.raises(UserWarning, match="evicted nothing"), Planned(model, PLAN, 0):
        model.generate(**text(60), max_new_tokens=2, use_cache=False)


def test_prompts_within_the_budget_are_told():
    model = decoder()
    with (
        pytest.warns(UserWarning, match="kept every token of every prompt"),
        Planned(model, ts.Plan(ts.stage("keydiff", keep=100)), 0),
    ):
        model.generate(**text(60), max_new_tokens=2)


def test_commands_say_what_is_missing(tmp_path):
    call = CliRunner().invoke(app, ["lm-eval", "--plan", str(tmp_path / "a.json"), "--", "--model", "hf"])
    assert isinstance(call.exception, FileNotFoundError)
    for name in ("lm-eval", "lmms-eval"):
        assert "-- ARGS" in CliRunner().invoke(app, [name, "--help"]).output
