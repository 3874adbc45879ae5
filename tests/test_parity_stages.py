"""Methods of systems with several stages, against plain loops written from the papers' definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import tokensieve as ts
from tests.test_parity_vlm import SIZES, attention, best, kept, unit
from tokensieve.core.method_registry import get_method
from tokensieve.parts import budget, score, select
from tokensieve.parts.select import groups
from tokensieve.testing import features


def nearest(x, i, candidates):
    return max(candidates, key=lambda j: (float(unit(x[i]) @ unit(x[j])), -j))


def means(x, members, weight=None):
    w = torch.ones(len(x)) if weight is None else weight
    return torch.stack([(x[m] * w[m, None]).sum(0) / w[m].sum() for m in members])


# ---- STAR: arXiv 2505.12359, PyramidDrop: arXiv 2410.17247


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_star(batch, n, keep):
    received, text = attention(batch, 4, n), attention(batch, 4, 6, n, seed=6)
    real = torch.ones(batch, 6, dtype=torch.bool)
    real[0, :2] = False
    x = features(batch, n)
    want = [sorted(best(received[b].double().mean(0), keep, range(n))) for b in range(batch)]
    assert kept(ts.reduce(x, "star", keep, received_attention=received)) == want
    want = [sorted(best(text[b].double().mean(0)[real[b]].mean(0), keep, range(n))) for b in range(batch)]
    assert kept(ts.reduce(x, "text-attention", keep, text_attention=text, text_mask=real)) == want


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_pyramiddrop(batch, n, keep):
    a = attention(batch, 4, n)
    want = [sorted(best(a[b].double().mean(0), keep, range(n))) for b in range(batch)]
    assert kept(ts.reduce(features(batch, n), "pyramiddrop", keep, last_attention=a)) == want


# ---- VScan: arXiv 2505.22654


def grid_windows(grid, side):
    """Lists of positions, window by window."""
    h, w = grid
    return [
        [y * w + x for y in range(top, min(top + side, h)) for x in range(left, min(left + side, w))]
        for top in range(0, h, side)
        for left in range(0, w, side)
    ]


def even_split(total, sizes):
    """In proportion to the sizes, by largest remainder, the earlier window first among equals."""
    want = [total * s / sum(sizes) for s in sizes]
    out = [math.floor(v + 1e-9) for v in want]
    for i in sorted(range(len(sizes)), key=lambda i: (-round(want[i] - out[i], 9), i))[: total - sum(out)]:
        out[i] += 1
    return out


def vscan(shallow, deep, x, grid, keep):
    windows = grid_windows(grid, 6)
    local = min(math.floor(keep * 0.5 + 0.5), keep - 1)
    chosen = []
    for window, quota in zip(windows, even_split(local, [len(w) for w in windows]), strict=True):
        chosen += best(shallow, quota, window)
    n = len(x)
    chosen += best(deep, keep - len(chosen), set(range(n)) - set(chosen))
    members = {i: [i] for i in sorted(chosen)}
    for i in set(range(n)) - set(chosen):
        members[nearest(x, i, members)].append(i)
    return list(members), means(x, list(members.values()))


@pytest.mark.parametrize(("grid", "keep"), [((24, 24), 96), ((24, 24), 40), ((8, 8), 20), ((7, 13), 30), ((2, 3), 3)])
def test_vscan(grid, keep):
    n = grid[0] * grid[1]
    a = {-19: attention(2, 4, n, seed=1), -2: attention(2, 4, n, seed=2)}
    x = features(2, n, seed=3)
    r = ts.reduce(x, "vscan", keep, cls_attention=a, grid=grid)
    for b in range(2):
        want, out = vscan(a[-19][b].double().mean(0), a[-2][b].double().mean(0), x[b], grid, keep)
        assert kept(r)[b] == want
        torch.testing.assert_close(r.apply(x)[b], out)


def test_vscan_gives_every_window_its_share():
    """On 24 x 24 tokens, 16 windows of 6 x 6; all of deep attention is in one corner, and each window keeps 3 anyway."""
    deep = torch.zeros(1, 576)
    deep[0, :60] = 1
    r = ts.reduce(features(1, 576), "vscan", 96, cls_attention={-19: attention(1, 576), -2: deep}, grid=(24, 24))
    held = [sum(i in window for i in kept(r)[0]) for window in grid_windows((24, 24), 6)]
    assert min(held) == 3
    assert sum(held) == 96


# ---- VisionDrop: arXiv 2506.22283


def visiondrop(received, k, x, keep):
    n = len(x)
    spare = min(math.floor(keep / 8 + 0.5), keep - 1)
    dominant = best(received, keep - spare, range(n))
    rest = [i for i in range(n) if i not in dominant]
    targets = [rest[math.ceil(t * len(rest) / spare)] for t in range(spare)]
    members = {i: [i] for i in sorted(dominant + targets)}
    for i in rest:
        if i not in targets and targets:
            members[nearest(k, i, targets)].append(i)
    return list(members), members


@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (2, 576, 48)])
def test_visiondrop(batch, n, keep):
    a, k, x = attention(batch, 4, n), features(batch, n, 8, seed=2), features(batch, n)
    sizes = 1 + torch.arange(batch * n).reshape(batch, n) % 3
    r = ts.reduce(x, "visiondrop", keep, cls_attention=a, keys=k)
    weighed = ts.reduce(x, "visiondrop", keep, received_attention=a, keys=k, sizes=sizes)
    for b in range(batch):
        slots, members = visiondrop(a[b].double().mean(0), k[b], x[b], keep)
        assert kept(r)[b] == slots
        torch.testing.assert_close(r.apply(x)[b], means(x[b], list(members.values())))
        torch.testing.assert_close(weighed.apply(x)[b], means(x[b], list(members.values()), sizes[b].float()))


# ---- FlowCut: arXiv 2505.19536


def flowcut(cls, like, values, keep):
    """``cls``, ``like``: one row per layer; ``values``: one (n, d) per layer."""
    layers, stay, total = len(cls), list(range(len(cls[0]))), None
    for i in range(layers):
        left = layers - 1 - i
        c, q = cls[i] / cls[i][stay].sum(), like[i] / like[i][stay].sum()
        flow = (c + q) * np.abs(values[i]).sum(1)
        total = flow if total is None else 0.5 * total + 0.5 * flow
        if left % 2:
            continue
        count = keep
        if left:
            p = c[stay]
            spread = -(p * np.log(p)).sum() / math.log(len(stay)) if len(stay) > 1 else 1
            count = max(len(stay) - round((len(stay) - keep) / math.sqrt(left) * (1 - spread**2)), keep)
        stay = sorted(best(total, count, stay))
    return stay


@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (2, 576, 64)])
def test_flowcut(batch, n, keep):
    layers = range(-24, -2)
    draws = torch.Generator().manual_seed(n)
    # Sharp rows, so that the pace matters.
    cls = {i: (4 * torch.randn(batch, 2, n, generator=draws)).softmax(-1) for i in layers}
    like = {i: torch.randn(batch, 2, n, generator=draws).softmax(-1) for i in layers}
    values = {i: torch.randn(batch, n, 8, generator=draws) for i in layers}
    r = ts.reduce(features(batch, n), "flowcut", keep, cls_attention=cls, cls_similarity=like, values=values)
    for b in range(batch):
        rows = [[np.asarray(t[i][b].double().mean(0)) for i in layers] for t in (cls, like)]
        assert kept(r)[b] == flowcut(*rows, [np.asarray(values[i][b].double()) for i in layers], keep)


def test_flowcut_lets_more_go_where_attention_is_concentrated():
    flat, sharp = torch.full((1, 100), 0.01), torch.zeros(1, 100)
    sharp[0, 3] = 1
    candidates, keep = torch.ones(1, 100, dtype=torch.bool), torch.tensor([20])
    assert budget.concentrate(flat, candidates, keep, 4).tolist() == [100]
    assert budget.concentrate(sharp, candidates, keep, 4).tolist() == [60]
    assert budget.concentrate(sharp, candidates, keep, 16).tolist() == [80]
    assert budget.concentrate(flat, candidates, keep, 0).tolist() == [20]


def test_flowcut_remembers_earlier_layers():
    """A token that all layers but the last favour stays; the last layer alone would let it go."""
    a = torch.full((1, 50), 0.01)
    a[0, 7] = 0.5
    last = torch.full((1, 50), 0.02)
    last[0, 7] = 0.0
    cls = dict.fromkeys(range(-24, -3), a) | {-3: last, -2: last}
    r = ts.reduce(torch.ones(1, 50, 4), "flowcut", 5, cls_attention=cls)
    assert 7 in kept(r)[0]
    assert 7 not in kept(ts.reduce(torch.ones(1, 50, 4), "fastervlm", 5, cls_attention=cls))[0]


def agreement(rows):
    """Spearman's correlation of each layer's ranking with the next one's, on average."""
    ranks = [np.argsort(np.argsort(row)) for row in rows]
    return np.mean([np.corrcoef(a, b)[0, 1] for a, b in itertools.pairwise(ranks)])


