"""Reduction: composition, provenance, and what it does to tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensieve.core.reduction import Reduction
from tokensieve.testing import features

settings.register_profile("quick", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("quick")

KINDS = ("keep", "merge", "weighted", "soft", "identity")


def random(kind: str, batch: int, n: int, seed: int, mask: torch.Tensor | None = None) -> Reduction:
    """A reduction of a kind; rows keep different numbers, and padding slots of the one before are never used."""
    draw = torch.Generator().manual_seed(seed)
    valid = torch.ones(batch, n, dtype=torch.bool) if mask is None else mask
    if kind == "identity":
        return Reduction.identity(batch, n)
    chosen = (torch.rand(batch, n, generator=draw) < 0.5) & valid
    chosen[:, 0] = True
    if kind == "keep":
        return Reduction.keep(chosen)
    weight = torch.rand(batch, n, generator=draw)
    if kind == "soft":
        m = int(chosen.sum(1).max())
        matrix = torch.rand(batch, m, n, generator=draw) * valid[:, None]
        return Reduction.soft(matrix * (torch.arange(m) < chosen.sum(1)[:, None])[..., None], chosen)
    target = torch.multinomial(chosen.float(), n, replacement=True, generator=draw)
    target = target.masked_fill((torch.rand(batch, n, generator=draw) < 0.2) | ~valid, -1)
    made = Reduction.merge if kind == "merge" else Reduction.weighted
    return made(chosen, target, weight)


@st.composite
def chains(draw):
    """Three reductions that follow each other."""
    batch, n, seed = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(0, 999))
    out: list[Reduction] = []
    for i in range(3):
        mask = out[-1].mask if out else None
        out.append(random(draw(st.sampled_from(KINDS)), batch, out[-1].m if out else n, seed + i, mask))
    return out


@given(chains())
def test_then_is_apply_after_apply(chain):
    a, b, _ = chain
    x = features(a.batch, a.n, 3)
    both = a.then(b)
    real = both.mask[..., None]
    torch.testing.assert_close(both.apply(x) * real, b.apply(a.apply(x)) * real)
    assert torch.equal(both.take(x) * real, b.take(a.take(x)) * real)
    torch.testing.assert_close(both.dense() * real, (b.dense() @ a.dense()) * real)


@given(chains())
def test_then_is_associative(chain):
    a, b, c = chain
    left, right = a.then(b).then(c), a.then(b.then(c))
    assert torch.equal(left.kept, right.kept)
    assert torch.equal(left.mask, right.mask)
    torch.testing.assert_close(left.dense() * left.mask[..., None], right.dense() * right.mask[..., None])
    if left.matrix is None:
        assert torch.equal(left.owner, right.owner)
        torch.testing.assert_close(left.sizes(), right.sizes())


@given(chains())
def test_provenance_survives(chain):
    a, b, _ = chain
    both = a.then(b)
    assert both.n == a.n
    for row in range(a.batch):
        for slot in range(int(both.counts[row])):
            source = int(both.kept[row, slot])
            assert source == int(a.kept[row, int(b.kept[row, slot])])
            if both.matrix is None:
                assert int(both.owner[row, source]) == slot
    assert torch.equal(both.counts, (b.mask & a.mask.gather(1, b.kept)).sum(1))


@given(st.integers(1, 3), st.integers(1, 12), st.integers(0, 999))
def test_dropping_and_restoring(batch, n, seed):
    r = random("keep", batch, n, seed)
    x = features(batch, n, 3)
    back = r.restore(r.apply(x), fill=x)
    assert torch.equal(back, x)
    assert torch.equal(r.restore(r.apply(x)), x * (r.owner >= 0)[..., None])
    assert torch.equal(r.apply(r.restore(r.apply(x))), r.apply(x))


def test_merging_averages():
    chosen = torch.tensor([[True, False, False, True]])
    target = torch.tensor([[0, 0, 3, 3]])
    x = torch.tensor([[[1.0], [3.0], [5.0], [7.0]]])
    assert Reduction.merge(chosen, target).apply(x)[0, :, 0].tolist() == [2, 6]
    weighted = Reduction.merge(chosen, target, torch.tensor([[3.0, 1.0, 1.0, 1.0]]))
    assert weighted.apply(x)[0, :, 0].tolist() == [1.5, 6]
    assert weighted.sizes().tolist() == [[2, 2]]
    assert Reduction.weighted(chosen, target, torch.ones(1, 4)).apply(x)[0, :, 0].tolist() == [4, 12]
    dropped = Reduction.merge(chosen, torch.tensor([[0, -1, 3, 3]]))
    assert dropped.owner.tolist() == [[0, -1, 1, 1]]
    assert dropped.apply(x)[0, :, 0].tolist() == [1, 6]


def test_rows_may_keep_different_numbers():
    chosen = torch.tensor([[True, False, True, True], [False, True, False, False]])
    r = Reduction.keep(chosen)
    assert r.counts.tolist() == [3, 1]
    assert r.kept.tolist() == [[0, 2, 3], [1, 1, 1]]
    assert r.mask.tolist() == [[True, True, True], [True, False, False]]
    one = r.rows(slice(1, 2))
    assert one.counts.tolist() == [1]
    assert repr(r) == "Reduction(drop, batch=2, 4 -> 3 tokens)"


def test_stacked_rows_are_the_batch():
    x = features(4, 9, 3)
    parts = [random(kind, 1, 9, seed) for seed, kind in enumerate(KINDS)]
    parts.append(Reduction.keep(torch.arange(9)[None] < 2))
    r = Reduction.stack(parts)
    assert r.counts.tolist() == [p.m for p in parts]
    for i, part in enumerate(parts):
        torch.testing.assert_close(r.apply(x[:1].repeat(r.batch, 1, 1))[i, : part.m], part.apply(x[:1])[0])
        assert torch.equal(r.owner[i], part.owner[0])
        torch.testing.assert_close(r.rows(slice(i, i + 1)).dense()[0, : part.m], part.dense()[0])
    hard = Reduction.stack([p for p in parts if p.matrix is None])
    assert hard.matrix is None
    assert Reduction.stack([Reduction.identity(1, 9)] * 2).is_identity


@pytest.mark.parametrize("kind", KINDS)
def test_any_token_dimension_and_kind_of_tensor(kind):
    r = random(kind, 2, 9, 1)
    x = features(2, 9, 6)
    want = r.apply(x)
    heads = x.unflatten(2, (3, 2)).transpose(1, 2)
    torch.testing.assert_close(r.apply(heads, dim=2).transpose(1, 2).flatten(2), want)
    ids = torch.arange(18).view(2, 9)
    assert torch.equal(r.apply(ids), ids.gather(1, r.kept))
    assert r.apply(x.bfloat16()).dtype == torch.bfloat16
    assert r.apply(x.double()).dtype == torch.float64
    one = r.rows(slice(0, 1))
    torch.testing.assert_close(one.apply(x[0]), one.apply(x[:1])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_files(kind, tmp_path):
    r = random(kind, 2, 9, 2)
    r.save(tmp_path / "a.safetensors")
    back = Reduction.load(tmp_path / "a.safetensors")
    x = features(2, 9)
    assert torch.equal(back.apply(x), r.apply(x))
    assert back.is_identity == r.is_identity
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_sparse_matrix_serves():
    r = random("soft", 2, 9, 3)
    sparse = Reduction(r.n, r.kept, r.mask, r.owner, None, r.matrix.to_sparse())
    x = features(2, 9)
    torch.testing.assert_close(sparse.apply(x), r.apply(x))
    torch.testing.assert_close(sparse.restore(sparse.apply(x)), r.restore(r.apply(x)))


def test_what_does_not_fit_is_refused(tmp_path):
    r = random("keep", 2, 9, 4)
    with pytest.raises(ValueError, match="needs batch 2 and 9 tokens in dimension 1"):
        r.apply(features(2, 8))
    with pytest.raises(ValueError, match="batch 2"):
        r.apply(features(3, 9))
    with pytest.raises(ValueError, match=f"this one yields 2 x {r.m}"):
        r.then(random("keep", 2, 9, 4))
    with pytest.raises(ValueError, match="every row must keep at least one"):
        Reduction.keep(torch.zeros(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="matrix has shape"):
        Reduction.soft(torch.ones(1, 2, 3), torch.tensor([[True, False, False]]))
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="not a saved Reduction"):
        Reduction.load(tmp_path / "x.safetensors")
