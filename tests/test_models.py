"""Architectures, tiny and random, against the plain model with the dropped tokens masked; prompts out of the ordinary."""

import importlib.util
import inspect
import json
import warnings
from importlib import resources

import pytest
import torch
import transformers
from PIL import Image

import tokensieve as ts
from tokensieve import testbed
from tokensieve.bench.compat import cross, matrix, tiny_models
from tokensieve.bench.compat.check import NEW, Case, _hiding
from tokensieve.sites.loading import processor_of
from tokensieve.sites.model import taps
from tokensieve.sites.model.compatibility import pixels_name

REQUIRED = (
    "llava", "llava_next", "llava_onevision", "video_llava", "llava_next_video", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl",
    "smolvlm", "idefics3", "paligemma", "gemma3", "mistral3", "aya_vision", "glm4v",
)  # fmt: skip
VIDEO = {"llava_onevision", "video_llava", "llava_next_video", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"}
RECORD = resources.files("tokensieve").joinpath("bench/compat/models.json").read_text(encoding="utf-8")
REST = sorted(set(tiny_models.names()) - set(REQUIRED))
TAKEN = inspect.signature(transformers.LlavaOnevisionModel.get_video_features).parameters
UNENDED = {"llava_onevision"} if pixels_name(TAKEN, "video") == "pixel_values" else set()


@pytest.mark.parametrize("name", REQUIRED)
def test_required_architectures_work(name):
    if name in UNENDED:
        pytest.skip("in this release its videos get their line end past the method that encodes them")
    verdict = matrix.check(name)
    assert (verdict.status, verdict.why) == ("works", "")
    assert set(verdict.checked) == {
        *matrix.CHECKS,
        "sdpa",
        "eager",
        "encoder signals",
        *(["video"] if name in VIDEO else []),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_no_architecture_is_answered_wrongly(name):
    assert matrix.check(name).status != "wrong"


def test_cross_attention_works_at_its_own_site():
    verdict = matrix.check("mllama")
    assert (verdict.status, verdict.checked) == ("works", [*cross.CHECKS, "sdpa", "eager"])


@pytest.mark.parametrize(("what", "broken"), [("cross", "seen"), ("rows alone", "batch")])
def test_a_check_of_cross_attention_can_fail(monkeypatch, what, broken):
    case = cross.CrossCase("mllama")
    plain = getattr(case, broken)
    monkeypatch.setattr(case, broken, lambda *a: ~plain(*a) if broken == "seen" else plain((3,)))
    assert cross.CHECKS[what](case)


@pytest.mark.skipif(
    f"transformers {transformers.__version__}," not in RECORD, reason="the record was made on another release"
)
def test_the_record_holds_every_architecture():
    assert [row.name for row in matrix.recorded()] == tiny_models.names()
    assert all(row.why for row in matrix.recorded() if row.status != "works")


def test_cross_attention_is_refused():
    model = tiny_models.model("mllama")
    with pytest.raises(ValueError, match="cross-attention"):
        ts.sieve(model, "divprune", keep=4)


def test_a_check_can_fail(monkeypatch):
    case = Case("llava")
    monkeypatch.setattr(case, "gone", lambda s: torch.zeros_like(case.visual))
    with pytest.raises(matrix.Differs):
        case.dropping()


# ---- what methods are told ------------------------------------------------------------------------------------------


class Told(Exception):
    pass


@pytest.fixture
def told(monkeypatch):
    """The signals of the first stage of a pass."""

    def run(case, method="divprune", inputs=None, **where):
        made = ts.stage(method, keep=4, **where)
        seen = []
        plain = type(made.method).__call__
        monkeypatch.setattr(type(made.method), "__call__", lambda self, s, keep: seen.append(s) or plain(self, s, keep))
        with torch.no_grad(), ts.sieve(case.model, made):
            case.model(**(inputs or case.inputs))
        return seen[0]

    return run


def test_merged_patches_lie_on_the_grid_of_their_tokens(told):
    for name in ("internvl", "gemma3", "aya_vision"):
        signals = told(Case(name))
        assert signals.grid == (4, 4), name
        assert signals.crop is None
        assert signals.frame is None


def test_images_of_different_sizes_have_places_instead_of_a_grid(told):
    signals = told(Case("qwen2_5_vl"))
    assert signals.grid is None
    assert signals.mask.sum(1).tolist() == [16, 16, 8]
    y, x = signals.spot[2, :8].unbind(-1)
    assert torch.allclose(y, torch.tensor([0.25] * 4 + [0.75] * 4))
    assert torch.allclose(x, torch.tensor([0.125, 0.375, 0.625, 0.875] * 2))


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_crops_and_line_ends_are_told_apart(told, name):
    signals = told(Case(name))
    crop, spot, mask = signals.crop, signals.spot, signals.mask
    assert (crop[:, :64] == 0).all()  # the thumbnail
    assert set(crop[mask].tolist()) == {-1, 0, 1, 2}
    ends = (crop == -1) & mask
    assert torch.allclose(spot[ends][:, 1], torch.ones(int(ends.sum())))
    rows = int(ends[0].sum())
    wide = (int(mask[0].sum()) - 64) // rows
    grid = spot[0, 64 : 64 + rows * wide].view(rows, wide, 2)[:, :-1]
    assert torch.allclose(grid[:, 0, 0], (torch.arange(rows) + 0.5) / rows)
    assert torch.allclose(grid[0, :, 1], (torch.arange(wide - 1) + 0.5) / (wide - 1))


def test_tiles_of_one_image_are_one_group(told):
    case = Case("internvl")
    one = case.prompts.row(0, 3)
    tiles = one.ids[one.ids != tiny_models.IMAGE]
    gaps = (one.ids == tiny_models.IMAGE).nonzero()[:, 0]
    ids = torch.cat([tiles[:3], torch.full((len(gaps),), tiny_models.IMAGE), tiles[3:]])
    signals = told(case, inputs=case.prompts.collate([type(one)(ids, one.pictures)]))
    assert signals.features.shape[:2] == (1, 48)
    assert signals.crop[0].unique_consecutive().tolist() == [1, 2, 0]


def test_frames_are_numbered_in_order_of_time(told):
    for name in {"qwen3_vl", "llava_next_video", "llava_onevision", "video_llava"} - UNENDED:
        signals = told(Case(name, video=True))
        assert signals.frame is not None, name
        assert set(signals.frame[0].tolist()) - {-1} == {0, 1}, name
        assert signals.crop is None, name


@pytest.mark.parametrize("name", ["qwen2_5_vl", "mistral3", "internvl", "llava_next", "qwen3_vl"])
@pytest.mark.parametrize("method", ["fastervlm", "hiprune"])
def test_encoder_signals_of_an_image_do_not_depend_on_its_batch(told, name, method):
    case = Case(name)
    both = told(case, method)
    alone = told(case, method, case.prompts.collate([case.prompts.row(0, 1)]))
    for signal in ("cls_attention", "received_attention"):
        if getattr(both, signal) is None:
            continue
        for layer, value in getattr(alone, signal).items():
            n = value.shape[-1]
            torch.testing.assert_close(getattr(both, signal)[layer][0, :, :n], value[0], atol=1e-6, rtol=1e-4)


def test_attention_between_encoder_and_language_model_leaves_features_only():
    case = Case("idefics2")
    with ts.sieve(case.model, "hiprune", keep=4), pytest.raises(ValueError, match="such as 'divprune'"):
        case.generate()


# ---- prompts out of the ordinary ------------------------------------------------------------------------------------

SOME = ("llava", "llava_next", "qwen3_vl", "gemma3", "smolvlm")


@pytest.mark.parametrize("name", SOME)
def test_prompts_without_images_pass_through(name):
    case = Case(name)
    inputs = case.prompts.batch((0, 0))
    plain = case.generate(inputs)
    with ts.sieve(case.model, "divprune", keep=4) as s:
        assert torch.equal(case.generate(inputs), plain)
    assert s.last is None


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "internvl"])
def test_more_images_than_placeholders_is_the_models_own_error(name):
    case = Case(name)
    inputs = case.inputs | {
        k: torch.cat([v, v]) for k, v in case.inputs.items() if k in ("pixel_values", "image_grid_thw")
    }
    with pytest.raises((ValueError, StopIteration, RuntimeError, IndexError)) as plain:
        case.generate(inputs)
    with ts.sieve(case.model, "divprune", keep=4), pytest.raises(plain.type) as sieved:
        case.generate(inputs)
    assert str(sieved.value) == str(plain.value)


