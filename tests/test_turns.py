"""Several turns on one cache, and features that were encoded before: every picture is chosen from by what was said of it."""

import copy
import functools

import pytest
import torch
from transformers import DynamicCache

import tokensieve as ts
from tokensieve.bench.compat import tiny_models
from tokensieve.bench.compat.check import Case
from tokensieve.bench.compat.prompts import TEXT_FROM

NAMES = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl")
GREEDY = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": list(range(TEXT_FROM))}
made = functools.cache(Case)


def asked(case, seed):
    """A prompt of one picture, without padding."""
    return case.prompts.collate([case.prompts.row(seed, 1)])


def together(parts):
    return {k: torch.cat([p[k] for p in parts], int(not pictured(k))) for k in parts[0]}


def pictured(name):
    return any(part in name for part in ("pixel", "grid", "sizes"))


def kept(trace):
    reduction = trace.stages[-1].reduction
    return [reduction.kept[i][reduction.mask[i]].tolist() for i in range(reduction.batch)]


def gone(case, trace, ids):
    out = ids == tiny_models.IMAGE
    place = trace.places.gather(1, trace.stages[-1].reduction.kept)
    out[0, place[trace.stages[-1].reduction.mask & (place >= 0)]] = False
    return out


def positions(case, inputs):
    """The position ids that the plain model gives a whole prompt."""
    found = []
    root = case.anatomy.language.root
    handle = root.register_forward_pre_hook(lambda m, a, k: found.append(k.get("position_ids")), with_kwargs=True)
    with torch.no_grad():
        case.model(**inputs)
    handle.remove()
    return torch.arange(inputs["input_ids"].shape[1])[None] if found[0] is None else found[0]


def hidden(case, inputs, hide, layer):
    """Logits of the plain model over a whole conversation, with tokens masked for every layer from ``layer`` on."""
    length = hide.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    seen = (seen & ~hide[:, None, None]) | torch.eye(length, dtype=torch.bool)
    bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    handles = [
        block.register_forward_pre_hook(lambda m, a, k: (a, {**k, "attention_mask": bias}), with_kwargs=True)
        for block in case.anatomy.language.layers[layer:]
    ]
    with torch.no_grad():
        out = case.model(**inputs).logits
    for handle in handles:
        handle.remove()
    return out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("method", "where", "layer"), [("divprune", {}, 0), ("hiprune", {}, 0), ("fastv", {}, 2)])
@pytest.mark.parametrize("keep", [1.0, 1000, 5])
def test_a_second_turn_sees_what_is_left_of_the_first(name, method, where, layer, keep):
    """Whether tokens of its own picture leave, or none."""
    case = made(name)
    parts = [asked(case, 0), asked(case, 1)]
    whole = together(parts)
    ids, cut = positions(case, whole), parts[0]["input_ids"].shape[1]
    cache = DynamicCache(config=case.model.config.text_config)
    with torch.no_grad():
        with ts.sieve(case.model, method, keep=case.keep, **where) as s:
            case.model(**parts[0], past_key_values=cache, position_ids=ids[..., :cut])
        first = gone(case, s.last, parts[0]["input_ids"])
        with ts.sieve(case.model, method, keep=keep, **where) as s:
            second = {**parts[1], "attention_mask": whole["attention_mask"]}
            got = case.model(**second, past_key_values=cache, position_ids=ids[..., cut:]).logits
    both = torch.cat([first, gone(case, s.last, parts[1]["input_ids"])], 1)
    assert bool(first.any())
    assert bool(both[:, cut:].any()) == (keep == 5)
    expected = hidden(case, whole, both, layer)[:, cut:]
    stays = ~both[:, cut:]
    torch.testing.assert_close(got[stays], expected[stays], atol=5e-5, rtol=1e-3)


# ---- features that were encoded before --------------------------------------------------------------------------------


