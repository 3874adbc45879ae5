"""A cache layer with room behind its entries: against one that joins them at every token."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from tokensieve.sites.cache.growable_layer import ROOM, GrowableLayer

ACTIONS = st.one_of(
    st.tuples(st.just("update"), st.integers(1, 3)),
    st.tuples(st.just("crop"), st.integers(-3, -1)),
    st.tuples(st.just("reorder_cache"), st.permutations([0, 1]).map(torch.tensor)),
    st.tuples(st.just("copy"), st.none()),
    st.tuples(st.just("replace"), st.none()),
)


def some(count, seed=0):
    return torch.randn(2, 3, count, 4, generator=torch.Generator().manual_seed(seed)).unbind(0)


def states(count, seed):
    return (torch.stack([x, -x]) for x in some(count, seed))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
@given(st.lists(ACTIONS, max_size=12))
def test_it_is_a_dynamic_layer(actions):
    ours, plain = GrowableLayer(), DynamicLayer()
    for layer in (ours, plain):
        layer.update(*states(2 * ROOM, 0))
    for seed, (what, value) in enumerate(actions):
        if what == "update":
            a, b = (layer.update(*states(value, seed)) for layer in (ours, plain))
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])
        elif what == "copy":
            ours, before = copy.deepcopy(ours), ours
            before.update(*states(1, 99))
        elif what == "replace":
            for layer in (ours, plain):
                layer.keys, layer.values = layer.keys[:, :, 1:], layer.values[:, :, 1:]
        else:
            for layer in (ours, plain):
                getattr(layer, what)(value)
    assert torch.equal(ours.keys, plain.keys)
    assert torch.equal(ours.values, plain.values)


def test_most_tokens_copy_nothing():
    layer = GrowableLayer()
    layer.update(*states(8 * ROOM, 0))
    seen = set()
    for i in range(9):
        layer.update(*states(1, i))
        seen.add(layer.keys.data_ptr())
    assert len(seen) == 1
    assert layer.keys.untyped_storage().nbytes() <= (1 + 1 / ROOM) * 2 * 3 * (8 * ROOM + 1) * 4 * 4


@pytest.mark.parametrize("how", ["gradients", "half", "inference"])
def test_what_cannot_be_written_is_joined(how):
    layer = GrowableLayer()
    with torch.inference_mode(how == "inference"):
        layer.update(*states(8 * ROOM, 0))
        layer.update(*states(1, 1))
    keys, values = states(1, 2)
    if how == "gradients":
        keys = keys.requires_grad_()
    elif how == "half":
        values = values.half()
    before = layer.keys
    layer.update(keys, values)
    assert layer.keys.data_ptr() != before.data_ptr()
    assert layer.keys.shape[2] == 8 * ROOM + 2
    assert layer.keys.requires_grad == (how == "gradients")