def test_every_image_keeps_a_token_of_a_budget_that_is_too_small():
    case = Case("llava")
    inputs = case.prompts.batch((3, 1))
    with (
        ts.sieve(case.model, "divprune", keep=ts.Keep(tokens=2, per="prompt")) as s,
        pytest.warns(UserWarning, match="keep=2 for the 3 images"),
    ):
        case.generate(inputs)
    assert s.last.rows == [0, 0, 0, 1]
    assert s.last.stages[0].reduction.counts.tolist() == [1, 1, 1, 2]
    with warnings.catch_warnings(), ts.sieve(case.model, "divprune", keep=ts.Keep(tokens=3, per="prompt")) as s:
        warnings.simplefilter("error")
        case.generate(inputs)
    assert s.last.rows == [0, 1]


@pytest.mark.parametrize("name", ["qwen3_vl", "llava_next_video", "qwen2_vl"])
def test_a_video_of_one_frame(name):
    case = Case(name)
    case.prompts.frames = 1
    case.inputs = case.prompts.batch((1, 2), video=True)
    case.dropping()


def test_beams_share_their_pictures():
    for name in ("llava_next", "qwen2_5_vl"):
        case = Case(name)
        try:
            case.generate(num_beams=2)
        except RuntimeError as error:  # of some releases
            pytest.skip(f"{name} has no beams without a sieve either: {error}")
        with ts.sieve(case.model, "hiprune", keep=4):
            both = case.generate(num_beams=2)[:, -NEW:]
            alone = case.generate(case.prompts.collate([case.prompts.row(0, 1)]), num_beams=2)[:, -NEW:]
        assert torch.equal(alone[0], both[0]), name


