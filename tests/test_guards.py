"""What a sieve refuses, and what it must not: over architectures, methods and ways to run."""

import copy
import pickle
import warnings
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

import tokensieve as ts
from tests.models import decoder, llava, prompt, text
from tests.test_sieve import gone, oracle
from tests.works import image_last
from tokensieve.bench.compat.check import Case
from tokensieve.core.method_registry import get_method
from tokensieve.core.signals import Signals
from tokensieve.sites.model.fingerprint import Fingerprint
from tokensieve.sites.visual import last_token

MODELS = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl")
GREEDY = {"max_new_tokens": 4, "do_sample": False}
STAGES = [("divprune", {}), ("divprune", {"site": "prefill", "layers": 1})]


@pytest.fixture(scope="module")
def cases():
    return {name: Case(name) for name in MODELS}


def cut(case):
    """The case's batch without the text behind its last images."""
    last = case.visual.long().cumsum(1).argmax(1)
    length = case.inputs["input_ids"].shape[1]
    out = {}
    for name, x in case.inputs.items():
        per_token = x.dim() == 2 and x.shape[1] == length
        # Rows end at different places: each moves to the right, and the front is padding.
        out[name] = (
            torch.stack([r.roll(int(length - 1 - n), 0) for r, n in zip(x, last, strict=True)]) if per_token else x
        )
    for row, n in enumerate(last.tolist()):
        for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            if name in out:
                out[name][row, : length - 1 - n] = 0
    return out


@pytest.mark.parametrize(("name", "where"), STAGES)
@pytest.mark.parametrize("which", MODELS)
def test_the_last_token_of_a_prompt_that_ends_in_an_image_stays(cases, which, name, where):
    case, keep = copy.copy(cases[which]), cases[which].keep
    case.inputs = cut(case)
    assert bool(case.visual[:, -1].all())
    with ts.sieve(case.model, name, keep=keep, **where) as s:
        out = case.generate(return_dict_in_generate=True, output_logits=True)
    dropped = case.gone(s)
    assert not bool(dropped[:, -1].any())
    assert s.last.stages[-1].reduction.counts.tolist() == [keep] * 3
    for got, expected in zip(out.logits, case.masked(dropped, where.get("layers", 0)), strict=True):
        torch.testing.assert_close(got, expected, atol=5e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("place", "kept", "there", "found"),
    [
        ([1, 2, 3], [0, 2], [1, 1], [0, 1]),
        ([1, 2, 3], [2, 2], [1, 0], [1, 0]),  # padding repeats a token
        ([0, 1, 2], [0, 2], [1, 1], [0, 0]),  # text stands behind it
    ],
)
def test_the_end_of_a_prompt_is_its_last_real_token_and_one(place, kept, there, found):
    """Of a row of four tokens and one of padding."""
    images = SimpleNamespace(row=torch.tensor([0]), place=torch.tensor([place]))
    reduction = SimpleNamespace(kept=torch.tensor([kept]), mask=torch.tensor([there]).bool())
    real = torch.tensor([[1, 1, 1, 1, 0]]).bool()
    stream = SimpleNamespace(length=5, real=real, images=images, reduction=reduction)
    assert last_token.ends(stream).tolist() == [[bool(x) for x in found]]


def test_a_last_token_that_the_method_would_choose_counts_once():
    signals = Signals(torch.randn(1, 8, 4), cls_attention=torch.arange(8.0)[None])
    last = torch.arange(8)[None] == 7
    step = last_token.staying(get_method("fastervlm"), signals, torch.tensor([3]), last)
    assert step.kept.tolist() == [[5, 6, 7]]


@pytest.mark.parametrize("name", ["divprune", "fastervlm", "visionzip", "prumerge", "fastv", "random"])
@pytest.mark.parametrize("keep", [1, 2, 16])
def test_the_last_token_stays_under_any_method_and_counts(name, keep):
    model = llava()
    with torch.no_grad(), ts.sieve(model, name, keep=keep) as s:
        model(**image_last())
    step = s.last.stages[-1].reduction
    assert step.kept[0, -1] == 63
    assert step.m <= keep
    assert step.m == keep or get_method(name).adaptive


