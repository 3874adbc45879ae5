"""Plans of several stages inside the language model: one mean shared among them, and two stages in front of one layer."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokensieve as ts
from tests.models import llava, prompt
from tests.test_parity_vlm import best
from tokensieve.parts import budget
from tokensieve.plan import plan


@pytest.fixture(scope="module")
def model():
    return llava(layers=6)


@given(
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5),
    st.lists(st.integers(1, 30), min_size=5, max_size=5, unique=True),
    st.floats(0.05, 0.9),
)
@settings(max_examples=60, deadline=None)
def test_leads_keep_the_shape_and_meet_the_mean(shape, where, mean):
    """Stage by stage, each from what the layers before it have left: the proportions of the weights, and exactly the mean."""
    layers, depth = sorted(where)[: len(shape)], 31
    left = mean * (depth - layers[0])
    counts = []
    for i, (at, end) in enumerate(itertools.pairwise([*layers, depth])):
        counts.append(budget.lead(shape[i:], layers[i:], depth) * left / (depth - at))
        left -= counts[-1] * (end - at)
    assert left == pytest.approx(0, abs=1e-9)
    assert [c / counts[0] for c in counts] == pytest.approx([n / shape[0] for n in shape])


def test_two_stages_in_front_of_one_layer(model):
    """The second reads the attention of the layer before over what the first has left."""
    both = [ts.method("sparsevlm", 20, layers=2), ts.method("fastv", 9, layers=2)]
    with ts.sieve(model, ts.Plan(both)) as s, torch.no_grad():
        for images in ((1, 1), (2, 1)):
            model(**prompt(images))
            first, second = (t.reduction for t in s.last.stages)
            assert first.counts.tolist() == [20] * sum(images)
            assert second.counts.tolist() == [9] * sum(images)
    inputs = prompt((2, 1))
    with ts.sieve(model, ts.Plan([ts.method("fastv", 1.0, layers=2)])) as s, torch.no_grad():
        model(**inputs)
    score = s.last.stages[0].score
    with ts.sieve(
        model, ts.Plan([ts.method("random", 20, site="prefill", layers=2), ts.method("fastv", 9, layers=2)])
    ) as s:
        model(**inputs)
    first, second = (t.reduction for t in s.last.stages)
    # Few heads, and each head's row is only scaled: nearly the order of the attention over all tokens.
    for row in range(3):
        stayed = first.kept[row].tolist()
        want = best(score[row], 9, stayed)
        assert len(set(want) & set(second.kept[row].tolist())) >= 7


@pytest.mark.parametrize("keep", [30, 0.5, 0.3, ts.Keep(average=24.0), ts.Keep(share=0.4, per="prompt")])
def test_btp_meets_the_mean_over_the_layers(model, keep):
    whole = plan("btp", keep)
    assert ts.Plan.from_json(whole.to_json()) == whole
    with ts.sieve(model, whole) as s, torch.no_grad():
        model(**prompt((1, 1)))
    tokens = s.last.layer_tokens
    share = 0.4 if isinstance(keep, ts.Keep) and keep.share else None
    want = share * 64 if share else keep.average if isinstance(keep, ts.Keep) else keep if keep >= 1 else keep * 64
    assert sum(tokens) / 6 == pytest.approx(want, abs=0.5)
    assert all(a >= b for a, b in itertools.pairwise(tokens))
    assert len(set(tokens)) >= 3
    assert ts.cost(model, whole, tokens=64).mean == pytest.approx(sum(tokens) / 6)


def test_a_budget_in_flops_is_refused_by_systems_of_several_stages():
    with pytest.raises(ValueError, match="several stages; pass tokens"):
        plan("btp", ts.Keep(flops=0.5))


@pytest.mark.parametrize(
    ("given", "match"),
    [({"share": 0.5, "weight": 2.0}, "weight=2 goes with average"), ({"average": 9, "weight": 0}, "weight=0")],
)
def test_weights_out_of_range_are_refused(given, match):
    with pytest.raises(ValueError, match=match):
        ts.Keep(**given)
