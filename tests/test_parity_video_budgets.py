"""QuoTA, FastVID and HoliTom against plain loops written from their definitions, on clips."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import tokensieve as ts
from tests.clips import CLIPS, best, clip, cosine, dense_peaks, kept, layout, share
from tokensieve.core.method_registry import get_method
from tokensieve.parts.score import temporal
from tokensieve.testing import same
from tokensieve.testing.draw import features, rows, signals

# ---- QuoTA: arXiv 2503.08689


@pytest.mark.parametrize(("batch", "sizes", "keep"), CLIPS)
@pytest.mark.parametrize("within", ["pool", "merge", "uniform", "attention"])
def test_quota(batch, sizes, keep, within):
    x, frame = clip(batch, sizes, seed=5)
    draw = torch.Generator().manual_seed(2)
    relevance = torch.rand(batch, sum(sizes), generator=draw) - 0.3
    cls = torch.rand(batch, sum(sizes), generator=draw)
    more = {"cls_attention": cls} if within == "attention" else {}
    r = ts.reduce(x, get_method("quota", within=within), keep, frame=frame, relevance=relevance, **more)
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
    made, x = get_method(name, **options), features(4, 36, 12)
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


def fastvid(x, frame, attention, keep, options):
    order = layout(frame)
    mean = [x[m].mean(0) for m in order]
    like = [cosine(a, b) for a, b in itertools.pairwise(mean)]
    lowest = best([-v for v in like], options["segments"] - 1, range(len(like)))
    cuts = sorted({t for t, v in enumerate(like) if v < options["cosine_threshold"]} | set(lowest))
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
        context = share(dense, [1] * len(part), room[::-1])[::-1]
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
@pytest.mark.parametrize(
    "options", [{}, {"segments": 2, "cosine_threshold": 0.5, "stride": 2, "least": 0.1}, {"context": 0.9}]
)
def test_fastvid(batch, sizes, keep, options):
    x, frame = clip(batch, sizes, seed=21, still=0.4)
    a = torch.rand(batch, sum(sizes), generator=torch.Generator().manual_seed(4))
    made = get_method("fastvid", **options)
    r = ts.reduce(x, made, keep, frame=frame, cls_attention=a)
    out = r.apply(x)
    known = {name: getattr(made, name) for name in ("segments", "cosine_threshold", "context", "stride", "least")}
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


def holitom(x, frame, attention, keep, threshold):
    order, n = layout(frame), len(x)
    like = {
        (k, p): cosine(x[i], x[order[k - 1][p]])
        for k in range(1, len(order))
        for p, i in enumerate(order[k])
        if p < len(order[k - 1])
    }

    def fixed(start, end):
        return [
            p
            for p in range(len(order[end]))
            if all(like.get((k, p), -1) > threshold for k in range(start + 1, end + 1))
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
@pytest.mark.parametrize("threshold", [0.8, 0.95, 0.3])
def test_holitom(batch, sizes, keep, threshold):
    x, frame = clip(batch, sizes, seed=31, still=0.4)
    a = torch.rand(batch, sum(sizes), generator=torch.Generator().manual_seed(4))
    r = ts.reduce(x, get_method("holitom", cosine_threshold=threshold), keep, frame=frame, cls_attention=a)
    out = r.apply(x)
    for b in range(batch):
        # Covers that save as much are as good.
        found = [
            m
            for stay, m in holitom(x[b].double().numpy(), frame[b], a[b].tolist(), keep, threshold)
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