@pytest.mark.parametrize("keep", [1, 16])
def test_what_is_merged_beside_the_last_token_leaves_it_as_it_is(keep):
    model = llava()
    with torch.no_grad(), ts.sieve(model, "visionzip", keep=keep) as s:
        model(**image_last())
    step = s.last.stages[-1].reduction
    x = torch.randn(1, 64, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(step.apply(x)[0, -1], x[0, -1])
    assert (step.owner == step.m - 1).sum() == 1


@pytest.mark.parametrize("which", MODELS)
def test_positional_arguments_of_the_inner_model_are_seen(cases, which):
    case = cases[which]
    with torch.no_grad(), ts.sieve(case.model, "divprune", keep=case.keep) as s:
        want = case.anatomy.base(**case.inputs).last_hidden_state
        places = s.last.layer_tokens
        rest = {k: v for k, v in case.inputs.items() if k != "input_ids"}
        got = case.anatomy.base(case.inputs["input_ids"], **rest).last_hidden_state
    assert s.last.layer_tokens == places == [float(case.keep)] * len(places)
    torch.testing.assert_close(got, want)


def test_a_mask_passed_by_place_hides_padding_from_a_cache_stage():
    model, inputs = decoder(), text(48, 30)
    with torch.no_grad(), ts.sieve(model, "h2o", keep=12):
        want = model.model(**inputs).past_key_values.layers[0].keys
        got = model.model(inputs["input_ids"], inputs["attention_mask"]).past_key_values.layers[0].keys
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("which", MODELS)
def test_a_cache_from_which_tokens_have_left_is_not_read_without_a_sieve(cases, which):
    case = cases[which]
    with ts.sieve(case.model, "divprune", keep=case.keep), torch.no_grad():
        out = case.generate(return_dict_in_generate=True)
    more = torch.full((len(out.sequences), 3), 20)
    ids = torch.cat([out.sequences, more], 1)
    mask = torch.nn.functional.pad(
        case.inputs["attention_mask"], (0, ids.shape[1] - case.inputs["attention_mask"].shape[1]), value=1
    )
    cache = copy.deepcopy(out.past_key_values)
    turn = {"input_ids": ids, "attention_mask": mask}
    with pytest.raises(RuntimeError, match="tokens have left this cache; attach a sieve"):
        case.generate({**turn, "past_key_values": cache})
    with ts.sieve(case.model, ts.Plan([])):
        case.generate({**turn, "past_key_values": out.past_key_values})


@pytest.mark.parametrize("which", MODELS)
def test_a_forward_that_goes_past_the_hooks_is_noticed(cases, which):
    case = cases[which]
    other = copy.deepcopy(case.model)
    case.model.forward = other.forward
    try:
        with ts.sieve(case.model, "divprune", keep=case.keep), torch.no_grad():
            with pytest.raises(RuntimeError, match="'divprune' at site='handoff' did not run"):
                case.model(**case.inputs)
            text_alone = {k: v[:, -4:] for k, v in case.inputs.items() if k in ("input_ids", "attention_mask")}
            case.model(**text_alone)  # there is nothing to do
    finally:
        del case.model.forward


def test_a_pass_without_a_cache_under_a_stage_that_evicts_warns_once():
    model, inputs = decoder(), text(40)
    with ts.sieve(model, "streamingllm", keep=8), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.generate(**inputs, **GREEDY, use_cache=False)
        model(**inputs, use_cache=False)
    assert ["had no cache" in str(w.message) for w in told if w.category is UserWarning] == [True]


def test_nested_sieves_draw_by_their_own_seeds():
    model, inputs = llava(), prompt((1,))
    stages = [ts.stage("random", keep=32), ts.stage("random", keep=16, site="prefill", layers=2)]

    def kept(first, second):
        with torch.no_grad(), ts.sieve(model, stages[0], seed=first), ts.sieve(model, stages[1], seed=second) as s:
            model(**inputs)
            return [stage.reduction.kept.tolist() for stage in s.last.stages]

    a, b, c = kept(0, 0), kept(1, 0), kept(0, 1)
    assert a[0] != b[0]
    assert a[0] == c[0]
    assert a[1] != c[1]


def test_one_stage_in_two_sieves_has_the_seed_of_each():
    model, inputs = llava(), prompt((1,))
    stage = ts.stage("random", keep=0.5)
    with torch.no_grad(), ts.sieve(model, stage, seed=0) as s:
        model(**inputs)
        once = s.last.stages[0].reduction.kept
        with ts.sieve(model, stage, seed=1) as both:
            model(**inputs)
    assert torch.equal(both.last.stages[0].reduction.kept, once)
    assert both.last.layer_tokens == [16.0] * 4


@pytest.mark.parametrize("name", ["atc", "holov", "quota", "divprune", "visionzip", "fastv", "tome", "dart"])
def test_selection_is_exact_under_autocast(name):
    model, inputs = llava(), prompt((1, 2))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), ts.sieve(model, name, keep=20) as s:
        seen = []
        handle = model.model.language_model.register_forward_pre_hook(
            lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
        )
        model(**inputs)
        handle.remove()
    assert seen == [True]  # the model itself still runs under it
    assert s.last is not None


