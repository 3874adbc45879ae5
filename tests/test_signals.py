"""Signals: what is refused, and with which words; what `reduce` accepts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tokensieve as ts
from tokensieve.core.needs import CLSAttention, Keys
from tokensieve.core.signals import Signals
from tokensieve.testing import features

X = features(2, 12, 4)
MASK = torch.tensor([[True] * 12, [True] * 7 + [False] * 5])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"features": X[0]}, r"features must have shape \(B, N, D\)"),
        ({"features": X[:, :0]}, "features hold no token"),
        ({"mask": MASK[:, :5]}, r"mask has shape \(2, 5\); expected \(2, 12\)"),
        ({"mask": MASK & False}, "every row must hold at least one"),
        ({"grid": (3, 5)}, r"grid=\(3, 5\) holds 15 tokens; features hold 12"),
        ({"cls_attention": torch.ones(2, 4, 11)}, r"cls_attention has shape \(2, 4, 11\); pass .* B=2, N=12"),
        ({"cls_attention": {-2: torch.ones(3, 12)}}, r"cls_attention has shape \(3, 12\)"),
        ({"keys": torch.ones(2, 4, 3)}, r"keys has shape \(2, 4, 3\)"),
        ({"text": torch.ones(2, 5, 3)}, r"text has shape \(2, 5, 3\); pass text=t .* B=2, D=4"),
        ({"text": torch.ones(1, 5, 4)}, r"text has shape \(1, 5, 4\)"),
        ({"text": torch.ones(2, 5, 4), "text_mask": torch.ones(2, 6)}, "different numbers of tokens: .*'text_mask': 6"),
        ({"text": torch.ones(2, 5, 4), "text_attention": torch.ones(2, 8, 6, 12)}, "'text': 5, 'text_attention': 6"),
        ({"sizes": torch.ones(2, 11)}, r"sizes has shape \(2, 11\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(wrong, says):
    with pytest.raises(ValueError, match=says):
        Signals(**{"features": X, **wrong})


def test_the_place_of_what_is_not_finite_is_named():
    x = X.clone()
    x[1, 5, 2] = float("nan")
    with pytest.raises(ValueError, match="features holds NaN or infinite values: first in row 1, token 5; 1 in all"):
        Signals(features=x)
    keys = torch.zeros(2, 3, 12, 2)
    keys[0, 1, 9] = float("inf")
    with pytest.raises(ValueError, match=r"keys holds NaN .* row 0, token 9; 2 in all"):
        Signals(features=X, keys=keys)
    with pytest.raises(ValueError, match="keys holds NaN"):
        Signals(features=X, keys={-1: X, -2: keys})


def test_padding_must_be_finite_too():
    x = X.clone()
    x[1, 9] = float("inf")
    with pytest.raises(ValueError, match="features holds NaN or infinite values at padding"):
        Signals(features=x, mask=MASK)


def test_large_values_are_not_taken_for_infinite():
    x = torch.full((1, 4, 3), 3e38)
    assert ts.reduce(x, "random", 2).m == 2


def test_layers():
    a, b = torch.rand(2, 12), torch.rand(2, 12)
    s = Signals(features=X, cls_attention={-2: a, -1: b})
    assert s.get(CLSAttention(-2), -2)[1] is a
    assert s.get(CLSAttention())[1] is b
    with pytest.raises(
        ts.MissingSignal, match=r"reads cls_attention at layer -3; cls_attention holds layers \[-2, -1\]"
    ):
        s.get(CLSAttention(-3), -3)


def test_keys_join_their_heads_and_fall_back_to_features():
    keys = torch.rand(2, 3, 12, 5)
    assert Signals(features=X, keys=keys).metric(Keys()).shape == (2, 12, 15)
    assert Signals(features=X).metric(Keys()) is X


def test_halves_are_widened():
    s = Signals(features=X.half(), cls_attention={0: torch.rand(2, 12).bfloat16()})
    assert s.features.dtype == torch.float32
    assert s.get(CLSAttention(0), 0)[1].dtype == torch.float32


def test_noise_is_the_rows_own():
    s = Signals(features=X, seed=3)
    alone = Signals(features=X[1:], seed=3)
    torch.testing.assert_close(s.noise()[1:], alone.noise())
    assert not torch.equal(s.noise()[0], s.noise()[1])
    assert not torch.equal(s.noise(), Signals(features=X, seed=4).noise())
    assert not torch.equal(s.noise(), s.noise(salt=1))
    padded = Signals(features=torch.cat([X[:, :2] * 9, X], 1), mask=torch.arange(14).expand(2, 14) >= 2, seed=3)
    torch.testing.assert_close(padded.noise()[:, 2:], s.noise())


def test_arrays_of_any_kind():
    a = np.random.default_rng(0).random((1, 4, 12))
    x = X[0].numpy()
    r = ts.reduce(x, "fastervlm", 3, cls_attention=a[0])
    assert r.kept.tolist() == ts.reduce(X[:1], "fastervlm", 3, cls_attention=torch.from_numpy(a)).kept.tolist()
    assert r.apply(torch.from_numpy(x)).shape == (3, 4)
    assert ts.reduce(x.tolist(), "uniform", 3).m == 3


def test_names_that_do_not_exist():
    with pytest.raises(ValueError, match="unknown signals \\['cls_atention'\\]; known are"):
        ts.reduce(X, "random", 3, cls_atention=torch.rand(2, 12))
    with pytest.raises(ValueError, match="no method is called 'divprun'; did you mean divprune"):
        ts.reduce(X, "divprun", 3)
    with pytest.raises(ValueError, match="visionzip has no option context"):
        ts.get_method("visionzip", context=0.1)
