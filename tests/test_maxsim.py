"""MaxSim against its double loop."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensieve.retrieval import Ragged, align, maxsim
from tokensieve.retrieval.scoring.maxsim import segment_max
from tokensieve.retrieval.scoring.ragged import bounds, neighbours, spread

MODULE = sys.modules["tokensieve.retrieval.scoring.maxsim"]


def loops(query, docs):
    return torch.stack([sum(max(q @ t for t in doc) for q in query) for doc in docs])


def whole(generator, *shape):
    """Small integers: sums of products are exact in any order."""
    return torch.randint(-4, 5, shape, generator=generator).float()


lengths = st.lists(st.integers(1, 70), min_size=1, max_size=12)


@given(lengths, st.integers(1, 5), st.integers(0, 1000), st.sampled_from([16, 64, 1 << 19]))
@settings(max_examples=40, deadline=None)
def test_equals_the_double_loop(lens, queries, seed, table):
    g = torch.Generator().manual_seed(seed)
    docs = [whole(g, n, 6) for n in lens]
    query = whole(g, queries, 6)
    wanted = loops(query, docs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "TABLE", table)
        assert torch.equal(maxsim(query, docs), wanted)
        assert torch.equal(maxsim(query, Ragged.of(docs)), wanted)


@given(lengths, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_segment_max_equals_the_maximum_of_each_segment(lens, seed):
    x = torch.randn(sum(lens), 3, generator=torch.Generator().manual_seed(seed))
    wanted = torch.stack([p.amax(0) for p in x.split(lens)])
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(segment_max(x.to(dtype), bounds(lens)), wanted.to(dtype))
    # What other devices than CPUs are asked for.
    assert torch.equal(torch.segment_reduce(x, "max", offsets=bounds(lens), axis=0), wanted)


@pytest.mark.slow
def test_nothing_is_said_of_matrices_in_beta():
    code = "import torch; from tokensieve.retrieval import maxsim; maxsim(torch.ones(1, 2), [torch.ones(1, 2), torch.ones(3, 2)])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_lists_of_neighbours_are_taken_as_one_tensor_and_others_copied():
    g = torch.Generator().manual_seed(3)
    x, query = whole(g, 40, 6), whole(g, 3, 6)
    behind = list(x.split([5, 1, 30, 4]))
    joined = neighbours(behind)
    assert joined is not None
    assert joined.data_ptr() == x.data_ptr()
    assert torch.equal(joined, x)
    assert torch.equal(neighbours(behind[1:3]), x[5:36])
    apart = {
        "order": behind[::-1], "gap": [behind[0], behind[2]], "copied": [p.clone() for p in behind],
        "columns": list(whole(g, 40, 8)[:, :6].split(8)), "types": [behind[0], behind[1].half()],
        "none": [behind[0], x[5:5], behind[2]],
    }  # fmt: skip
    assert [k for k, parts in apart.items() if neighbours(parts) is not None] == []
    for parts in (behind, *(v for k, v in apart.items() if k != "none")):
        assert torch.equal(maxsim(query, parts), loops(query, [p.float() for p in parts]))


def test_equal_lengths_arrays_and_many_queries():
    g = torch.Generator().manual_seed(0)
    docs, queries = whole(g, 7, 9, 6), whole(g, 3, 4, 6)
    wanted = torch.stack([loops(q, docs) for q in queries])
    assert torch.equal(maxsim(queries, docs), wanted)
    assert torch.equal(maxsim(queries.numpy(), docs.numpy()), wanted)
    ragged = [queries[0], queries[1, :2], queries[2, :1]]
    assert torch.equal(maxsim(ragged, docs), torch.stack([loops(q, docs) for q in ragged]))
    assert maxsim(queries[0], docs).shape == (7,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    g = torch.Generator().manual_seed(1)
    docs, query = whole(g, 5, 20, 8), whole(g, 4, 8)
    out = maxsim(query.to(dtype), docs.to(dtype))
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(out.float(), loops(query, docs))


def test_one_long_document_among_short_ones():
    g = torch.Generator().manual_seed(2)
    docs = [whole(g, n, 4) for n in (3, 100_000, 1)]
    query = whole(g, 8, 4)
    wanted = torch.stack([(d @ query.T).amax(0).sum() for d in docs])
    assert torch.equal(maxsim(query, docs), wanted)


def test_what_a_block_holds_does_not_grow_with_the_documents(monkeypatch):
    held = []
    plain = MODULE.maxima
    monkeypatch.setattr(
        MODULE, "maxima", lambda *of: [lambda x, f=f: held.append(x.numel()) or f(x) for f in plain(*of)]
    )
    maxsim(torch.randn(32, 16), [torch.randn(100, 16)] * 4000)
    assert len(held) > 5
    assert max(held) <= MODULE.TABLE


def test_a_document_without_tokens_is_named_by_its_place_in_the_whole_collection(monkeypatch):
    monkeypatch.setattr(MODULE, "TABLE", 16)
    with pytest.raises(ValueError, match="document 7 has no tokens"):
        maxsim(torch.ones(1, 2), [torch.ones(9, 2)] * 7 + [torch.ones(0, 2)] + [torch.ones(9, 2)] * 3)


def test_no_documents():
    assert maxsim(torch.randn(3, 4), []).shape == (0,)
    assert maxsim(torch.randn(2, 3, 4), torch.randn(0, 5, 4)).shape == (2, 0)


@pytest.mark.parametrize(
    ("query", "docs", "says"),
    [
        (torch.zeros(0, 4), [torch.zeros(2, 4)], "without tokens"),
        ([torch.zeros(1, 4), torch.zeros(0, 4)], [torch.zeros(2, 4)], "without tokens"),
        (torch.zeros(1, 3), [torch.zeros(2, 4)], "3 dimensions"),
        (torch.full((1, 4), torch.nan), [torch.zeros(2, 4)], "NaN"),
        (torch.zeros(1, 4), [torch.zeros(2, 4), torch.zeros(0, 4)], "no tokens"),
        (torch.zeros(1, 4), [torch.zeros(2, 4), torch.zeros(2, 5)], "document 1 has 5"),
        (torch.zeros(1, 4), [torch.zeros(4)], "document 0"),
        (torch.zeros(1, 4), [torch.zeros(1, 4).long()], "floating point"),
        (torch.zeros(1, 4), torch.zeros(2, 4), r"\(2, 4\)"),
    ],
)
def test_refusals(query, docs, says):
    with pytest.raises(ValueError, match=says):
        maxsim(query, docs)


def test_ragged():
    docs = [torch.randn(n, 3) for n in (2, 5, 1)]
    packed = Ragged.of(docs)
    assert [torch.equal(a, b) for a, b in zip(packed, docs, strict=True)] == [True] * 3
    assert torch.equal(packed[1], docs[1])
    assert packed.lengths.tolist() == [2, 5, 1]
    for wrong in ([0, 2], [1, 8], [0, 5, 3, 8]):
        with pytest.raises(ValueError, match="rise from 0"):
            Ragged(packed.tokens, torch.tensor(wrong))
    assert spread(torch.tensor([5, 0]), torch.tensor([2, 3])).tolist() == [5, 6, 0, 1, 2]


def test_align_names_the_first_best_token():
    doc = torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    value, place = align(torch.tensor([[2.0, 0], [0, 3]]), doc)
    assert value.tolist() == [2, 3]
    assert place.tolist() == [0, 1]
    assert np.isclose(float(value.sum()), float(maxsim(torch.tensor([[2.0, 0], [0, 3]]), [doc])))