def test_flowcut_agrees_with_itself_from_layer_to_layer():
    """Up to any layer the score is what the definition adds up to, and it wavers less than one layer's attention does."""
    draws, layers, n = torch.Generator().manual_seed(5), tuple(range(-24, -2)), 90
    common = torch.randn(n, generator=draws)
    cls = {i: (common + 2 * torch.randn(1, 2, n, generator=draws)).softmax(-1) for i in layers}
    like = {i: torch.randn(1, 2, n, generator=draws).softmax(-1) for i in layers}
    values = {i: torch.randn(1, n, 8, generator=draws) for i in layers}
    s = ts.Signals(features=features(1, n), cls_attention=cls, cls_similarity=like, values=values)
    found, total = [], None
    for k, i in enumerate(layers):
        c, q = (np.asarray(t[i][0].double().mean(0)) for t in (cls, like))
        flow = (c / c.sum() + q / q.sum()) * np.abs(values[i][0].double().numpy()).sum(1)
        total = flow if total is None else (total + flow) / 2
        found.append(get_method("flowcut", encoder_layers=layers[: k + 1]).score(s)[0].numpy())
        np.testing.assert_allclose(found[-1], total, rtol=1e-4)
    alone = [cls[i][0].mean(0).numpy() for i in layers]
    assert agreement(found) > agreement(alone) + 0.2


