"""Recordings: what each cache method makes of a copy is what it makes of a prefill of its own."""

from dataclasses import is_dataclass

import pytest
import torch
from transformers import DynamicCache

import tokensieve as ts
from tests.models import decoder, text
from tests.test_cache_all import EVICTING, SMALL
from tokensieve.sites.cache.recording import record, replayable
from tokensieve.sites.model.decoder import decoder as site


@pytest.fixture(scope="module")
def model():
    return decoder()


def tensors(x, where=""):
    """All tensors of a cache, by where they are."""
    if isinstance(x, torch.Tensor):
        yield where, x
    elif isinstance(x, (tuple, list)):
        for i, one in enumerate(x):
            yield from tensors(one, f"{where}.{i}")
    elif is_dataclass(x):
        yield from tensors(tuple(vars(x).values()), where)
    elif hasattr(x, "layers"):
        yield from tensors(list(x.layers), where)
    elif "Layer" in type(x).__name__:
        for name, value in vars(x).items():
            yield from tensors(value, f"{where}.{name}")


def own(model, inputs):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        logits = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
    for layer in cache.layers:
        getattr(layer, "settle", lambda: None)()
    return cache, logits


def same(one, other):
    one, other = dict(tensors(one)), dict(tensors(other))
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert torch.equal(x, other[name]), name


@pytest.mark.parametrize("name", EVICTING)
def test_each_method_compresses_a_copy_as_in_its_own_run(model, name):
    inputs = text(30, 50)
    made = record(model, inputs)
    with ts.sieve(model, name, keep=12, seed=3, site="cache", **SMALL.get(name, {})):
        cache, logits = own(model, inputs)
        copy = made.compressed()
        same(cache, copy)
        assert torch.equal(logits, made.logits)
        more, mask = torch.full((2, 4), 7), torch.ones(2, 54, dtype=torch.long)
        mask[0, :20] = 0
        after = [model(more, past_key_values=c, attention_mask=mask).logits for c in (cache, copy)]
        assert torch.equal(*after)


def test_the_recording_stays_as_it_is_and_so_does_the_model(model):
    inputs = text(30, 50)
    made = record(model, inputs)
    before = {name: x.clone() for name, x in tensors(made.cache)}
    with ts.sieve(model, "snapkv", keep=8, window=4):
        first = made.compressed()
        same(first, made.compressed())
        assert ts.cache_bytes(first) < ts.cache_bytes(made.cache)
    plain, _ = own(model, inputs)
    same(plain, made.cache)
    same(plain, made.full())
    assert all(torch.equal(x, before[name]) for name, x in tensors(made.cache))
    assert not any("forward" in layer.__dict__ for layer in site(model).layers)


@pytest.mark.parametrize("family", ["Gemma3Text", "Qwen3"])
def test_layers_with_a_window_and_other_architectures(family):
    options = {"sliding_window": 16} if family == "Gemma3Text" else {}
    model, inputs = decoder(family=family, layers=6, **options), text(40, 60)
    with ts.sieve(model, "h2o", keep=10):
        cache, _ = own(model, inputs)
    made = record(model, inputs)
    with ts.sieve(model, "h2o", keep=10):
        same(cache, made.compressed())


def test_layers_run_once_for_all_methods():
    """What is repeated is not computed again."""
    model, calls = decoder(), []
    for layer in site(model).layers:
        layer.mlp.register_forward_hook(lambda *_: calls.append(1))
    made = record(model, text(40))
    count = len(calls)
    for name in ("snapkv", "keydiff", "random"):
        with ts.sieve(model, name, keep=8, site="cache", **SMALL.get(name, {})):
            made.compressed()
    assert len(calls) == count == len(site(model).layers)


def test_a_prefill_from_which_tokens_leave_is_not_recorded(model):
    with ts.sieve(model, "keydiff", keep=8), pytest.raises(ValueError, match="detach the sieve, record"):
        record(model, text(40))
    assert record(model, text(40)).cache.layers[0].keys.shape[2] == 40


def test_plans_that_change_the_prefill_itself_are_told_apart():
    assert replayable(ts.plan("snapkv", 0.25))
    assert replayable(ts.plan("zipcache", 0.25))
    assert not replayable(ts.plan("anchor-attention", 0.25))
    assert not replayable(ts.plan("tidaldecode", 0.25))
    assert not replayable(ts.plan("fastv", 64))


@pytest.mark.parametrize("name", ["snapkv", "h2o", "keydiff", "expected-attention"])
def test_a_longer_prompt_is_recorded_by_its_last_tokens(model, name):
    ids = text(50)["input_ids"]
    made = record(model, ids[:, :40]).extended(ids[:, 40:])
    with ts.sieve(model, name, keep=12, **SMALL.get(name, {})):
        cache, logits = own(model, {"input_ids": ids})
        copy = made.compressed()
    torch.testing.assert_close(logits, made.logits)
    for one, other in zip(cache.layers, copy.layers, strict=True):
        assert torch.equal(one.places, other.places)
        torch.testing.assert_close(one.keys, other.keys)
    padded = record(model, text(30, 50))
    with pytest.raises(ValueError, match="without padding"):
        padded.extended(ids[:, :4].expand(2, -1))
