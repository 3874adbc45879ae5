"""Prompts of several pictures without the pictures: a few visual tokens, as a trained tower and projector would make them.

What a projected patch holds is, to four fifths, a sum of what it shows: kind, name, colour, its row and column, and a mark on
one patch in the middle of each thing. These summands are read off the trained model; what is left is added as noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .anyres import LARGE, large
from .clips import FRAMES, clip, clip_questions
from .dense import PATCH, SIDE, labels
from .onevision import TOKENS
from .pairs import pair, pair_questions
from .questions import SceneQuestion, questions
from .scenes import SIZE, crowd, generate
from .words import COLOURS, KINDS, NAMES

SPOTS = 96
"""How many visual tokens such a prompt takes."""
MOST = 10
"""How many questions are asked about it: rows of like length waste least."""
_THIRDS = 3
_CELLS = [f"{axis} {k}" for axis in ("row", "column") for k in range(_THIRDS)]
_WORDS = ("nothing", *KINDS, *NAMES, *COLOURS, *_CELLS, "middle", "thing", *(f"bare {cell}" for cell in _CELLS), "bare")
_SUMMANDS = {word: i for i, word in enumerate(_WORDS)}


def _of(thing: Any, row: int, column: int, middle: bool, named: bool = True) -> list[int]:
    words = [thing.colour, f"row {row}", f"column {column}", "middle" if middle else "nothing", "thing"]
    words += [thing.kind, thing.name] if named else ["nothing", "nothing"]
    return [_SUMMANDS[word] for word in words]


def _bare(row: int, column: int) -> list[int]:
    return [_SUMMANDS[word] for word in (f"bare row {row}", f"bare column {column}", "bare")]


@torch.no_grad()
def summands(model, pixels, seed: int, scenes: int = 160) -> tuple[Tensor, float]:
    """`(summands, D)` by least squares over patches of training scenes, a row of zeros first, and what they miss (RMS)."""
    rows, seen = [], []
    cell = np.arange(SIDE) // (SIDE // _THIRDS)
    body = model.model
    for index in range(scenes):
        scene = crowd(seed, index) if index % 4 else generate(seed, index)
        known = labels(scene)
        made = body.vision_tower(pixels(torch.from_numpy(np.array(scene.image))[None]), output_hidden_states=True)
        patches = body.multi_modal_projector(made.hidden_states[-2][0, 1:])
        for at in np.flatnonzero(known["kind"] >= 0):
            row, column = int(cell[at // SIDE]), int(cell[at % SIDE])
            if known["kind"][at] == 0 and at % 7 != index % 7:
                continue  # background is nearly everything
            hot = np.zeros(len(_SUMMANDS), dtype=np.float32)
            if known["kind"][at]:
                words = [f"row {row}", f"column {column}", "thing", *(["middle"] if known["centre"][at] else [])]
                for key, group in (("kind", tuple(KINDS)), ("name", NAMES), ("colour", tuple(COLOURS))):
                    words.append(group[known[key][at] - 1])
                hot[[_SUMMANDS[word] for word in words]] = 1
            else:
                hot[_bare(row, column)] = 1
            rows.append(hot)
            seen.append(patches[at])
    x, y = torch.from_numpy(np.stack(rows)).double(), torch.stack(seen).double()
    ridge = x.T @ x + 1e-2 * torch.eye(x.shape[1], dtype=torch.float64)
    table = torch.linalg.solve(ridge, x.T @ y)
    return table.float(), float((y - x @ table).square().mean().sqrt())


@dataclass(frozen=True)
class TokenGrid:
    """One grid of visual tokens: where its first stands, tokens to a line and from line to line, pixels to a token, and the
    side of the pictures that the tower saw, all in pixels of the boxes."""

    first: int
    side: int
    stride: int
    pixel: int
    picture: int
    blurred: bool = False  # names are lost half of the time

    def spots(self, thing: Any, box: tuple[int, int, int, int], rng: np.random.Generator, most: int) -> Iterator[tuple]:
        """(place in the prompt, summands of the thing, of the bare background there) for up to `most` tokens of a box."""
        x0, y0, x1, y1 = (box[0] // self.pixel, box[1] // self.pixel, *((c - 1) // self.pixel for c in box[2:]))
        wide = x1 - x0 + 1
        cells = rng.permutation(wide * (y1 - y0 + 1))[: int(rng.integers(1, most + 1))]
        middle = ((y0 + y1) // 2, (x0 + x1) // 2)
        named = not self.blurred or bool(rng.integers(2))
        for cell in cells.tolist():
            row, column = y0 + cell // wide, x0 + cell % wide
            marked = (row, column) == middle and self.pixel == PATCH  # where tokens are pooled the mark is lost
            yield self.at(row, column), _of(thing, *self.third(row, column), marked, named), self.bare(row, column)

    def at(self, row: int, column: int) -> int:
        return self.first + row * self.stride + column

    def third(self, row: int, column: int) -> tuple[int, int]:
        """Row and column of the 3 x 3 layout of the picture that a token was seen in."""
        y, x = ((2 * n + 1) * self.pixel // 2 % self.picture for n in (row, column))
        return y * _THIRDS // self.picture, x * _THIRDS // self.picture

    def bare(self, row: int, column: int) -> list[int]:
        return _bare(*self.third(row, column))


VIEWS = {
    "clip": tuple(TokenGrid(1 + 144 * t, 12, 12, SIZE // 12, SIZE) for t in range(FRAMES)),
    "pair": tuple(TokenGrid(1 + 577 * p, SIDE, SIDE, PATCH, SIZE) for p in range(2)),
    "anyres": (TokenGrid(1, SIDE, SIDE, 2 * PATCH, LARGE, True), TokenGrid(577, SIDE, SIDE + 1, 2 * PATCH, SIZE)),
}


def draw(
    form: str, seed: int, index: int
) -> tuple[list[tuple[int, Any, tuple[int, int, int, int]]], list[SceneQuestion]]:
    """What stands where in sample `index`, as (view, thing, box), and all that can be asked about it."""
    if form == "clip":
        film = clip(seed, index)
        return [(t, a, box) for a in film.actors for t, box in enumerate(a.boxes) if box], [*clip_questions(film)]
    if form == "pair":
        scenes = pair(seed, index)
        return [(p, thing, thing.box) for p, s in enumerate(scenes) for thing in s.things], pair_questions(*scenes)
    scene = large(seed, index)
    return [(v, thing, thing.box) for thing in scene.things for v in range(2)], questions(scene)


def spell(form: str, seed: int, index: int) -> dict[str, Any]:
    """`place (96,)`, `thing (96, 7)` and `bare (96, 3)` summands, `share (96,)` of the thing in each token; the questions."""
    things, asked = draw(form, seed, index)
    rng, views = np.random.default_rng([seed, index, 9]), VIEWS[form]
    most = 2 if form == "clip" else 4
    found = {at: (on, bare) for v, thing, box in things for at, on, bare in views[v].spots(thing, box, rng, most)}
    while len(found) < SPOTS:
        view = views[int(rng.integers(len(views)))]
        row, column = rng.integers(view.side, size=2).tolist()
        found.setdefault(view.at(row, column), ([0] * 7, view.bare(row, column)))
    place = sorted(found)
    thing = np.array([found[at][0] for at in place])
    share = np.where(thing.any(1), rng.uniform(0.4, 1.0, SPOTS), 0.0).astype(np.float32)
    assert place[-1] <= TOKENS[form]
    return {
        "place": np.array(place),
        "thing": thing,
        "bare": np.array([found[at][1] for at in place]),
        "share": share,
        "questions": [asked[i] for i in np.sort(rng.permutation(len(asked))[:MOST])],
    }


def embed(table: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """`(B, 96, D)` visual tokens of spelled prompts."""
    thing, bare = table[batch["thing"]].sum(2), table[batch["bare"]].sum(2)
    share = batch["share"][..., None]
    return share * thing + (1 - share) * bare
