"""FrameFusion, CenterCLIP and LFTR against plain loops written from their definitions, on clips."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import tokensieve as ts
from tests.clips import CLIPS, best, clip, cosine, kept, layout, share
from tokensieve.core.method_registry import get_method
from tokensieve.core.plan import plan
from tokensieve.parts.select import medoids
from tokensieve.testing import features

# ---- FrameFusion: arXiv 2501.01986


def framefusion(x, frame, importance, keep, similarity):
    order = layout(frame)
    link = {}
    for k, members in enumerate(order):
        for p, i in enumerate(members):
            earlier = [order[j][p] for j in range(k) if len(order[j]) > p]
            if earlier:
                link[i] = earlier[-1]
    like = {i: cosine(x[i], x[j]) for i, j in link.items()}
    joins = best(like, len(x) - keep, [i for i in link if like[i] >= similarity])
    group = {}
    for i in range(len(x)):
        group[i] = group[link[i]] if i in joins else i
    members = {h: [i for i in group if group[i] == h] for h in group.values()}
    weight = {h: np.mean([importance[i] for i in m]) for h, m in members.items()}
    stay = sorted(best(weight, keep, list(members)))
    return stay, np.stack([np.mean([x[i] for i in members[h]], 0) for h in stay])


@pytest.mark.parametrize(("batch", "sizes", "keep"), CLIPS)
@pytest.mark.parametrize("similarity", [0.6, 0.9, -1.0])
def test_framefusion(batch, sizes, keep, similarity):
    x, frame = clip(batch, sizes)
    a = torch.rand(batch, 5, sum(sizes), generator=torch.Generator().manual_seed(3))
    made = get_method("framefusion", cosine_threshold=similarity)
    r = ts.reduce(x, made, keep, frame=frame, text_attention=a)
    out = r.apply(x)
    for b in range(batch):
        stay, merged = framefusion(x[b].double().numpy(), frame[b], a[b].mean(0).tolist(), keep, similarity)
        assert kept(r)[b] == stay
        np.testing.assert_allclose(out[b], merged, atol=1e-5)


def test_a_static_clip_merges_to_one_frames_tokens():
    x = features(2, 16, 12).repeat(1, 5, 1)
    frame = torch.arange(5).repeat_interleave(16).expand(2, -1)
    a = torch.rand(2, 3, 80, generator=torch.Generator().manual_seed(0))
    r = ts.reduce(x, "framefusion", 16, frame=frame, text_attention=a)
    assert torch.equal(r.kept, torch.arange(16).expand(2, -1))
    assert torch.equal(r.owner, torch.arange(16).repeat(5).expand(2, -1))
    torch.testing.assert_close(r.apply(x), x[:, :16])


def test_framefusion_as_a_plan_meets_its_mean():
    merging, pruning = plan("framefusion", 0.3).stages
    assert (merging.method.name, merging.site, merging.keep) == ("framefusion", "handoff", 0.6)
    assert (pruning.method.name, pruning.site, pruning.keep) == ("text-attention", "prefill", ts.Keep(average=0.3))
    assert plan("framefusion", ts.Keep(average=40)).stages[0].keep == ts.Keep(tokens=80)
    assert ts.Plan.from_json(plan("framefusion", 0.3).to_json()) == plan("framefusion", 0.3)


def test_framefusion_prune():
    x, a = features(2, 40), torch.rand(2, 5, 40, generator=torch.Generator().manual_seed(3))
    r = ts.reduce(x, "text-attention", 7, text_attention=a)
    assert kept(r) == [sorted(best(row.mean(0), 7, range(40))) for row in a.double()]


# ---- CenterCLIP: arXiv 2205.00823


def kmedoids(x, count, first):
    n = len(x)
    far = [[float(np.linalg.norm(x[i] - x[j])) for j in range(n)] for i in range(n)]
    medoid = [first]
    while len(medoid) < count:
        rest = [i for i in range(n) if i not in medoid]
        medoid.append(max(rest, key=lambda i: (min(far[i][m] for m in medoid), -i)))
    while True:
        clusters = [[] for _ in medoid]
        for i in range(n):
            c = medoid.index(i) if i in medoid else min(range(count), key=lambda c: far[medoid[c]][i])
            clusters[c].append(i)
        moved = [min(c, key=lambda i: (round(sum(far[i][j] for j in c), 9), i)) for c in clusters]
        if moved == medoid:
            return sorted(medoid)
        medoid = moved


def heat(x, count, sigma):
    square = np.square(x[:, None] - x[None]).sum(2)
    n = len(x)
    w = np.exp(-square / (2 * sigma**2 * square.sum() / max(n * (n - 1), 1)))
    d = w.sum(1)
    vectors = np.linalg.eigh((np.diag(d) - w) / np.sqrt(d[:, None] * d[None]))[1][:, :count]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("batch", "sizes", "keep"), CLIPS)
@pytest.mark.parametrize(
    ("segment", "algorithm"), [(2, "kmedoids"), (3, "kmedoids"), (100, "kmedoids"), (2, "spectral")]
)
def test_centerclip(batch, sizes, keep, segment, algorithm):
    # In a static clip the eigenvectors past the distinct tokens are arbitrary.
    x, frame = clip(batch, sizes, seed=7, still=0.5 if algorithm == "spectral" else 0.0)
    r = ts.reduce(x, get_method("centerclip", segment=segment, algorithm=algorithm), keep, frame=frame)
    for b in range(batch):
        part = layout(frame[b] // segment)
        quota = share(keep, [len(p) for p in part], [len(p) for p in part])
        want = []
        for members, count in zip(part, quota, strict=True):
            if count:
                own = x[b, members].double().numpy()
                first = int(np.linalg.norm(own, axis=1).argmax())
                spots = own if algorithm == "kmedoids" else heat(own, count, 0.5)
                want += [members[i] for i in kmedoids(spots, count, first)]
        assert kept(r)[b] == sorted(want)


def test_medoids_lower_the_distance_to_the_nearest_centre():
    x = features(4, 60, 8)
    far, real = torch.cdist(x, x), torch.ones(4, 60, dtype=torch.bool)
    count = torch.full((4,), 9)
    centres = medoids.kmedoids(far, torch.zeros(4, dtype=torch.long), count, real)
    assert centres.sum(1).tolist() == [9] * 4
    cost = far.masked_fill(~centres[:, None], torch.inf).amin(2).sum(1)
    for seed in range(5):
        other = torch.rand(4, 60, generator=torch.Generator().manual_seed(seed)).topk(9, dim=1).indices
        assert bool((cost < far.gather(2, other[:, None].expand(-1, 60, -1)).amin(2).sum(1)).all())


# ---- LFTR: arXiv 2501.17391


def lftr(x, frame, keep, window, columns):
    order, n = layout(frame), len(x)
    window = min(window, n // keep)

    def moved(k):
        far = []
        for p, i in enumerate(order[k]):
            earlier = [order[j][p] for j in range(k) if len(order[j]) > p]
            far += [np.linalg.norm(x[i] - x[earlier[-1]])] if earlier else []
        return float(np.mean(far)) if far else 0.0

    change = [moved(k) for k in range(len(order))]
    change[0] = change[1] if len(change) > 1 else change[0]
    mean = sum(c * len(members) for c, members in zip(change, order, strict=True)) / n
    slots = {}
    for k, members in enumerate(order):
        for p, i in enumerate(members):
            slots.setdefault((k // window, p), []).append((i, math.exp(change[k] / mean) if mean else 1.0))
    token, head = {}, {}
    for at, members in slots.items():
        token[at] = sum(w * x[i] for i, w in members) / sum(w for _, w in members)
        head[at] = members[0][0]
    weight = {}
    for run, p in token:
        size = sum(1 for r, _ in token if r == run)
        beside = [q for q in (p - 1, p + 1) if not columns or q // columns == p // columns]
        beside += [p - columns, p + columns] if columns else []
        far = [np.linalg.norm(token[run, p] - token[run, q]) for q in beside if 0 <= q < size]
        weight[head[run, p]] = np.mean(far) if far else 0.0
    stay = sorted(best(weight, keep, list(weight)))
    place = {h: at for at, h in head.items()}
    return stay, np.stack([token[place[h]] for h in stay])


@pytest.mark.parametrize(
    ("batch", "sizes", "keep", "grid"),
    [*((*c, False) for c in CLIPS), *((*c, True) for c in CLIPS if len(set(c[1])) == 1)],
)
def test_lftr(batch, sizes, keep, grid):
    side = math.isqrt(sizes[0])
    x, frame = clip(batch, sizes, seed=11)
    r = ts.reduce(x, "lftr", keep, frame=frame, grid=(side * len(sizes), side) if grid else None)
    out = r.apply(x)
    for b in range(batch):
        stay, merged = lftr(x[b].double().numpy(), frame[b], keep, 4, side if grid else None)
        assert kept(r)[b] == stay
        np.testing.assert_allclose(out[b], merged, atol=1e-5)


def test_temporal_weights_of_a_static_clip_are_equal_and_follow_motion():
    x = features(2, 9, 12).repeat(1, 6, 1)
    frame = torch.arange(6).repeat_interleave(9).expand(2, -1)
    weight = get_method("lftr").temporal_weights(ts.Signals(features=x, frame=frame))
    assert torch.equal(weight, weight[:, :1].expand_as(weight))
    r = ts.reduce(x, "lftr", 9, frame=frame)
    torch.testing.assert_close(r.apply(x), r.take(x))
    x[1, 27:36] += 1.0
    weight = get_method("lftr").temporal_weights(ts.Signals(features=x, frame=frame))
    assert torch.equal(weight[0], weight[0, :1].expand(54))
    assert set(frame[1, weight[1] == weight[1].max()].tolist()) <= {3, 4}
    assert float(weight[1].max()) > float(weight[1].min())
