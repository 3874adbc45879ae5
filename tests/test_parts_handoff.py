"""Parts of the handoff methods on their own: counts off a curve, groups filled, duplicates removed, similarity to text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokensieve as ts
from tests.test_parity_vlm import kept, unit
from tokensieve.core.needs import Relevance
from tokensieve.parts import score
from tokensieve.parts.budget import adaptive_count
from tokensieve.parts.merge import match
from tokensieve.parts.select import groups
from tokensieve.testing import features


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=40), st.integers(0, 6))
def test_outliers_are_numpys(values, padding):
    score_ = torch.tensor([values + [99.0] * padding])
    candidates = torch.arange(score_.shape[1])[None] < len(values)
    y = np.array(values, dtype=np.float64)
    low, high = np.percentile(y, 25), np.percentile(y, 75)
    edge = high + 1.5 * (high - low)
    # A value on the edge itself may fall to either side by rounding.
    if np.abs(y - edge).min() > 1e-9:
        assert int(adaptive_count.outliers(score_, candidates)) == max(int((y > edge).sum()), 1)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(0, 5))
def test_knee_ignores_padding_and_order(values, padding):
    y = torch.tensor([values], dtype=torch.float32)
    whole = torch.ones(1, len(values), dtype=torch.bool)
    count = int(adaptive_count.knee(y, whole))
    assert 1 <= count <= len(values)
    assert int(adaptive_count.knee(y.flip(1), whole)) == count
    padded = torch.cat([torch.full((1, padding), 99.0), y], 1)
    assert int(adaptive_count.knee(padded, torch.arange(padded.shape[1])[None] >= padding)) == count


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=8), st.integers(0, 50))
def test_filled_leaves_at_most_one_group_in_part(drawn, total):
    most = torch.tensor([[m for m, _ in drawn]])
    rank = torch.tensor([[float(v) for _, v in drawn]])
    count = groups.filled(torch.tensor([total]), rank, most)[0]
    assert int(count.sum()) == min(total, int(most.sum()))
    assert int(((count > 0) & (count < most[0])).sum()) <= 1
    taken, left = rank[0][count > 0], rank[0][count < most[0]]
    assert not len(taken) or not len(left) or float(taken.min()) >= float(left.max())


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 30), st.integers(1, 40))
def test_distinct_leaves_what_is_asked(held, count, step):
    real = torch.arange(max(held))[None] < torch.tensor(held)[:, None]
    want = torch.full((len(held),), count)
    stay = match.distinct(features(len(held), max(held), 4), real, want, torch.full_like(want, step))
    assert not bool((stay & ~real).any())
    assert torch.equal(stay.sum(1), want.minimum(real.sum(1)))


def test_distinct_holding_similarities_or_not(monkeypatch):
    x, real = features(3, 50, 4), torch.arange(50)[None] < torch.tensor([[50], [31], [7]])
    whole = match.distinct(x, real, torch.tensor([9, 9, 3]), torch.tensor([4, 4, 4]))
    for held in (60, 1):
        monkeypatch.setattr(match, "HELD", held)
        assert torch.equal(match.distinct(x, real, torch.tensor([9, 9, 3]), torch.tensor([4, 4, 4])), whole)


def test_similarity_to_the_text_as_given_or_from_embeddings():
    x, text, heard = features(2, 9, 8), features(2, 4, 8, seed=3), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]]).bool()
    cosine = torch.tensor(np.stack([unit(t) @ unit(v).T for t, v in zip(text, x, strict=True)])).float()
    embedded = ts.Signals(features=x, text=text, text_mask=heard)
    given_ = ts.Signals(features=x, relevance=cosine, text_mask=heard)
    mean = torch.stack([cosine[b, heard[b]].mean(0) for b in range(2)])
    most = torch.stack([cosine[b, heard[b]].amax(0) for b in range(2)])
    for s in (embedded, given_):
        torch.testing.assert_close(score.relevance(s), mean)
        torch.testing.assert_close(score.best_row(*score.similarity(s, Relevance)), most)
    # One value per visual token says it for the text as a whole.
    torch.testing.assert_close(score.relevance(ts.Signals(features=x, relevance=mean, text_mask=heard)), mean)
    silent = score.best_row(cosine, torch.zeros_like(heard))
    assert not bool(silent.any())


@pytest.mark.parametrize("name", ["trim", "simignore"])
def test_text_methods_take_a_similarity_for_each_word(name):
    x, rows = features(2, 9, 8), features(2, 4, 9, seed=3)
    per_word = ts.reduce(x, name, 4, relevance=rows)
    joined = rows.mean(1) if name == "trim" else rows.amax(1)
    assert kept(per_word) == kept(ts.reduce(x, name, 4, relevance=joined))
