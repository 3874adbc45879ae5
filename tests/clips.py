"""Random clips, and what the plain definitions of video methods share."""

from __future__ import annotations

import math

import numpy as np
import torch

from tokensieve.testing import features


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


def best(score, count, candidates):
    return sorted(candidates, key=lambda i: (-float(score[i]), i))[:count]


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


def dense_peaks(x, count, neighbours):
    n, far = len(x), np.square(x[:, None] - x[None]).sum(2) / x.shape[1]
    density = [float(np.sort(far[i])[: min(neighbours, n)].mean()) * -1 for i in range(n)]
    score = []
    for i in range(n):
        denser = [j for j in range(n) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        apart = min(math.sqrt(far[i][j]) for j in denser) if denser else math.sqrt(far.max())
        score.append(math.log(max(apart, 1e-300)) + density[i])
    return best(score, count, range(n))
