"""Several prompts packed into one row, told apart by position ids that start anew: each is answered as if it were alone."""

import functools

import pytest
import torch

import tokensieve as ts
from tokensieve.bench.compat import tiny_models
from tokensieve.bench.compat.check import Case
from tokensieve.parts import budget
from tokensieve.sites.model import masks

NAMES = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")
METHODS = [
    ("divprune", {}),
    ("divprune", {"positions": "compact"}),
    ("hiprune", {}),
    ("cdpruner", {}),
    ("simignore", {}),
    ("fastv", {"layers": 2}),
    ("sparsevlm", {"layers": 2}),
    ("aim-l", {"site": "prefill", "layers": 2}),
    ("dart", {"layers": 2}),
]
made = functools.cache(Case)


def single(case, images, seed):
    """A prompt on its own, without padding, and the position ids that the model gives it."""
    inputs = case.prompts.collate([case.prompts.row(seed, images)])
    inputs.pop("attention_mask")
    found = []
    root = case.anatomy.language.root
    handle = root.register_forward_pre_hook(lambda m, a, k: found.append(k.get("position_ids")), with_kwargs=True)
    with torch.no_grad():
        case.model(**inputs, use_cache=False)
    handle.remove()
    text = torch.arange(inputs["input_ids"].shape[1])[None]
    (ids,) = found
    return inputs, text if ids is None or ids.dim() == 2 else torch.cat([text[None], ids[-3:]])


def pack(parts):
    """Inputs of prompts in one row."""
    names = parts[0][0]
    out = {k: torch.cat([p[k] for p, _ in parts], int("pixel" not in k and "grid" not in k)) for k in names}
    return {**out, "position_ids": torch.cat([ids for _, ids in parts], -1)}


def asked(case, name, where, inputs, keep=None):
    with torch.no_grad(), ts.sieve(case.model, name, keep=keep or case.keep, **where) as s:
        logits = case.model(**inputs, use_cache=False).logits
    return logits[0], s.last


def kept(trace):
    """By image, the ranks of the tokens that are left."""
    reduction = trace.stages[-1].reduction
    return [reduction.kept[i][reduction.mask[i]].tolist() for i in range(reduction.batch)]


def same(case, name, where, images, keep=None):
    parts = [single(case, n, seed) for seed, n in enumerate(images)]
    alone = [asked(case, name, where, {**inputs, "position_ids": ids}, keep) for inputs, ids in parts]
    logits, trace = asked(case, name, where, pack(parts), keep)
    assert kept(trace) == [one for _, last in alone for one in kept(last)]
    ids = torch.cat([inputs["input_ids"][0] for inputs, _ in parts])
    text = ids != tiny_models.IMAGE
    torch.testing.assert_close(logits[text], torch.cat([x for x, _ in alone])[text], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("method", "where"), METHODS)
def test_each_prompt_is_answered_as_if_alone(name, method, where):
    same(made(name), method, where, (1, 2, 1))


@pytest.mark.parametrize("name", ["llava", "vipllava", "video_llava", "deepseek_vl"])
def test_tokens_that_leave_in_the_encoder_leave_each_prompt(name):
    same(made(name), "tome", {}, (1, 2))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize(
    ("method", "where", "keep"),
    [
        ("divprune", {}, ts.Keep(tokens=6, per="prompt")),
        ("fastv", {"layers": 2}, ts.Keep(average=0.7)),
        ("fastv", {"layers": 2}, ts.Keep(flops=0.9)),
    ],
)
def test_budgets_are_of_each_prompt(name, method, where, keep):
    same(made(name), method, where, (1, 2, 1), keep)


def test_a_whole_budget_of_one_token_is_not_a_whole_budget():
    assert budget.whole(1.0)
    assert budget.whole(ts.Keep(share=1.0))
    assert not budget.whole(1)
    assert not budget.whole(ts.Keep(tokens=1))


def test_prompts_with_a_mask_or_a_cache_are_one():
    case = made("llava")
    parts = [single(case, 1, 0), single(case, 1, 1)]
    ids = pack(parts)["position_ids"]
    root, x = case.anatomy.language.root, torch.zeros(1, ids.shape[1], 4)
    told = {"position_ids": ids, "use_cache": False}
    assert masks.packed(root, x, told).unique().tolist() == [0, 1]
    assert masks.packed(root, x, told | {"use_cache": True}) is None
    assert masks.packed(root, x, told | {"attention_mask": torch.ones_like(ids)}) is None
    assert masks.packed(root, x, told | {"position_ids": torch.arange(9)[None]}) is None


def test_flash_attention_is_refused():
    case = Case("llava")
    case.anatomy.language.config._attn_implementation = "flash_attention_2"
    ids = torch.tensor([[0, 1, 2, 0, 1]])
    with pytest.raises(ValueError, match=r"start anew 1 times.*'sdpa'"):
        masks.packed(case.anatomy.language.root, torch.zeros(1, 5, 4), {"position_ids": ids, "use_cache": False})
