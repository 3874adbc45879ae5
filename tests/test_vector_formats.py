"""Vector formats: what comes back, and that scores are those of what comes back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from tokensieve.retrieval.storage import vector_format
from tokensieve.retrieval.storage.integer import levels, pack, quantize, unpack
from tokensieve.retrieval.storage.product import integer_query, product

# Squared error relative to the vectors', for Gaussian directions: twice the theory's at most.
ERROR = {"float32": 0.0, "float16": 1e-6, "int8": 2e-4, "int4": 0.024, "residual2": 0.24, "binary": 0.75}


def vectors(n, dim, seed=0):
    return normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("name", ERROR)
def test_what_comes_back(name):
    x = vectors(3000, 128)
    made = vector_format(name, 128).fit(x)
    back = made.decode(made.encode(x))
    assert back.dtype == torch.float32
    error = float((back - x).square().sum() / x.square().sum())
    assert error <= ERROR[name]


def test_the_fewer_bytes_the_larger_the_error():
    """Of the packaged ones."""
    x = vectors(2000, 128)
    sizes, errors = [], []
    for name in ERROR:
        made = vector_format(name, 128).fit(x)
        sizes.append(made.bytes_per_token)
        errors.append(float((made.decode(made.encode(x)) - x).square().sum()))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert dict(zip(ERROR, sizes, strict=True)) == {
        "float32": 512, "float16": 256, "int8": 130, "int4": 66, "residual2": 36, "binary": 16,
    }  # fmt: skip


@given(st.sampled_from(list(ERROR)), st.integers(1, 40), st.integers(1, 50), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_scores_are_those_of_the_decoded_vectors(name, dim, n, queries, seed):
    x, query = vectors(n, dim, seed) * 3, vectors(queries, dim, seed + 1)
    made = vector_format(name, dim).fit(x)
    fields = made.encode(x)
    score = made.score(fields, made.prepare(query))
    assert score.shape == (n, queries)
    assert score.dtype == torch.float32
    assert torch.allclose(score, made.decode(fields) @ query.T, atol=2e-3)
    # A vector's code does not depend on its neighbours.
    alone = made.encode(x[-1:])
    assert all(torch.equal(alone[k][0], fields[k][-1]) for k in fields)


@pytest.mark.parametrize("name", ERROR)
def test_zeros_large_and_half_precision(name):
    made = vector_format(name, 16)
    x = torch.cat([torch.zeros(1, 16), 1000 * vectors(2, 16)])
    back = made.decode(made.encode(x.half()))
    assert bool(back.isfinite().all())
    if name != "binary":
        assert float((back[1:] - x[1:]).norm() / x[1:].norm()) < 0.5
        assert float(back[0].abs().max()) < 1e-3


@pytest.mark.parametrize("name", [n for n in ERROR if n != "float32"])
def test_a_fitted_codec_is_restored_from_its_state(name):
    x = vectors(4000, 24) + 2 * vectors(1, 24, 5)
    made = vector_format(name, 24).fit(x)
    again = vector_format(name, 24, **made.state)
    fields = made.encode(x)
    assert torch.equal(again.decode(fields), made.decode(fields))


def test_centroids_pay_on_clustered_vectors():
    centres = vectors(20, 64)
    x = normalize(centres[torch.arange(4000) % 20] + 0.3 * vectors(4000, 64, 3), dim=1)
    made = vector_format("residual2", 64)
    bare = (made.decode(made.encode(x)) - x).square().sum()
    fitted = made.fit(x)
    assert (fitted.decode(fitted.encode(x)) - x).square().sum() < bare / 4


def test_centroids_take_half_of_the_bytes_where_that_loses_nothing():
    x = vectors(4000, 24)
    fitted = vector_format("residual2", 24).fit(x)
    assert fitted.state["centroids"].dtype == torch.float16
    # Those of earlier releases are not rounded by being written again.
    earlier = fitted.centroids + 1e-5
    assert torch.equal(vector_format("residual2", 24, centroids=earlier).state["centroids"], earlier)


@given(st.integers(1, 30), st.integers(1, 20), st.sampled_from([1, 2, 4]), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_packing(dim, n, bits, seed):
    codes = torch.randint(0, 2**bits, (n, dim), generator=torch.Generator().manual_seed(seed)).byte()
    packed = pack(codes, bits)
    assert packed.shape == (n, -(-dim * bits // 8))
    assert torch.equal(unpack(packed, bits, dim), codes)


@pytest.mark.parametrize("bits", [2, 4])
def test_scales_are_no_worse_than_the_plain_one(bits):
    x = vectors(200, 64)
    codes, scale = quantize(x, bits)
    plain = x.abs().amax(1, keepdim=True) / (2**bits - 1)
    rounded = (levels(((x / plain + 2**bits - 1) / 2).round().clamp(0, 2**bits - 1), bits)) * plain
    error = (levels(codes, bits) * scale.float()[:, None] - x).square().sum(1)
    assert bool((error <= (rounded - x).square().sum(1) * 1.01).all())


@pytest.mark.parametrize("dim", [1, 2, 5, 128])
def test_the_integer_product_is_exact(dim):
    g = torch.Generator().manual_seed(dim)
    query = torch.randn(7, dim, generator=g)
    codes = torch.randint(-128, 128, (300, dim), generator=g).to(torch.int8)
    made = integer_query(query)
    # The largest value of each query vector is at the end of the 14 bits; none of the 7-bit parts overflows.
    assert int(made.parts.abs().max()) <= 63
    whole = made.parts.double()
    value = (whole[:, :7] * 127 + whole[:, 7:]) * made.scale
    assert torch.allclose(value.T.float(), query, atol=float(query.abs().max()) / 8000)
    exact = codes.double() @ (whole[:, :7] * 127 + whole[:, 7:])
    assert torch.equal(product(codes, made).double(), exact)


def test_refusals():
    with pytest.raises(ValueError, match="no vector format is called 'zip'"):
        vector_format("zip", 8)
    with pytest.raises(ValueError, match="at least 1"):
        vector_format("int8", 0)
    with pytest.raises(ValueError, match="65,504"):
        vector_format("float16", 2).encode(torch.full((1, 2), 1e6))