def test_flowcut_ends_in_front_of_the_block_that_makes_the_features():
    """CLIP-L's blocks 1 to 22 of 24 count, as in the public code; the 23rd, whose output is read, sees the kept tokens."""
    needs = get_method("flowcut").needs
    assert [n.layers for n in needs] == [tuple(range(-24, -2))] * 3
    draws = torch.Generator().manual_seed(0)
    cls = {i: torch.randn(1, 2, 60, generator=draws).softmax(-1) for i in range(-24, -2)}
    x = features(1, 60)
    want = kept(ts.reduce(x, "flowcut", 9, cls_attention=cls))
    assert kept(ts.reduce(x, "flowcut", 9, cls_attention=cls | {-2: cls[-24].flip(2), -1: cls[-23]})) == want


# ---- AIM: arXiv 2412.03248


def aim(x, keep):
    """Rounds: even places look for their best odd place; the best pairs merge."""
    slots = [[i] for i in range(len(x))]
    while len(slots) > keep:
        u = unit(torch.stack([x[m].double().mean(0) for m in slots]))
        even, odd = range(0, len(slots), 2), range(1, len(slots), 2)
        onto = {i: max(odd, key=lambda j: (float(u[i] @ u[j]), -j)) for i in even if len(slots) > 1}
        go = sorted(even, key=lambda i: (-float(u[i] @ u[onto[i]]), i))[: min(len(slots) - keep, len(slots) // 2)]
        for i in go:
            slots[onto[i]] += slots[i]
        slots = [m for i, m in enumerate(slots) if i not in go]
    return slots


@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (2, 144, 36), (1, 64, 5)])
def test_aim(batch, n, keep):
    x = features(batch, n, seed=n)
    r = ts.reduce(x, "aim", keep)
    for b in range(batch):
        slots = aim(x[b], keep)
        assert kept(r)[b] == [m[0] for m in slots]
        torch.testing.assert_close(r.apply(x)[b], means(x[b], slots))


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_aim_inside_the_language_model(batch, n, keep):
    rank = attention(batch, 4, n)
    want = [sorted(best((rank[b].double() ** 2).mean(0) ** 0.5, keep, range(n))) for b in range(batch)]
    assert kept(ts.reduce(features(batch, n), "aim-l", keep, pagerank=rank)) == want
    assert kept(ts.reduce(features(batch, n), "aim-l", keep, received_attention=rank)) == want


