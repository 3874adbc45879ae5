"""Trees: which tokens flowed together in which block, drawn as a figure of a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from torch import Tensor

from tokensieve.bench.overlay import colours

LEAVES = 34
"""Tokens that a figure shows at most."""
CELL, GAP, LEFT, HEIGHT = 28, 16, 64, 220
"""Of a leaf, between trees, of the names of blocks, and of all levels, in pixels."""


@dataclass(frozen=True)
class Tree:
    """The tokens that one token stands for at the end.

    Attributes:
        slot: that token, among those that are left; leaves: the tokens that went into it, that met early side by side.
        levels: behind each step, the runs of leaves that are one token by then.
    """

    slot: int
    leaves: list[int]
    levels: list[list[list[int]]]


def grown(owners: Sequence[Tensor]) -> list[Tree]:
    """The trees of one row, the largest first, of those that fit a figure; none where nothing was merged.

    Args:
        owners: of each step ``(N,)`` long, which of the tokens that are left each one is by then, -1 where it left.
    """
    steps = [owner.tolist() for owner in owners]
    if not steps:
        return []
    held: dict[int, list[int]] = {}
    for token, slot in enumerate(steps[-1]):
        if slot >= 0:
            held.setdefault(slot, []).append(token)
    out, room = [], LEAVES
    for slot, tokens in sorted(held.items(), key=lambda one: -len(one[1])):
        if not 2 <= len(tokens) <= room:
            continue
        room -= len(tokens)
        leaves = sorted(tokens, key=lambda token: (*(step[token] for step in reversed(steps)), token))
        out.append(Tree(slot, leaves, [_runs(leaves, step) for step in steps]))
    return out


def _runs(leaves: Sequence[int], step: Sequence[int]) -> list[list[int]]:
    out: list[list[int]] = []
    for i, token in enumerate(leaves):
        if i and step[token] == step[leaves[i - 1]]:
            out[-1].append(i)
        else:
            out.append([i])
    return out


def drawn(
    trees: Sequence[Tree], blocks: Sequence[int], leaf: Callable[[int, float, float], str], foot: int, name: str
) -> str:
    """Trees as an element of a page: leaves at the foot, the last block on top; "" without any.

    Args:
        blocks: of each step; leaf: from a token and the middle of its upper edge to an element; foot: pixels of leaves.
    """
    if not trees:
        return ""
    step = HEIGHT / len(blocks)
    level = [HEIGHT + 10 - step * (i + 1) for i in range(len(blocks))]
    tint, parts, x = colours(1 + max(t.slot for t in trees)), [], float(LEFT)
    met: set[int] = set()
    for tree in trees:
        at = [x + CELL * (i + 0.5) for i in range(len(tree.leaves))]
        ends = [([i], HEIGHT + 10.0) for i in range(len(at))]  # of what is there: its leaves, and where its line stands
        for k, runs in enumerate(tree.levels):
            joined = []
            for run in runs:
                inside = [e for e in ends if e[0][0] in run]
                if len(inside) == 1:
                    joined.append(inside[0])
                    continue
                met.add(k)
                xs = [_middle(at, e[0]) for e in inside]
                lines = "".join(f"M{a:.1f} {e[1]:.1f}V{level[k]:.1f}" for a, e in zip(xs, inside, strict=True))
                parts.append(_line(lines + f"M{min(xs):.1f} {level[k]:.1f}H{max(xs):.1f}", tint[tree.slot]))
                joined.append((run, level[k]))
            ends = joined
        for run, top in ends:
            parts.append(_line(f"M{_middle(at, run):.1f} {top:.1f}V4", tint[tree.slot]))
        parts += [leaf(token, a, HEIGHT + 12.0) for token, a in zip(tree.leaves, at, strict=True)]
        x = at[-1] + CELL / 2 + GAP
    words = {k: where(blocks[k]) for k in sorted(met)}
    thin = 1 + round(14 / step) if step < 14 else 1
    told = [
        f'<text x="4" y="{level[k] + 4:.1f}" font-size="11" fill="#777">{word}</text>'
        for n, (k, word) in enumerate(words.items())
        if n % thin == 0
    ]
    wide, high = x - GAP + 4, HEIGHT + 14 + foot
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide:.0f}" height="{high}" viewBox="0 0 {wide:.0f} {high}" role="img" '
        f'aria-label="{escape(name)}">' + "".join(told + parts) + "</svg>"
    )


def where(block: int) -> str:
    """A block by its number, -1 in front of the first."""
    return "in front" if block < 0 else f"block {block}"


def _middle(at: Sequence[float], run: Sequence[int]) -> float:
    return sum(at[i] for i in run) / len(run)


def _line(path: str, colour: Sequence[float]) -> str:
    r, g, b = (int(200 * c) for c in colour)
    return f'<path d="{path}" stroke="rgb({r},{g},{b})" stroke-width="2" fill="none"/>'
