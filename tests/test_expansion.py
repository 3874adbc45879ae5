"""How tokens come back from clusters: mixes of slots, alone and through several reductions; and the clusters near a cell."""

import pytest
import torch

import tokensieve as ts
from tokensieve.core.reduction import Reduction
from tokensieve.parts.merge import local

DRAW = torch.Generator().manual_seed(3)
X = torch.randn(2, 36, 8, generator=DRAW)


def made(keep, k, x=X):
    chosen = torch.zeros(x.shape[:2], dtype=torch.bool)
    chosen[:, :: x.shape[1] // keep] = True
    chosen &= chosen.cumsum(1) <= keep
    target = torch.where(chosen, torch.arange(x.shape[1]), 0)
    r = Reduction.merge(chosen, target)
    near = torch.stack([torch.randperm(keep, generator=DRAW)[:k] for _ in range(2 * x.shape[1])]).view(2, -1, k)
    return r.expanding(near, torch.rand(near.shape, generator=DRAW).softmax(2))


def test_a_mix_is_the_sum_of_shares_of_slots():
    r = made(6, 3)
    y = torch.randn(2, 6, 8, generator=DRAW)
    expected = torch.stack(
        [
            torch.stack(
                [sum(y[b, r.expansion.near[b, i, j]] * r.expansion.share[b, i, j] for j in range(3)) for i in range(36)]
            )
            for b in range(2)
        ]
    )
    assert torch.allclose(r.restore(y), expected, atol=1e-6)
    assert torch.allclose(r.restore(y.to(torch.bfloat16)).float(), expected, atol=0.05)


def test_two_reductions_come_back_one_after_the_other():
    first, second = made(6, 6), None
    second = made(3, 3, first.apply(X))
    both = first.then(second)
    y = torch.randn(2, 3, 8, generator=DRAW)
    # Three slots are left, all of which each token is mixed from: six shares of which three name each slot twice.
    assert both.expansion.k == 6
    near, share = both.expansion.near, both.expansion.share
    assert torch.allclose(share.sum(2), torch.ones(2, 36), atol=1e-5)
    assert int(near.max()) < 3
    copied = Reduction.merge(
        torch.ones(2, 6, dtype=torch.bool).index_fill(1, torch.tensor([1]), False), torch.zeros(2, 6, dtype=torch.long)
    )
    z = torch.randn(2, 5, 8, generator=DRAW)
    assert torch.allclose(first.then(copied).restore(z), first.restore(copied.restore(z)), atol=1e-5)
    assert both.restore(y).shape == X.shape


def test_mixes_survive_rows_stacks_devices_and_files(tmp_path):
    r = made(6, 3)
    y = torch.randn(2, 6, 8, generator=DRAW)
    whole = r.restore(y)
    assert torch.equal(r.rows(slice(1, 2)).restore(y[1:]), whole[1:])
    again = Reduction.stack([r.rows(slice(0, 1)), made(6, 2).rows(slice(1, 2))])
    assert torch.allclose(again.restore(y)[:1], whole[:1])
    assert torch.equal(r.to("cpu").restore(y), whole)
    r.save(tmp_path / "r.safetensors")
    assert torch.equal(Reduction.load(tmp_path / "r.safetensors").restore(y), whole)


def test_dropped_tokens_stay_dropped():
    chosen = torch.arange(36).expand(2, -1) < 6
    r = Reduction.keep(chosen).expanding(torch.zeros(2, 36, 1, dtype=torch.long), torch.ones(2, 36, 1))
    back = r.restore(torch.ones(2, 6, 8), fill=7.0)
    assert bool((back[:, 6:] == 7).all())
    assert bool((back[:, :6] == 1).all())


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"near and share must both be of shape \(2, 36, k\)"):
        made(6, 3).expanding(torch.zeros(2, 35, 1, dtype=torch.long), torch.ones(2, 35, 1))


def by_hand(x, grid, cells, steps):
    """K-means on one row from square cells, tokens moving among the three by three cells around their own."""
    side = grid // cells
    home = [(i // grid // side, i % grid // side) for i in range(grid * grid)]
    middle = {c: (c[0] * side + (side - 1) // 2) * grid + c[1] * side + (side - 1) // 2 for c in set(home)}
    label = list(home)
    for _ in range(steps):
        centre = {c: x[[i for i, at in enumerate(label) if at == c]].mean(0) for c in middle}
        for i, (v, u) in enumerate(home):
            if i in middle.values():
                continue
            around = [c for c in middle if abs(c[0] - v) <= 1 and abs(c[1] - u) <= 1]
            label[i] = min(around, key=lambda c: (float((x[i] - centre[c]).square().sum()), c != (v, u)))
    return [middle[c] for c in label]


def test_clusters_are_those_of_a_plain_loop():
    x = torch.randn(1, 144, 6, generator=DRAW) + torch.linspace(0, 3, 144)[:, None]
    chosen, target = local.means(
        x, torch.tensor([16]), torch.ones(1, 144, dtype=torch.bool), (12, 12), 4, torch.ones(1, 144)
    )
    # Cells at a border have fewer than nine around them; the tensors' nine nearest include cells further in.
    inside = [i for i in range(144) if 3 <= i // 12 < 9 and 3 <= i % 12 < 9]
    expected = by_hand(x[0], 12, 4, 1)
    chosen, target = local.means(
        x, torch.tensor([16]), torch.ones(1, 144, dtype=torch.bool), (12, 12), 1, torch.ones(1, 144)
    )
    assert [int(target[0, i]) for i in inside] == [expected[i] for i in inside]
    assert int(chosen.sum()) == 16


def test_rounds_bring_tokens_nearer_to_their_clusters():
    x = torch.randn(2, 576, 8, generator=DRAW)
    whole, one = torch.ones(2, 576, dtype=torch.bool), torch.ones(2, 576)

    def error(steps):
        chosen, target = local.means(x, torch.tensor([64, 64]), whole, (24, 24), steps, one)
        r = Reduction.merge(chosen, target)
        copied = torch.gather(r.apply(x), 1, r.owner[..., None].expand(-1, -1, 8))
        return float((x - copied).square().mean())

    assert (
        error(5)
        < error(1)
        < float(
            (x - ts.reduce(x, "pool", 64, grid=(24, 24)).restore(ts.reduce(x, "pool", 64, grid=(24, 24)).apply(x)))
            .square()
            .mean()
        )
    )


def test_a_token_is_mixed_from_the_slots_nearest_to_it():
    slots = torch.randn(1, 9, 4, generator=DRAW)
    x = slots[:, [4, 2]] + 0.01
    near, share = local.back(x, slots, torch.ones(1, 9, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool), 3, 1.0)
    far = torch.cdist(x, slots)
    assert torch.equal(near.sort(2).values, far.topk(3, largest=False).indices.sort(2).values)
    assert near[0, :, 0].tolist() == [4, 2]
    assert bool((share[..., 0] > 0.99).all())