# ---- MustDrop: arXiv 2411.10803


def mustdrop(cls, x, grid, keep, protect, side=3):
    n = len(x)
    keys = best(cls, min(math.floor(keep * protect + 0.5), keep - 1), range(n))
    windows = [[i for i in w if i not in keys] for w in grid_windows(grid, side)]
    windows = [w for w in windows if w]
    heads = best(cls, keep - len(keys), [w[-1] for w in windows])
    alike = {}
    for w in windows:
        u = unit(x[w])
        pairs = [float(u[i] @ u[j]) for i in range(len(w)) for j in range(len(w)) if i != j]
        alike |= dict.fromkeys(w, np.mean(pairs) if pairs else -1.0)
    rest = [i for i in range(n) if i not in keys and i not in heads]
    chosen = sorted(keys + heads + best({i: -alike[i] for i in rest}, keep - len(keys) - len(heads), rest))
    members = {i: [i] for i in chosen}
    for w in windows:
        if w[-1] in heads:
            members[w[-1]] += [i for i in w if i not in chosen]
    return keys, members


@pytest.mark.parametrize("protect", [0.25, 0.6])
@pytest.mark.parametrize(
    ("grid", "keep"), [((24, 24), 300), ((24, 24), 100), ((24, 24), 20), ((7, 8), 30), ((1, 2), 1)]
)
def test_mustdrop(grid, keep, protect):
    n = grid[0] * grid[1]
    x, a = features(2, n, seed=n), attention(2, 4, n)
    r = ts.reduce(x, get_method("mustdrop", protect=protect), keep, cls_attention=a, grid=grid)
    out = r.apply(x)
    for b in range(2):
        keys, members = mustdrop(a[b].double().mean(0), x[b], grid, keep, protect)
        assert kept(r)[b] == list(members)
        torch.testing.assert_close(out[b], means(x[b], list(members.values())))
        place = [kept(r)[b].index(i) for i in keys]
        assert torch.equal(out[b][place], x[b][keys])


def test_mustdrop_merges_the_flat_part_of_an_image_first():
    """Two windows of nine equal tokens among noise: their sixteen followers are the first to go."""
    x = features(1, 81)
    for window in (grid_windows((9, 9), 3)[i] for i in (1, 3)):
        x[0, window] = x[0, window[0]].clone()
    r = ts.reduce(x, "mustdrop", 65, cls_attention=torch.linspace(1, 2, 81)[None], grid=(9, 9))
    gone = set(range(81)) - set(kept(r)[0])
    assert gone <= set(grid_windows((9, 9), 3)[1] + grid_windows((9, 9), 3)[3])


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_mustdrop_inside_the_language_model(batch, n, keep):
    text, cls = attention(batch, 4, 6, n, seed=6), attention(batch, n, seed=7)
    real = torch.ones(batch, 6, dtype=torch.bool)
    real[0, :2] = False
    r = ts.reduce(features(batch, n), "mustdrop-l", keep, text_attention=text, text_mask=real, ranking=cls)
    for b in range(batch):
        rows = np.asarray(text[b].double().mean(0)[real[b]])
        whole, single = rows.sum(0), rows.max(0)
        dual = np.maximum(whole / whole.mean(), single / single.mean())
        keys = best(cls[b], min(math.floor(keep / 4 + 0.5), keep - 1), range(n))
        assert kept(r)[b] == sorted(keys + best(dual, keep - len(keys), set(range(n)) - set(keys)))