def encoded(case, inputs):
    """What the encoder makes of a prompt's pictures, and the prompt without them."""
    base = case.anatomy.base
    pictures = {k: v for k, v in inputs.items() if pictured(k)}
    rest = {k: v for k, v in inputs.items() if "pixel" not in k}
    return base.get_image_features(**pictures, return_dict=True), rest


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["hiprune", "divprune"])
def test_a_picture_is_chosen_from_by_its_own_features(name, method):
    """Two are encoded, one is asked about, the first or the second; again and again, and as a copy."""
    case = made(name)
    parts = [asked(case, 0), asked(case, 5)]
    with torch.no_grad(), ts.sieve(case.model, method, keep=case.keep) as s:
        own = []
        for part in parts:
            case.model(**part)
            own.append(kept(s.last))
        assert own[0] != own[1]
        made_of = [encoded(case, part) for part in parts]
        for turn in (0, 1, 0, 0):
            features, rest = made_of[turn]
            case.model.generate(**rest, mm_encoder_outputs={"image": features}, **GREEDY)
            assert kept(s.last) == own[turn]
            case.model.generate(**rest, mm_encoder_outputs={"image": copy.deepcopy(features)}, **GREEDY)
            assert kept(s.last) == own[turn]
            case.model.generate(**rest, mm_encoder_outputs={"image": features}, **GREEDY, use_cache=False)
            assert kept(s.last) == own[turn]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "mistral3"])
def test_pictures_of_several_calls_may_be_asked_about_together(name):
    case = made(name)
    parts = [asked(case, 0), asked(case, 5)]
    with torch.no_grad(), ts.sieve(case.model, "hiprune", keep=case.keep) as s:
        own = []
        for part in parts:
            case.model(**part)
            own += kept(s.last)
        made_of = [encoded(case, part)[0] for part in parts]
        for order in ((0, 1), (1, 0)):
            _, rest = encoded(case, together([parts[i] for i in order]))
            joined = copy.copy(made_of[order[0]])
            joined.pooler_output = [f for i in order for f in made_of[i].pooler_output]
            if getattr(joined, "deepstack_features", None) is not None:
                layers = zip(*(made_of[i].deepstack_features for i in order), strict=True)
                joined.deepstack_features = [[f for one in layer for f in one] for layer in layers]
            case.model(**rest, mm_encoder_outputs={"image": joined})
            assert kept(s.last) == [own[i] for i in order]


@pytest.mark.parametrize("name", NAMES)
def test_features_from_elsewhere_are_refused_where_the_encoder_is_read(name):
    case = made(name)
    part = asked(case, 0)
    with torch.no_grad():
        features, rest = encoded(case, part)
        with ts.sieve(case.model, "hiprune", keep=case.keep), pytest.raises(ValueError, match="under this sieve"):
            case.model(**rest, mm_encoder_outputs={"image": features})
        with ts.sieve(case.model, "divprune", keep=case.keep) as s:
            case.model(**rest, mm_encoder_outputs={"image": features})
            chosen = kept(s.last)
            case.model(**part)
            assert kept(s.last) == chosen
        for method in ("hiprune", "divprune"):
            plain = case.model(**part).logits
            with ts.sieve(case.model, method, keep=1.0):
                assert torch.equal(case.model(**rest, mm_encoder_outputs={"image": features}).logits, plain)


def test_what_is_remembered_lives_as_long_as_the_features():
    case = made("llava")
    with torch.no_grad(), ts.sieve(case.model, "hiprune", keep=case.keep) as s:
        features, rest = encoded(case, asked(case, 0))
        known = s._sites.sites[0].listener.remembered
        case.model.generate(**rest, mm_encoder_outputs={"image": features}, **GREEDY)
        assert len(known) > 0
        del features
        assert len(known) == 0


@pytest.mark.parametrize("where", ["layer", "encoder"])
@pytest.mark.parametrize("name", NAMES)
def test_after_an_error_in_the_middle_of_a_pass_the_next_call_is_right(name, where):
    case = made(name)
    inputs = case.prompts.batch((1, 2))

    def fails(module, args):
        raise KeyError("on purpose")

    stack = case.anatomy.language if where == "layer" else case.anatomy.vision
    for method, options in (("hiprune", {}), ("fastv", {"layers": 2}), ("cmai", {})):
        with ts.sieve(case.model, method, keep=case.keep, **options):
            expected = case.generate()
            handle = stack.attentions[2 if where == "layer" else 1].register_forward_pre_hook(fails)
            with pytest.raises(KeyError, match="on purpose"):
                case.generate(inputs)
            handle.remove()
            assert torch.equal(case.generate(), expected)
