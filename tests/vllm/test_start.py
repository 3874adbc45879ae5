"""What a server is refused at its start, with no engine: its configuration alone is made."""

import logging

import pytest

from tests.vllm import tiny
from tokensieve import testbed
from tokensieve.integrations.vllm import architectures, front_end, hooks, register
from tokensieve.integrations.vllm.stages import KEY


@pytest.fixture(scope="module")
def llava():
    return testbed.path()


def configured(model, plan=None, **more):
    from vllm import EngineArgs

    overrides = {} if plan is None else {KEY: plan}
    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024} | more
    return EngineArgs(str(model), hf_overrides=overrides, **options).create_engine_config()


BAD = {
    "an unknown method": ({"method": "divprun", "keep": 64}, "did you mean divprune"),
    "an unknown option": ({"method": "divprune", "keep": 64, "alpha": 1}, "no option alpha"),
    "none": ({"method": "divprune", "keep": 0}, "keep=0"),
    "fewer": ({"method": "divprune", "keep": -1}, "keep=-1"),
    "no number": ({"method": "divprune", "keep": float("nan")}, "keep=nan"),
    "too much": ({"method": "divprune", "keep": 1.5}, "keep=1.5"),
    "a word": ({"method": "divprune", "keep": "all"}, "keep='all'"),
    "a missing file": ({"plan": "nowhere.json"}, "No such file"),
    "inside the language model": ({"method": "fastv", "keep": 64}, "one block table.*tokensieve advise MODEL"),
    "at the cache": ({"method": "snapkv", "keep": 64}, "one block table"),
    "adaptive": ({"method": "trim", "keep": 64}, "before the encoder runs"),
    "of the text": ({"method": "cdpruner", "keep": 64}, "reads the text"),
    "a layer that is not built": ({"method": "fastervlm", "keep": 64, "encoder_layer": -1}, "does not build"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_plan_is_refused_by_name(llava, name):
    plan, said = BAD[name]
    with pytest.raises(ValueError, match=rf"(?s){said}"):
        configured(llava, plan)


def test_a_plan_gives_a_model_of_one_axis_tables_of_three(llava):
    made = configured(llava, {"method": "visionzip", "keep": 64})
    text = made.model_config.hf_config.text_config
    assert text.rope_parameters["mrope_section"] == [16, 0, 0]
    assert made.model_config.uses_mrope
    assert getattr(made.model_config.hf_config, KEY)["plan"]["stages"][0]["keep"] == 64


def test_without_a_plan_nothing_is_touched(llava):
    made = configured(llava)
    assert "mrope_section" not in made.model_config.hf_config.text_config.rope_parameters
    assert not made.model_config.uses_mrope


def test_what_does_not_go_together_is_refused(llava):
    attention, features = {"method": "fastervlm", "keep": 64}, {"method": "divprune", "keep": 64}
    with pytest.raises(ValueError, match="compile_mm_encoder"):
        configured(llava, attention, compilation_config={"compile_mm_encoder": True})
    with pytest.raises(ValueError, match="sieve_keep in --mm-processor-kwargs"):
        configured(llava, features, mm_processor_kwargs={"sieve_keep": 3})
    with pytest.raises(ValueError, match="served without its pictures"):
        configured(llava, features, language_model_only=True)


def test_an_encoder_that_is_shared_out_by_pictures_serves_what_reads_features(tmp_path):
    model = tiny.save("qwen25", tmp_path)
    configured(model, {"method": "divprune", "keep": 64}, mm_encoder_tp_mode="data")
    with pytest.raises(ValueError, match="each rank's encoder sees some"):
        configured(model, {"method": "fastervlm", "keep": 64}, mm_encoder_tp_mode="data")


def test_pruned_videos_and_a_plan_are_refused(tmp_path):
    model = tiny.save("qwen25", tmp_path)
    configured(model, video_pruning_rate=0.5)
    with pytest.raises(ValueError, match=r"--video-pruning-rate 0\.5"):
        configured(model, {"method": "divprune", "keep": 16}, video_pruning_rate=0.5)


def test_graphs_of_the_encoder_are_off(llava):
    made = configured(llava, {}, enforce_eager=False, compilation_config={"cudagraph_mm_encoder": True})
    assert not made.compilation_config.cudagraph_mm_encoder


def test_a_vllm_without_a_hook_starts_and_refuses_plans(llava, monkeypatch):
    monkeypatch.setattr(hooks, "FRONT", (*hooks.FRONT, "vllm:Nowhere.at_all"))
    configured(llava)
    with pytest.raises(ValueError, match=r"lacks vllm\.Nowhere\.at_all"):
        configured(llava, {"method": "divprune", "keep": 64})


def test_an_old_vllm_refuses_plans(llava, monkeypatch):
    monkeypatch.setattr(hooks, "version", lambda: "0.29.1")
    with pytest.raises(ValueError, match=r"0\.29\.1 is older than 0\.30"):
        configured(llava, {"method": "divprune", "keep": 64})


def test_a_vllm_without_a_table_of_architectures_is_left_as_it_is(monkeypatch, caplog):
    monkeypatch.setattr(architectures, "TABLE", "vllm:Nowhere")
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    register()
    assert "has no vllm.Nowhere; it thins no pictures" in caplog.text


def test_a_processor_refuses_a_plan_where_a_config_could_not(llava, monkeypatch):
    made = configured(llava, {"method": "divprune", "keep": 64})
    monkeypatch.setattr(hooks, "FRONT", (*hooks.FRONT, "vllm:Nowhere.at_all"))
    with pytest.raises(ValueError, match=r"lacks vllm\.Nowhere\.at_all"):
        processor(made)


def processor(config):
    from vllm.multimodal import MULTIMODAL_REGISTRY

    return MULTIMODAL_REGISTRY.create_processor(config.model_config)


def counted(monkeypatch):
    """How often what a plan hooks in runs in the front end."""
    ran = []
    for name in ("apply", "updates", "most"):
        plain = getattr(front_end.FrontEnd, name)
        monkeypatch.setattr(
            front_end.FrontEnd, name, lambda self, *a, p=plain, n=name, **k: (ran.append(n), p(self, *a, **k))[1]
        )
    return ran


def test_a_server_without_a_plan_runs_no_hook(llava, monkeypatch):
    ran = counted(monkeypatch)
    processor(configured(llava)).get_dummy_mm_inputs({"image": 1})
    assert ran == []
    made = processor(configured(llava, {"method": "divprune", "keep": 64}))
    out = made.get_dummy_mm_inputs({"image": 1})
    assert {"apply", "updates"} <= set(ran)
    # The largest picture is measured as it will be sent.
    assert [r.get_num_embeds() for r in out["mm_placeholders"]["image"]] == [64]
    assert made.info.get_mm_max_tokens_per_item(1024, {"image": 1}) is None


def test_a_request_that_brings_a_plan_to_a_server_without_is_refused(llava):
    from vllm.multimodal.processing import ProcessorInputs, TimingContext

    made = processor(configured(llava))
    inputs = made.get_dummy_inputs(1024, {"image": 1}, {})
    asked = ProcessorInputs(inputs.prompt, inputs.mm_data_items, hf_processor_mm_kwargs={"sieve_keep": 3})
    with pytest.raises(ValueError, match="this server thins no pictures"):
        made.apply(asked, TimingContext(enabled=False))


def test_hashes_carry_the_plan(llava):
    from vllm.multimodal.processing import ProcessorInputs, TimingContext

    made = processor(configured(llava, {}))
    inputs = made.get_dummy_inputs(1024, {"image": 1}, {})

    def hashed(**plan):
        given = {f"sieve_{name}": value for name, value in plan.items()}
        asked = ProcessorInputs([*inputs.prompt, 9], inputs.mm_data_items, hf_processor_mm_kwargs=given)
        return made.apply(asked, TimingContext(enabled=False))["mm_hashes"]["image"][0]

    plans = [{}, {"method": "divprune", "keep": 256}, {"method": "fastervlm", "keep": 256}]
    assert len({hashed(**plan) for plan in plans}) == 3
    assert hashed(**plans[1]) == hashed(**plans[1])
    # The same plan in other words.
    assert hashed(method="divprune", keep=256, positions="original") == hashed(**plans[1])


def test_a_prompt_that_ends_with_a_picture_is_refused(llava):
    from vllm.multimodal.processing import ProcessorInputs, TimingContext

    made = processor(configured(llava, {"method": "divprune", "keep": 64}))
    inputs = made.get_dummy_inputs(1024, {"image": 1}, {})
    with pytest.raises(ValueError, match="ends with a picture"):
        made.apply(ProcessorInputs(inputs.prompt, inputs.mm_data_items), TimingContext(enabled=False))