# ---- parts


@pytest.mark.parametrize(("grid", "side"), [((4, 6), 3), ((5, 5), 2), ((1, 7), 3), (None, 2), (None, 3)])
def test_windows(grid, side):
    candidates = (
        torch.rand(3, 24 if grid is None else grid[0] * grid[1], generator=torch.Generator().manual_seed(1)) > 0.3
    )
    got, number = select.windows(candidates, grid, side)
    for b in range(3):
        place = candidates[b].nonzero()[:, 0].tolist()
        if grid is None:
            want = [place[i : i + side**2] for i in range(0, len(place), side**2)]
        else:
            want = [[i for i in w if candidates[b, i]] for w in grid_windows(grid, side)]
        assert number >= len(want)
        assert [(got[b] == g).nonzero()[:, 0].tolist() for g in range(len(want))] == want
        assert bool((got[b][~candidates[b]] == -1).all())
        assert select.last_of_each(got, number)[b].tolist()[: len(want)] == [w[-1] if w else -1 for w in want]


def test_cohesion():
    x, group = (
        features(2, 12),
        torch.tensor([[0, 0, 1, 1, 1, -1, 2, -1, 0, 1, 4, 4], [3, 3, 3, 3, 3, 3, -1, 0, 0, 1, 2, 2]]),
    )
    got = groups.cohesion(x, group, 5)
    for b in range(2):
        u = unit(x[b])
        for g in range(5):
            m = (group[b] == g).nonzero()[:, 0].tolist()
            want = np.mean([u[i] @ u[j] for i in m for j in m if i != j]) if len(m) > 1 else -1
            assert float(got[b, g]) == pytest.approx(want, abs=1e-5)


# ---- VFlowOpt: arXiv 2508.05211