@pytest.mark.parametrize("where", [{}, {"site": "prefill", "layers": 2}])
def test_an_answer_goes_on_from_compact_positions_in_three_dimensions(where):
    case = Case("qwen2_5_vl")
    with torch.no_grad(), ts.sieve(case.model, "divprune", keep=4, positions="compact", **where):
        out = case.generate(return_dict_in_generate=True, output_logits=True)
        longer = {k: torch.nn.functional.pad(v, (0, NEW), value=int(k == "attention_mask"))
                  for k, v in case.inputs.items() if k in ("attention_mask", "mm_token_type_ids")}  # fmt: skip
        whole = case.model(**{**case.inputs, **longer, "input_ids": out.sequences}).logits[:, -NEW - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, 1), whole, atol=1e-4, rtol=1e-3)


def test_deepstack_features_go_on_with_their_tokens_also_between_the_first_layers():
    Case("qwen3_vl").dropping(layer=1)


@pytest.mark.parametrize("name", ["gemma3", "gemma4", "llama4"])
def test_windows_and_chunks_reach_as_far_as_without_a_sieve(name):
    try:
        case = Case(name)
        case.generate()
    except (AttributeError, TypeError) as error:  # of some releases
        pytest.skip(f"{name} does not answer without a sieve either: {error}")
    config = case.model.config.text_config
    window = getattr(config, "attention_chunk_size", None) or config.sliding_window
    assert window < case.inputs["input_ids"].shape[1]
    case.dropping()
    case.dropping(layer=2)


