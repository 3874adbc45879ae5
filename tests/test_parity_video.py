"""The video methods against plain loops written from the papers' definitions, on clips of equal and of unequal frames."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import tokensieve as ts
from tests.strategies import features, rows, signals, tokens
from tests.test_contract import check_slots, same
from tokensieve.parts import medoids, temporal
from tokensieve.plan import plan
from tokensieve.registry import make

VIDEO = ["centerclip", "fastvid", "framefusion", "framefusion-prune", "holitom", "lftr", "quota"]
VARIANTS = [
    *((name, {}) for name in VIDEO),
    ("centerclip", {"algorithm": "spectral", "segment": 3}),
    *(("quota", {"within": way}) for way in ("merge", "uniform", "attention")),
]


def clip(batch: int, sizes, dim: int = 12, seed: int = 0, still: float = 0.0):
    """Features of frames that resemble each other, and the frame of each token."""
    x = features(batch, sum(sizes), dim, seed)
    scene = features(batch, max(sizes), dim, seed + 1)
    places = [p for size in sizes for p in range(size)]
    frame = torch.tensor([f for f, size in enumerate(sizes) for _ in range(size)])
    pace = torch.tensor([still if f % 3 else 1.0 for f in frame.tolist()])[:, None]
    return scene[:, places] + 0.6 * pace * x, frame.expand(batch, -1).clone()


CLIPS = [(2, [9] * 4, 10), (3, [16] * 8, 20), (1, [25] * 5, 100), (2, [7, 3, 12, 1, 9], 8), (2, [4] * 6, 1)]


def kept(r):
    return [row[mask].tolist() for row, mask in zip(r.kept, r.mask, strict=True)]


def layout(frame):
    """The tokens of each frame in order."""
    return [[i for i, f in enumerate(frame.tolist()) if f == k] for k in sorted(set(frame.tolist()))]


def best(score, count, among):
    return sorted(among, key=lambda i: (-float(score[i]), i))[:count]


def cosine(a, b):
    return float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))


def share(total, weight, most):
    """Largest remainder with caps, one full group at a time."""
    out, open_ = [0] * len(weight), {g for g in range(len(weight)) if most[g]}
    left = min(total, sum(most))
    while open_:
        w = {g: weight[g] for g in open_}
        if sum(w.values()) <= 0:
            w = {g: most[g] for g in open_}
        want = {g: left * w[g] / sum(w.values()) for g in open_}
        full = [g for g in open_ if want[g] >= most[g]]
        if not full:
            for g in open_:
                out[g] = math.floor(want[g] + 1e-9)
            rest = left - sum(out[g] for g in open_)
            for g in sorted(open_, key=lambda g: (-(want[g] - out[g]), g))[:rest]:
                out[g] += 1
            break
        for g in full:
            out[g] = most[g]
            left -= most[g]
            open_.discard(g)
    return out


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
    made = make("framefusion", similarity=similarity)
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
    assert (pruning.method.name, pruning.site, pruning.keep) == ("framefusion-prune", "prefill", ts.Keep(average=0.3))
    assert plan("framefusion", ts.Keep(average=40)).stages[0].keep == 80
    assert ts.Plan.from_json(plan("framefusion", 0.3).to_json()) == plan("framefusion", 0.3)


def test_framefusion_prune():
    x, a = features(2, 40), torch.rand(2, 5, 40, generator=torch.Generator().manual_seed(3))
    r = ts.reduce(x, "framefusion-prune", 7, text_attention=a)
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
    r = ts.reduce(x, make("centerclip", segment=segment, algorithm=algorithm), keep, frame=frame)
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
    weight = make("lftr").temporal_weights(ts.Signals(features=x, frame=frame))
    assert torch.equal(weight, weight[:, :1].expand_as(weight))
    r = ts.reduce(x, "lftr", 9, frame=frame)
    torch.testing.assert_close(r.apply(x), r.take(x))
    x[1, 27:36] += 1.0
    weight = make("lftr").temporal_weights(ts.Signals(features=x, frame=frame))
    assert torch.equal(weight[0], weight[0, :1].expand(54))
    assert set(frame[1, weight[1] == weight[1].max()].tolist()) <= {3, 4}
    assert float(weight[1].max()) > float(weight[1].min())


# ---- QuoTA: arXiv 2503.08689


@pytest.mark.parametrize(("batch", "sizes", "keep"), CLIPS)
@pytest.mark.parametrize("within", ["pool", "merge", "uniform", "attention"])
def test_quota(batch, sizes, keep, within):
    x, frame = clip(batch, sizes, seed=5)
    draw = torch.Generator().manual_seed(2)
    relevance = torch.rand(batch, sum(sizes), generator=draw) - 0.3
    cls = torch.rand(batch, sum(sizes), generator=draw)
    more = {"cls_attention": cls} if within == "attention" else {}
    r = ts.reduce(x, make("quota", within=within), keep, frame=frame, relevance=relevance, **more)
    assert r.counts.tolist() == [keep] * batch
    for b in range(batch):
        order = layout(frame[b])
        weight = [max(0.0, float(relevance[b, m].max())) ** 2 for m in order]
        quota = share(keep, weight, [len(m) for m in order])
        assert sum(quota) == keep
        for members, count in zip(order, quota, strict=True):
            mine = [i for i in kept(r)[b] if i in members]
            assert len(mine) == count
            owned = [i for i in members if r.owner[b, i] >= 0]
            assert {int(r.kept[b, r.owner[b, i]]) for i in owned} == set(mine)
            if not count:
                continue
            alone = {"pool": "pool", "uniform": "uniform"}.get(within)
            if alone:
                one = ts.reduce(x[b : b + 1, members], alone, count)
                assert mine == [members[i] for i in kept(one)[0]]
                slots = [kept(r)[b].index(i) for i in mine]
                torch.testing.assert_close(r.apply(x)[b, slots], one.apply(x[b : b + 1, members])[0])
            elif within == "attention":
                assert mine == sorted(best(cls[b], count, members))
            else:
                assert len(owned) == len(members)


@pytest.mark.parametrize(("name", "options"), [("lftr", {}), ("quota", {}), ("quota", {"within": "uniform"})])
def test_rows_on_grids_of_different_height_are_independent(name, options):
    """36 tokens in 3 columns: as 4 frames of 3 x 3, as 3 of 4 x 3, as one, and as frames that fill no rows."""
    made, x = make(name, **options), features(4, 36, 12)
    sizes = [[9] * 4, [12] * 3, [36], [10, 13, 13]]
    frame = torch.tensor([[f for f, n in enumerate(row) for _ in range(n)] for row in sizes])
    given = {**signals(made, 4, 36, 12), "frame": frame}
    r = ts.reduce(x, made, 10, grid=(12, 3), **given)
    for b in range(4):
        same(r.rows(slice(b, b + 1)), ts.reduce(x[b : b + 1], made, 10, grid=(12, 3), **rows(given, slice(b, b + 1))))
    flat = ts.reduce(x, made, 10, **given)
    assert not torch.equal(r.kept[:3], flat.kept[:3])
    same(r.rows(slice(3, 4)), flat.rows(slice(3, 4)))


def test_quota_pools_cells_of_the_frames_own_grid():
    x, frame = clip(1, [16] * 3)
    r = ts.reduce(x, "quota", 12, frame=frame, grid=(12, 4), relevance=torch.ones(1, 48))
    pooled = torch.nn.functional.avg_pool2d(x.view(3, 4, 4, 12).permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(r.apply(x).view(3, 4, 12), pooled)


def test_one_relevant_frame_gets_what_it_can_hold():
    x, frame = clip(1, [16] * 6)
    relevance = (frame == 4).float() * 0.9 + 0.02
    r = ts.reduce(x, "quota", 20, frame=frame, relevance=relevance)
    counts = [int(((r.kept // 16) == f).sum()) for f in range(6)]
    assert counts[4] == 16
    assert sum(counts) == 20


# ---- FastVID: arXiv 2503.11187


def dense_peaks(x, count, neighbours):
    n, far = len(x), np.square(x[:, None] - x[None]).sum(2) / x.shape[1]
    density = [float(np.sort(far[i])[: min(neighbours, n)].mean()) * -1 for i in range(n)]
    score = []
    for i in range(n):
        denser = [j for j in range(n) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        apart = min(math.sqrt(far[i][j]) for j in denser) if denser else math.sqrt(far.max())
        score.append(math.log(max(apart, 1e-300)) + density[i])
    return best(score, count, range(n))


def fastvid(x, frame, attention, keep, options):
    order = layout(frame)
    mean = [x[m].mean(0) for m in order]
    like = [cosine(a, b) for a, b in itertools.pairwise(mean)]
    lowest = best([-v for v in like], options["segments"] - 1, range(len(like)))
    cuts = sorted({t for t, v in enumerate(like) if v < options["likeness"]} | set(lowest))
    parts = [
        list(range(a, b))
        for a, b in zip([0, *(c + 1 for c in cuts)], [*(c + 1 for c in cuts), len(order)], strict=True)
    ]
    quota = share(keep, [len(m) for m in order], [len(m) for m in order])
    token = {}
    for part in parts:
        size = [len(order[f]) for f in part]
        total = sum(quota[f] for f in part)
        dense = math.floor(options["context"] * total)
        salient = share(total - dense, [1] * len(part), size)
        anchor = [(len(part) - 1 - j) % options["stride"] == 0 for j in range(len(part))]
        room = [(n - a) * on for n, a, on in zip(size, salient, anchor, strict=True)]
        context = share(dense, [1] * len(part), room)
        more = [n - a - c for n, a, c in zip(size, salient, context, strict=True)]
        salient = [
            a + b
            for a, b in zip(salient, share(total - sum(salient) - sum(context), [1] * len(part), more), strict=True)
        ]
        top, peaks = [], []
        for f, a, c in zip(part, salient, context, strict=True):
            mine = best(attention, a, order[f])
            rest = [i for i in order[f] if i not in mine]
            top += mine
            peaks += [rest[i] for i in dense_peaks(x[rest], c, 4)] if c else []
        joins = {p: [] for p in peaks}
        for i in (i for f in part for i in order[f]):
            if peaks and i not in top and i not in peaks:
                joins[max(peaks, key=lambda p: cosine(x[i], x[p]))].append(i)
        token |= {i: x[i] for i in top}
        for p, join in joins.items():
            own = max(options["least"], 1 / (len(join) + 1)) if join else 1.0
            token[p] = own * x[p] + ((1 - own) * x[join].mean(0) if join else 0)
    return sorted(token), np.stack([token[i] for i in sorted(token)])


@pytest.mark.parametrize(("batch", "sizes", "keep"), [*CLIPS, (2, [9] * 12, 60), (2, [4] * 3, 11)])
@pytest.mark.parametrize("options", [{}, {"segments": 2, "likeness": 0.5, "stride": 2, "least": 0.1}, {"context": 0.9}])
def test_fastvid(batch, sizes, keep, options):
    x, frame = clip(batch, sizes, seed=21, still=0.4)
    a = torch.rand(batch, sum(sizes), generator=torch.Generator().manual_seed(4))
    made = make("fastvid", **options)
    r = ts.reduce(x, made, keep, frame=frame, cls_attention=a)
    out = r.apply(x)
    known = {name: getattr(made, name) for name in ("segments", "likeness", "context", "stride", "least")}
    for b in range(batch):
        stay, mixed = fastvid(x[b].double().numpy(), frame[b], a[b].tolist(), keep, known)
        assert kept(r)[b] == stay
        np.testing.assert_allclose(out[b], mixed, atol=1e-5)


# ---- HoliTom: arXiv 2505.21334


def covers(count):
    """All ways to cut frames 0 .. count - 1 into windows."""
    if not count:
        yield []
    for size in range(1, count + 1):
        for rest in covers(count - size):
            yield [*rest, (count - size, count - 1)]


def holitom(x, frame, attention, keep, likeness):
    order, n = layout(frame), len(x)
    like = {
        (k, p): cosine(x[i], x[order[k - 1][p]])
        for k in range(1, len(order))
        for p, i in enumerate(order[k])
        if p < len(order[k - 1])
    }

    def fixed(start, end):
        return [
            p for p in range(len(order[end])) if all(like.get((k, p), -1) > likeness for k in range(start + 1, end + 1))
        ]

    saved = [sum((e - s) * len(fixed(s, e)) for s, e in cover if e > s) for cover in covers(len(order))]
    top = max(saved)
    found = []
    for cover in (c for c, v in zip(covers(len(order)), saved, strict=True) if v == top):
        head, still = {i: i for i in range(n)}, {}
        for s, e in cover:
            for p in fixed(s, e) if e > s else []:
                still[order[s][p]] = s
                for k in range(s + 1, e + 1):
                    head[order[k][p]] = order[s][p]
        near = {order[k][p]: v for (k, p), v in like.items()}
        joins = best(near, n - keep, [i for i in head if head[i] != i])
        members = {i: [] for i in range(n) if i not in joins}
        for i in range(n):
            members[head[i] if i in joins else i].append(i)
        token = {i: x[m].mean(0) for i, m in members.items()}
        groups = [[i for i in order[k] if i in members and i not in still] for k in range(len(order))]
        groups += [[i for i in order[k] if still.get(i) == k] for k in range(len(order))]
        quota = share(keep, [len(g) for g in groups], [len(g) for g in groups])
        out = {}
        for g, (group, c) in enumerate(zip(groups, quota, strict=True)):
            if g < len(order):
                out |= {i: token[i] for i in best(attention, c, group)}
            elif c:
                own = np.stack([token[i] for i in group])
                peaks = dense_peaks(own, c, 7)
                joined = {p: [p] for p in peaks}
                for i in (i for i in range(len(group)) if i not in peaks):
                    joined[min(peaks, key=lambda p: np.square(own[i] - own[p]).sum())].append(i)
                out |= {group[p]: own[m].mean(0) for p, m in joined.items()}
        found.append((sorted(out), np.stack([out[i] for i in sorted(out)])))
    return found


@pytest.mark.parametrize(("batch", "sizes", "keep"), [*CLIPS, (2, [9] * 7, 60), (2, [4] * 3, 11)])
@pytest.mark.parametrize("likeness", [0.8, 0.95, 0.3])
def test_holitom(batch, sizes, keep, likeness):
    x, frame = clip(batch, sizes, seed=31, still=0.4)
    a = torch.rand(batch, sum(sizes), generator=torch.Generator().manual_seed(4))
    r = ts.reduce(x, make("holitom", likeness=likeness), keep, frame=frame, cls_attention=a)
    out = r.apply(x)
    for b in range(batch):
        # Covers that save as much are as good.
        found = [
            m
            for stay, m in holitom(x[b].double().numpy(), frame[b], a[b].tolist(), keep, likeness)
            if stay == kept(r)[b]
        ]
        assert any(np.allclose(out[b], m, atol=1e-5) for m in found)


def test_windows_prefer_the_shorter_of_equals():
    still = torch.zeros(1, 5, 4, dtype=torch.bool)
    still[0, 1, :2] = still[0, 2, :2] = still[0, 4, 2:] = True
    assert temporal.windows(still).tolist() == [[0, 0, 0, 3, 3]]
    assert temporal.windows(torch.zeros(2, 3, 4, dtype=torch.bool)).tolist() == [[0, 1, 2]] * 2


def test_a_clip_that_stands_still_is_one_window():
    x = features(1, 16, 12).repeat(1, 5, 1)
    frame = torch.arange(5).repeat_interleave(16)[None]
    r = ts.reduce(x, "holitom", 16, frame=frame, cls_attention=torch.rand(1, 80))
    assert r.kept.tolist() == [list(range(16))]
    torch.testing.assert_close(r.apply(x), x[:, :16])


# ---- all of them, with frames


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize(("batch", "sizes", "keep"), [*CLIPS, (3, [12] * 4, 47)])
def test_clips_keep_the_contract(name, options, batch, sizes, keep):
    """Exact budgets, independent rows, and padding as if it were not there, with frames that differ between rows."""
    made = make(name, **options)
    x, frame = clip(batch, sizes, still=0.5 if "spectral" in options.values() else 0.0)
    n = sum(sizes)
    frame = torch.stack([(frame[b] + b * (torch.arange(n) % 5 == 0)).sort().values * 10 + b for b in range(batch)])
    given = {**signals(made, batch, n, 12), "frame": frame}
    r = ts.reduce(x, made, keep, **given)
    assert r.counts.tolist() == [keep] * batch
    check_slots(r)
    for b in range(batch):
        same(r.rows(slice(b, b + 1)), ts.reduce(x[b : b + 1], made, keep, **rows(given, slice(b, b + 1))))
    mask = torch.arange(n) % 4 != 1
    padded = ts.reduce(x, made, keep, mask=mask.expand(batch, -1), **given)
    place = mask.nonzero()[:, 0]
    alone = ts.reduce(x[:, place], made, keep, **tokens(given, place))
    assert kept(padded) == [place[row].tolist() for row in map(torch.tensor, kept(alone))]
    torch.testing.assert_close(padded.dense()[:, :, place], alone.dense())
    assert not bool(padded.dense()[:, :, ~mask].any())


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_tokens_of_no_frame_are_counted_too(name, options):
    made = make(name, **options)
    x, frame = clip(2, [8] * 4)
    frame[:, 7::8] = -1
    for keep in (3, 20, 31):
        r = ts.reduce(x, made, keep, **{**signals(made, 2, 32, 12), "frame": frame})
        assert r.counts.tolist() == [keep] * 2
        check_slots(r)


# ---- parts


def test_tables_lay_frames_out_and_back():
    frame = torch.tensor([[0, 0, 1, -1, 2, 1, 0], [1, 0, 0, 0, -1, -1, 1]])
    place, real = temporal.table(frame)
    assert place[real].tolist() == [0, 1, 6, 2, 5, 4, 1, 2, 3, 0, 6]
    assert real.sum(2).tolist() == [[3, 2, 1], [3, 2, 0]]
    assert temporal.places(frame).tolist() == [[0, 1, 0, -1, 0, 1, 2], [0, 0, 1, 2, -1, -1, 1]]
    assert temporal.before(frame).tolist() == [[-1, -1, 0, -1, 2, 1, -1], [1, -1, -1, -1, -1, -1, 2]]
    x = features(2, 7, 3)
    again = temporal.back(temporal.rows(x, place)[..., 0].view(place.shape), place, real, 7, -5.0)
    assert torch.equal(again, torch.where(frame >= 0, x[..., 0], torch.tensor(-5.0)))
    mean = temporal.means(x, frame)
    torch.testing.assert_close(mean[0, 1], (x[0, 2] + x[0, 5]) / 2)
    assert torch.equal(mean[1, 2], torch.zeros(3))
    assert temporal.dense(torch.tensor([[30, 10, 30, 99, 20]]), torch.tensor([[1, 1, 1, 0, 1]]).bool()).tolist() == [
        [2, 0, 2, -1, 1]
    ]


@pytest.mark.parametrize(("name", "options"), [("lftr", {"window": 0}), ("centerclip", {"segment": 0})])
def test_windows_of_no_frame_are_refused(name, options):
    with pytest.raises(ValueError, match="it must be at least 1"):
        make(name, **options)


@pytest.mark.parametrize(("name", "options"), [("quota", {"within": "x"}), ("centerclip", {"algorithm": "x"})])
def test_unknown_ways_are_refused(name, options):
    with pytest.raises(ValueError, match="it must be one of"):
        make(name, **options)