def recycled(importance, windows, keep):
    """Top tokens, and one for every window that loses some: as many top tokens as the budget allows."""
    n = len(importance)
    order = best(importance, n, range(n))

    def opened(d):
        return [[i for i in w if i not in order[:d]] for w in windows if set(w) - set(order[:d])]

    d = max([d for d in range(n + 1) if d + len(opened(d)) <= keep], default=0)
    d = max(d, (keep + 1) // 2)
    groups = sorted(opened(d), key=lambda g: order.index(best(importance, 1, g)[0]))[: keep - d]
    return {i: [i] for i in order[:d]} | {best(importance, 1, g)[0]: g for g in groups}


@pytest.mark.parametrize(("grid", "keep"), [((24, 24), 96), ((24, 24), 20), ((8, 8), 24), ((7, 13), 60), ((1, 3), 2)])
@pytest.mark.parametrize("threshold", [0.0, 1.2])
def test_vflowopt(grid, keep, threshold):
    n = grid[0] * grid[1]
    received, bits, k, x = attention(2, 4, n), 4 * torch.rand(2, n), features(2, n, 8, seed=4), features(2, n, seed=3)
    made = get_method("vflowopt", threshold=threshold, entropy=0.5)
    r = ts.reduce(x, made, keep, received_attention=received, entropy=bits, keys=k, grid=grid)
    for b in range(2):
        context = np.asarray(received[b].double().mean(0))
        if threshold:
            lead = [i for i in range(n) if context[i] > threshold * context.mean()] or best(context, 1, range(n))
            context = np.asarray((k[b, lead].double() @ k[b].double().T / math.sqrt(8)).softmax(-1).mean(0))
        importance = context + 0.5 * np.asarray(bits[b].double().softmax(0))
        members = dict(sorted(recycled(importance, grid_windows(grid, 6), keep).items()))
        assert kept(r)[b] == list(members)
        weight = torch.from_numpy(importance / importance.sum() + 1e-6).float()
        torch.testing.assert_close(r.apply(x)[b], means(x[b], list(members.values()), weight), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_vflowopt_inside_the_language_model(batch, n, keep):
    a, ranking = attention(batch, 4, n), features(batch, n, 1)[..., 0]
    want = [sorted(best(ranking[b], keep, range(n))) for b in range(batch)]
    assert kept(ts.reduce(features(batch, n), "vflowopt-l", keep, last_attention=a, ranking=ranking)) == want
    want = [sorted(best(a[b].double().mean(0), keep, range(n))) for b in range(batch)]
    assert kept(ts.reduce(features(batch, n), "vflowopt-l", keep, last_attention=a)) == want


def test_vflowopt_leaves_padding_out():
    x, k, a = features(1, 30), features(1, 30, 8, seed=1), attention(1, 30)
    mask = torch.arange(36)[None] >= 6

    def wide(t, fill):
        return torch.cat([torch.full_like(t[:, :6], fill), t], 1)

    made = get_method("vflowopt", threshold=1.2)
    alone = ts.reduce(x, made, 11, received_attention=a, keys=k, entropy=a)
    padded = ts.reduce(
        wide(x, 9), made, 11, received_attention=wide(a, 5), keys=wide(k, 9), entropy=wide(a, 50), mask=mask
    )
    assert [[i - 6 for i in row] for row in kept(padded)] == kept(alone)
    torch.testing.assert_close(padded.apply(wide(x, 9)), alone.apply(x))


def test_entropy():
    """In bits: a flat patch needs none, one of two equal halves one, sixteen values four."""
    pixels = torch.zeros(2, 1, 4, 12)
    pixels[0, 0, :2, 4:8] = 1.0
    pixels[0, 0, :, 8:] = torch.arange(16).view(4, 4) / 16
    got = score.entropy(pixels, 4)
    torch.testing.assert_close(got, torch.tensor([[0.0, 1.0, 4.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(score.entropy(3 * pixels - 7, 4), got)
    torch.testing.assert_close(score.entropy(torch.cat([pixels, -pixels, pixels], 1), 4), got)


# ---- CATP: arXiv 2508.07871


def catp(x, v, keep, weight):
    """Greedy: the candidate that raises coverage plus alignment most."""
    u = unit(x)
    like = (1 + u @ u.T) / 2
    bonus = weight * (1 + u @ unit(v)) / 2
    cover, chosen = np.zeros(len(u)), []
    for _ in range(keep):
        gain = np.maximum(like - cover, 0).sum(1) + bonus
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
        cover = np.maximum(cover, like[chosen[-1]])
    return sorted(chosen)


@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (2, 300, 90), (2, 200, 199)])
def test_catp(batch, n, keep):
    x, text = features(batch, n, 12, seed=n), features(batch, 9, 12, seed=4)
    mask = torch.ones(batch, 9, dtype=torch.bool)
    mask[0, :2] = False
    paired = torch.arange(9)[None].expand(batch, 9) < 5
    want = [catp(x[b], text[b][mask[b] & paired[b]].mean(0), keep, 0.7) for b in range(batch)]
    assert kept(ts.reduce(x, "catp", keep, text=text, text_mask=mask, paired=paired)) == want
    want = [catp(x[b], text[b][mask[b]].mean(0), keep, 3.0) for b in range(batch)]
    assert kept(ts.reduce(x, get_method("catp", alignment=3.0), keep, text=text, text_mask=mask)) == want


def test_catp_covers_clusters_before_it_repeats_one():
    """Twenty tight clusters of seven: twenty picks, one in each."""
    x = features(1, 20, 32, seed=1).repeat_interleave(7, 1) + 0.01 * features(1, 140, 32, seed=2)
    r = ts.reduce(x, get_method("catp", alignment=0.0), 20, text=features(1, 3, 32))
    assert sorted(i // 7 for i in kept(r)[0]) == list(range(20))


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_catp_inside_the_language_model(batch, n, keep):
    x, text, a = features(batch, n), features(batch, 5, seed=4), attention(batch, 4, n)
    mask = torch.tensor([[True, True, True, False, False]]).expand(batch, 5)
    r = ts.reduce(x, "catp-l", keep, last_attention=a, text=text, text_mask=mask)
    for b in range(batch):
        points = np.asarray(a[b].double().mean(0)) + 0.6 * (unit(x[b]) @ unit(text[b, 2]))
        assert kept(r)[b] == sorted(best(points, keep, range(n)))