def test_a_fingerprint_is_made_when_asked_for_and_stays_with_copies_of_a_cache():
    model, same, other = decoder(), decoder(), decoder(seed=1)
    mine = Fingerprint(model)
    assert mine._name == ""
    assert mine.fits(Fingerprint(model))
    assert mine._name == ""  # one object needs no numbers
    assert mine.fits(Fingerprint(same))
    assert not mine.fits(Fingerprint(other))
    assert pickle.loads(pickle.dumps(mine)).fits(Fingerprint(same))
    assert copy.deepcopy(mine) is mine


def test_weights_that_cannot_be_read_are_told_by_their_shape():
    model, wider = decoder(), decoder(layers=4)
    empty = decoder(seed=1).to("meta")
    away = Fingerprint(empty)
    assert Fingerprint(None, str(away)).fits(Fingerprint(model))
    assert not Fingerprint(None, str(away)).fits(Fingerprint(wider))


def test_a_name_of_a_model_that_is_gone_cannot_be_made():
    with pytest.raises(ValueError, match="the model that filled this cache is gone"):
        str(Fingerprint(decoder()))


def test_any_part_of_a_model_is_copied_only_without_a_sieve():
    model = llava()
    with ts.sieve(model, "divprune", keep=16):
        for part in (model.model, model.model.language_model.layers[0]):
            with pytest.raises(RuntimeError, match=r"detach\(\) first"):
                copy.deepcopy(part)
            with pytest.raises(RuntimeError, match=r"detach\(\) first"):
                pickle.dumps(part)
        copy.deepcopy(model.config)
    copy.deepcopy(model)
    pickle.dumps(model.model.language_model.layers[0])


def test_dropping_equals_masking_where_a_prompt_ends_in_an_image():
    model, inputs = llava(), image_last()
    with torch.no_grad(), ts.sieve(model, "divprune", keep=16) as s:
        got = model(**inputs).logits
    dropped = gone(s, inputs)
    expected = oracle(model, inputs, dropped, inputs["input_ids"], 0)
    torch.testing.assert_close(got[~dropped], expected[~dropped], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["divprune", "streamingllm"])
def test_a_generate_that_somebody_set_on_a_model_is_called_and_stays(name):
    model, inputs, called = llava(), prompt((1,)), []
    plain = model.generate

    def own(*args, **kwargs):
        called.append(True)
        return plain(*args, **kwargs)

    model.generate = own
    with ts.sieve(model, name, keep=20):
        model.generate(**inputs, **GREEDY)
    assert called == [True]
    assert model.__dict__["generate"] is own
    del model.generate
    with ts.sieve(model, name, keep=20):
        pass
    assert not {"generate", "init_continuous_batching"} & set(model.__dict__)


def test_contrastive_search_is_told_by_the_config_of_a_call_or_of_the_model():
    model, inputs = decoder(), text(40)
    config = GenerationConfig(penalty_alpha=0.6, top_k=4, max_new_tokens=2)
    with ts.sieve(model, "streamingllm", keep=8):
        with pytest.raises(ValueError, match=r"penalty_alpha=0\.6 asks for contrastive search"):
            model.generate(**inputs, generation_config=config)
        model.generate(**inputs, generation_config=config, do_sample=True)
        model.generate(**inputs, penalty_alpha=0.6, top_k=1, max_new_tokens=2)
        model.generation_config = config
        with pytest.raises(ValueError, match="greedy search, sampling and beams work under a sieve"):
            model.generate(inputs["input_ids"])


def test_stages_are_counted_anew_in_each_pass():
    model, other, inputs = llava(), llava(), prompt((1,))
    with ts.sieve(model, "divprune", keep=16), torch.no_grad():
        model(**inputs)
        model.forward = other.forward
        with pytest.raises(RuntimeError, match="'divprune' at site='handoff' did not run"):
            model(**inputs)


def test_embeddings_are_taken_for_merged_only_behind_pictures_that_no_pass_has_used():
    model, inputs = llava(), prompt((1,))
    embeds = model.get_input_embeddings()(inputs["input_ids"][:, -6:])
    with ts.sieve(model, "divprune", keep=16), torch.no_grad():
        model(inputs_embeds=embeds)  # nothing was encoded
        model.get_image_features(pixel_values=inputs["pixel_values"])
        whole = {k: v for k, v in inputs.items() if k != "input_ids"}
        model(**whole, inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]))  # the pictures are beside it
        model(inputs_embeds=embeds)  # that pass was another
        model.get_image_features(pixel_values=inputs["pixel_values"])
        with pytest.raises(RuntimeError, match="inputs_embeds came without pictures"):
            model(inputs_embeds=embeds)
