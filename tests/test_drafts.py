"""Prompts in a pass that holds more than they, or less: drafts to be checked, the answer so far, chunks of a prompt."""

import functools

import pytest
import torch
from transformers import GenerationConfig

import tokensieve as ts
from tests.models import IMAGE, llava, prompt
from tokensieve.bench.compat import tiny_models
from tokensieve.bench.compat.check import Case
from tokensieve.bench.compat.cross import CrossCase
from tokensieve.bench.compat.prompts import TEXT_FROM

NAMES = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl")
METHODS = [
    ("divprune", {}),
    ("divprune", {"positions": "compact"}),
    ("hiprune", {}),
    ("cdpruner", {}),
    ("fastv", {"layers": 2}),
    ("fastv", {"layers": 2, "positions": "compact"}),
    ("sparsevlm", {"layers": 2}),
    ("dart", {"layers": 2}),
    ("aim-l", {"site": "prefill", "layers": 2}),
    ("corematching", {}),
    ("corematching", {"site": "focus"}),
    ("cmai", {}),
]
GREEDY = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": list(range(TEXT_FROM))}
made = functools.cache(Case)


def draft(case):
    """A model that guesses otherwise."""
    other = tiny_models.model(case.name)
    with torch.no_grad():
        for weight in other.lm_head.parameters():
            weight.mul_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) + 0.5)
    return other


def answer(case, name, where, inputs, **how):
    """What is answered, and which tokens are kept."""
    with ts.sieve(case.model, name, keep=0.3 if where.get("site") == "focus" else case.keep, **where) as s:
        out = case.model.generate(**inputs, **GREEDY, **how)
    return out, [stage.reduction.kept for stage in s.last.stages]


def same(name, method, where, **how):
    case = made(name)
    inputs = case.prompts.collate([case.prompts.row(0, 2)])
    plain, kept = answer(case, method, where, inputs)
    got, chosen = answer(case, method, where, inputs, **how)
    assert torch.equal(got, plain)
    assert len(chosen) == len(kept)
    assert all(torch.equal(a, b) for a, b in zip(chosen, kept, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("method", "where"), METHODS)
def test_an_assistant_changes_neither_tokens_nor_answer(name, method, where):
    same(name, method, where, assistant_model=draft(made(name)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("method", "where"), METHODS)
def test_nor_does_looking_up_the_prompt(name, method, where):
    same(name, method, where, prompt_lookup_num_tokens=3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("method", "where"), METHODS)
def test_nor_does_leaving_out_the_cache(name, method, where):
    same(name, method, where, use_cache=False)


@pytest.mark.parametrize("how", [{"use_cache": False}, {"prompt_lookup_num_tokens": 3}])
@pytest.mark.parametrize("keep", [ts.Keep(average=40), ts.Keep(flops=0.6)])
def test_budgets_over_layers_are_of_the_prompt(how, keep):
    model, inputs = llava(), prompt((1,))
    plain = {}
    for name, options in (("plain", {}), ("how", how)):
        with ts.sieve(model, "fastv", keep=keep) as s:
            out = model.generate(**inputs, max_new_tokens=8, do_sample=False, suppress_tokens=[IMAGE], **options)
        plain[name] = (out.tolist(), s.last.layer_tokens)
    assert plain["plain"] == plain["how"]


@pytest.mark.parametrize("name", ["visionzip", "fastv", "tome"])
def test_beams_and_batches_without_a_cache(name):
    model, inputs = llava(), prompt((1, 2))
    told = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE], "num_beams": 3}
    with ts.sieve(model, name, keep=16):
        assert torch.equal(model.generate(**inputs, **told), model.generate(**inputs, **told, use_cache=False))


def test_image_keys_of_cross_attention_are_chosen_by_the_prompt():
    case = CrossCase("mllama")
    found, inputs = [], case.batch((1,))
    for options in ({}, {"use_cache": False}):
        with ts.sieve(case.model, "trimmed-llama", keep=5) as s:
            out = case.model.generate(**inputs, max_new_tokens=8, do_sample=False, **options)
        found.append((out.tolist(), s.last.stages[-1].reduction.kept.tolist()))
    assert found[0] == found[1]


# ---- chunks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["visionzip", "hiprune", "divprune", "fastv", "tome"])
def test_chunks_of_a_whole_budget_are_the_plain_model(name, method):
    case = made(name)
    inputs = case.prompts.collate([case.prompts.row(0, 2)])
    plain = case.model.generate(**inputs, **GREEDY)
    try:
        sieve = ts.sieve(case.model, method, keep=1.0)
    except ValueError:
        pytest.skip("not with this encoder")
    with sieve:
        assert torch.equal(case.model.generate(**inputs, **GREEDY, prefill_chunk_size=7), plain)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("method", "where"), [("divprune", {}), ("fastv", {"layers": 2}), ("hiprune", {})])
@pytest.mark.parametrize("said", ["call", "config"])
def test_a_picture_is_not_cut(name, method, where, said):
    case = made(name)
    inputs = case.prompts.collate([case.prompts.row(0, 1)])
    told = {**GREEDY, "prefill_chunk_size": 7}
    how = told if said == "call" else {"generation_config": GenerationConfig(**told, pad_token_id=0)}
    with ts.sieve(case.model, method, keep=case.keep, **where), pytest.raises(ValueError, match="prefill_chunk_size=7"):
        case.model.generate(**inputs, **how)


@pytest.mark.parametrize("method", ["visionzip", "tome", "divprune"])
@pytest.mark.parametrize("size", [68, 136, 500])
def test_chunks_may_hold_whole_pictures(method, size):
    """Two pictures of 64 tokens, at 3 and 69; the second chunk begins in the text between them, or behind, or there is one."""
    model, inputs = llava(), prompt((2,))
    told = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [IMAGE]}
    with ts.sieve(model, method, keep=16):
        plain = model.generate(**inputs, **told)
        assert torch.equal(model.generate(**inputs, **told, prefill_chunk_size=size), plain)
