"""The check of system 161: a paired encoder of coloured shapes, and masks of classes that it was never told of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.reference.clsclip_161 import Pair, guided
from benchmarks.systems.bed import CheckContext, Outcome, check

SIDE, PATCH, SIZE = 48, 6, 18
COLOURS = ((0.9, 0.1, 0.1), (0.1, 0.7, 0.2), (0.2, 0.3, 0.9), (0.9, 0.8, 0.1), (0.6, 0.2, 0.7))
SHAPES = 4
UNSEEN = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 2))
"""Colours and shapes that never come together in training."""
STEPS, BATCH, SHALLOW = 500, 64, (1, 2)


def shape(kind: int) -> Tensor:
    """``(SIZE, SIZE)`` bool: a square, a disc, a triangle or a cross."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, SIZE),) * 2, indexing="ij")
    return (
        (x.abs() < 0.85) & (y.abs() < 0.85),
        x.square() + y.square() < 0.9,
        (y > 2 * x.abs() - 0.9) & (y < 0.9),
        (x.abs() < 0.35) | (y.abs() < 0.35),
    )[kind]


def scenes(classes: list[tuple[int, int]], count: int, others: list[tuple[int, int]], seed: int) -> Any:
    """Pictures of one thing of ``classes`` and one of ``others``; words of the first, and its patches, ``(count, N)`` bool."""
    draw = torch.Generator().manual_seed(seed)
    pictures = 0.5 + 0.05 * torch.randn(count, 3, SIDE, SIDE, generator=draw)
    words, masks = torch.zeros(count, 2, dtype=torch.long), torch.zeros(count, 1, SIDE, SIDE)
    for i in range(count):
        left = int(torch.randint(2, (1,), generator=draw))
        for thing, group in enumerate((classes, others)):
            colour, kind = group[int(torch.randint(len(group), (1,), generator=draw))]
            y = int(torch.randint(SIDE - SIZE, (1,), generator=draw))
            x = int(torch.randint(SIDE // 2 - SIZE, (1,), generator=draw)) + (SIDE // 2) * (left ^ thing)
            ink = shape(kind)
            part = pictures[i, :, y : y + SIZE, x : x + SIZE]
            part[:, ink] = torch.tensor(COLOURS[colour])[:, None]
            if thing == 0:
                words[i] = torch.tensor([colour, len(COLOURS) + kind])
                masks[i, 0, y : y + SIZE, x : x + SIZE] = ink.float()
    return pictures, words, F.avg_pool2d(masks, PATCH).flatten(1) > 0.4


@torch.enable_grad()
def trained(seed: int) -> Pair:
    torch.manual_seed(seed)
    pair = Pair(len(COLOURS) + SHAPES)
    seen = [(c, s) for c in range(len(COLOURS)) for s in range(SHAPES) if (c, s) not in UNSEEN]
    pictures, words, _ = scenes(seen, 4000, seen, seed)
    optimizer = torch.optim.AdamW(pair.parameters(), lr=1e-3, weight_decay=0.05)
    for _ in range(STEPS):
        pick = torch.randint(len(pictures), (BATCH,))
        optimizer.zero_grad()
        pair.loss(pictures[pick], words[pick]).backward()
        optimizer.step()
    return pair.eval()


def miou(maps: Tensor, masks: Tensor, words: Tensor) -> float:
    """The mean over unseen classes of intersection over union, of patches above the middle of their map's range."""
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    guess = maps > (low + high) / 2
    shares = []
    for colour, kind in UNSEEN:
        rows = (words == torch.tensor([colour, len(COLOURS) + kind])).all(1)
        shares.append((guess & masks)[rows].sum() / (guess | masks)[rows].sum())
    return round(float(torch.stack(shares).mean()), 4)


@check(161)
def clsclip(_: CheckContext) -> Outcome:
    """A paired encoder of four blocks, trained on pictures of two coloured shapes and the words of one, five pairs of colour
    and shape held out, two seeds: mIoU of the held-out classes' masks with the text's vector in the place of the class
    token in the first block, and in the first two, above plain likeness of patches to the text."""
    seen = [(c, s) for c in range(len(COLOURS)) for s in range(SHAPES) if (c, s) not in UNSEEN]
    pictures, words, masks = scenes(list(UNSEEN), 400, seen, 77)
    n: dict[str, Any] = {"plain": []} | {f"text in the first {k}": [] for k in SHALLOW}
    for seed in (0, 1):
        pair = trained(seed)
        n["plain"].append(miou(guided(pair, pictures, words, 0), masks, words))
        for k in SHALLOW:
            n[f"text in the first {k}"].append(miou(guided(pair, pictures, words, k), masks, words))
    return all(min(n[f"text in the first {k}"]) > max(n["plain"]) for k in SHALLOW), n