def test_a_processor_loads_without_torchvision(tmp_path):
    if importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is installed")
    if "torchvision" in getattr(transformers.AutoImageProcessor, "_backends", ()):
        pytest.skip("this release of transformers makes no image processor without torchvision")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = testbed.load()[1].tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image_pad|>", "<|video_pad|>"]})
    tokenizer.init_kwargs.pop("processor_class", None)
    for part in (tokenizer, Qwen2VLImageProcessorPil(), tiny_models.config("qwen2_vl")):
        part.save_pretrained(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    plain = {k: v for k, v in json.loads(settings.read_text()).items() if k != "processor_class"}
    settings.write_text(json.dumps(plain))
    processor = processor_of(str(tmp_path))
    out = processor(images=[Image.new("RGB", (112, 112))], text=["<|image_pad|> red"], return_tensors="pt")
    assert out["image_grid_thw"].tolist() == [[1, 8, 8]]
    assert (out["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum() == 16


def test_sequences_in_one_row_are_told_apart_under_flash_attention():
    q, k, v = torch.randn(3, 1, 2, 7, 4)
    parts = taps.segments(taps.Call(q, k, v, None, 0.5, False), torch.tensor([0, 3, 7]))
    assert [p.query.shape[2] for p in parts] == [3, 4]
    assert torch.equal(torch.cat([p.key for p in parts], 2), k)
    causal = taps.Call(q, k, v, None, 0.5, True)
    assert taps.segments(causal, torch.tensor([0, 3, 7])) == [causal]


# ---- layers that attend to the keys of others -----------------------------------------------------------------------


def test_a_second_turn_attends_to_shared_keys_that_are_left():
    case = Case("gemma4")
    turns = [case.inputs, case.prompts.batch((0, 0), after=3)]
    with torch.no_grad(), ts.sieve(case.model, "divprune", keep=case.keep) as s:
        first = case.model(**turns[0], use_cache=True)
        gone = case.gone(s)
        mask = torch.cat([turns[0]["attention_mask"], turns[1]["attention_mask"]], 1)
        second = case.model(input_ids=turns[1]["input_ids"], attention_mask=mask, past_key_values=first.past_key_values)
    language = case.anatomy.language
    sizes = {}
    hide = [_hiding(gone, i, language.sources[i], sizes) for i in range(len(language.layers))]
    hooks = [b.register_forward_pre_hook(h, with_kwargs=True) for b, h in zip(language.layers, hide, strict=True)]
    with torch.no_grad():
        plain = case.model(**turns[0], use_cache=True)
        again = case.model(input_ids=turns[1]["input_ids"], attention_mask=mask, past_key_values=plain.past_key_values)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(second.logits[:, -3:], again.logits[:, -3:], atol=1e-4, rtol=1e-3)


def test_layers_on_the_last_tokens_only_answer_like_layers_on_all():
    case = Case("gemma4")
    with torch.no_grad(), ts.sieve(case.model, "divprune", keep=case.keep, site="prefill", layers=2):
        last = case.model(**case.inputs, logits_to_keep=1).logits[:, -1]
        states = case.model(**case.inputs, output_hidden_states=True)
    torch.testing.assert_close(states.logits[:, -1], last, atol=1e-4, rtol=1e-3)
    assert {h.shape[1] for h in states.hidden_states} == {case.inputs["input_ids"].shape[1]}


def test_tokens_do_not_leave_behind_keys_that_later_layers_attend_to():
    model = tiny_models.model("gemma4")
    with pytest.raises(ValueError, match=r"layer 4 attends to the keys of layer 2.*up to 2"):
        ts.sieve(model, "divprune", keep=4, site="prefill", layers=3)


def test_a_prompt_that_ends_in_an_image_is_answered_where_only_the_last_tokens_are_computed():
    case, computed = Case("gemma4"), []
    hook = case.anatomy.language.layers[-1].register_forward_hook(lambda m, a, out: computed.append(a[0].shape[1]))
    with torch.no_grad():
        case.model(**case.inputs, logits_to_keep=1)
    hook.remove()
    if computed[0] == case.inputs["input_ids"].shape[1]:
        pytest.skip("this release of transformers computes all tokens in all layers")
    bare = case.prompts.collate([case.prompts.row(0, 1, after=0)])
    ids = bare["input_ids"][:, :-2]  # the text behind the picture
    assert ids[0, -1] == tiny_models.IMAGE
    inputs = {k: v[:, :-2] if v.shape[:2] == bare["input_ids"].shape else v for k, v in bare.items()}
    with torch.no_grad(), ts.sieve(case.model, "divprune", keep=4) as s:
        last = case.model(**inputs, logits_to_keep=1).logits
        every = case.model(**inputs).logits
    # Its last token stays, and counts in the budget.
    assert s.last.stages[-1].reduction.kept[0, -1] == 15
    assert s.last.stages[-1].reduction.counts.tolist() == [4]
    torch.testing.assert_close(last, every[:, -1:], atol=1e-5, rtol=1e-4)


def test_costs_of_layers_that_differ_are_counted():
    model = tiny_models.model("gemma4")
    half, whole = (ts.cost(model, ts.Plan(ts.stage("divprune", keep=k)), tokens=16, text=16) for k in (8, 16))
    assert half.flops < whole.flops == whole.full_flops
    entries = 2 * (16 + 32) * 2  # keys and values of 2 heads, of two layers that differ in their width
    assert whole.kv_bytes == 32 * 2 * entries * 2  # bytes; of four layers that hold their own
