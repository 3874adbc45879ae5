"""Indices, values and losses of vector-quantize-pytorch on the same weights."""

import pytest
import torch

import tokensieve as ts

peer = pytest.importorskip("vector_quantize_pytorch")


def draw(dim, seed=0):
    return torch.randn(3, 40, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cosine", [False, True])
def test_vq(cosine):
    theirs = peer.VectorQuantize(dim=8, codebook_size=256, use_cosine_sim=cosine).eval()
    ours = ts.quantizer("vq", codes=256, dim=8, cosine=cosine).eval()
    table = torch.nn.functional.normalize(torch.randn(256, 8), dim=1) if cosine else torch.randn(256, 8)
    theirs._codebook.embed.data.copy_(table[None])
    ours.codebook.copy_(table)
    z = draw(8)
    values, indices, _ = theirs(z)
    codes = ours(z)
    assert torch.equal(codes.indices[..., 0], indices)
    assert torch.allclose(codes.values, values, atol=1e-6)


def test_vq_learns_what_theirs_learns():
    theirs = peer.VectorQuantize(dim=4, codebook_size=8, decay=0.8, commitment_weight=0.25).train()
    ours = ts.quantizer("vq", codes=8, dim=4, decay=0.8, kmeans=False, revive=0).train()
    table = torch.randn(8, 4)
    theirs._codebook.embed.data.copy_(table[None])
    theirs._codebook.embed_avg.data.copy_(table[None])
    theirs._codebook.cluster_size.data.fill_(1)
    ours.codebook.copy_(table)
    ours.total.copy_(table)
    for seed in range(5):
        _, indices, loss = theirs(draw(4, seed))
        codes = ours(draw(4, seed))
        assert torch.equal(codes.indices[..., 0], indices)
        assert torch.allclose(codes.loss, loss.squeeze(), atol=1e-5)
    used = ours.size > 0.5
    assert torch.allclose(ours.codebook[used], theirs._codebook.embed[0][used], atol=1e-3)  # they smooth sizes


@pytest.mark.parametrize("levels", [(8, 8, 8, 6, 5), (5, 3), (7, 4, 9)])
def test_fsq(levels):
    theirs, ours = peer.FSQ(list(levels)).eval(), ts.quantizer("fsq", levels=levels).eval()
    z = 2 * draw(len(levels))
    values, indices = theirs(z)
    codes = ours(z)
    assert torch.equal(ours.pack(codes.indices), indices.long())
    assert torch.allclose(codes.values, values, atol=1e-6)


@pytest.mark.parametrize("spherical", [False, True])
def test_lfq_and_bsq(spherical):
    theirs = peer.LFQ(dim=10, spherical=spherical).eval()
    ours = ts.quantizer("bsq" if spherical else "lfq", bits=10).eval()
    z = draw(10)
    values, indices, _ = theirs(z)
    codes = ours(z)
    # Their first bit counts most, ours least.
    assert torch.equal(ours.pack(codes.indices.flip(-1)), indices.long())
    assert torch.allclose(codes.values, values, atol=1e-6)


@pytest.mark.parametrize("spherical", [False, True])
def test_the_entropies_of_lfq_and_bsq(spherical):
    theirs = peer.LFQ(dim=6, spherical=spherical, entropy_loss_weight=0.1, commitment_loss_weight=0.25).train()
    ours = ts.quantizer("bsq" if spherical else "lfq", bits=6, inv_temperature=1.0).train()
    z = draw(6)
    _, parts = theirs(z, inv_temperature=1.0, return_loss_breakdown=True)
    losses = ours(z).losses
    assert torch.allclose(losses["entropy_sample"], 0.1 * parts.per_sample_entropy, atol=1e-4)
    assert torch.allclose(losses["entropy_batch"], -0.1 * parts.batch_entropy, atol=1e-4)
    assert torch.allclose(losses["commitment"], 0.25 * parts.commitment, atol=1e-5)


def test_residual():
    theirs = peer.ResidualVQ(dim=8, num_quantizers=3, codebook_size=32).eval()
    ours = ts.quantizer("residual", stages=3, dim=8, codes=32).eval()
    for layer, stage in zip(theirs.layers, ours.stages(), strict=True):
        table = torch.randn(32, 8)
        layer._codebook.embed.data.copy_(table[None])
        stage.codebook.copy_(table)
    z = draw(8)
    values, indices, _ = theirs(z)
    codes = ours(z)
    assert torch.equal(codes.indices, indices)
    assert torch.allclose(codes.values, values, atol=1e-5)


def test_what_theirs_does_with_one_value_that_is_not_finite():
    z = draw(16)
    z[0, 3, 2] = torch.nan
    theirs = peer.VectorQuantize(dim=16, codebook_size=32).train()
    theirs(z)
    assert bool(theirs._codebook.embed.isnan().any()), "mended there: say so where the docs do"
    ours = ts.quantizer("vq", codes=32, dim=16, kmeans=False).train()
    with pytest.raises(ValueError, match="is not finite"):
        ours(z)
    assert bool(ours.codebook.isfinite().all())
