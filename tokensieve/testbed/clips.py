"""Generated clips: digits and shapes that come, go and move, on the backgrounds of the scenes.

A clip is a pure function of `(split, seed, index)`. As in scenes, the two splits draw from different random streams and
different handwritten digits.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .questions import SceneQuestion
from .scenes import SIZE, SPLITS, _digit, _shape, digit_pool
from .several import Several, background, balanced
from .words import COLOURS, COUNTS, DIGITS, SHAPES

FRAMES = 8
LANES = 3
LANE = SIZE // LANES
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
CLIP_KINDS = ("order", "count", "direction")
LEAST = 96  # pixels that a moving thing covers; well over two token widths in any two of three frames
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Actor:
    """One thing of a clip. `boxes` holds its tight box in each frame, None where it is not there; `way` is one of
    `WAYS`, or empty where it stands still."""

    kind: str
    name: str
    colour: str
    way: str
    boxes: tuple[Box | None, ...]

    @property
    def frames(self) -> tuple[int, ...]:
        """The frames it is in, in order and without a gap."""
        return tuple(t for t, box in enumerate(self.boxes) if box)

    @property
    def called(self) -> str:
        return self.name if self.kind == "shape" else f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Clip:
    """Actors, in no order of time, and the pictures of them."""

    actors: tuple[Actor, ...]
    images: tuple[Image.Image, ...]
    split: str
    seed: int
    index: int


@dataclass(frozen=True)
class ClipQuestion(SceneQuestion):
    """A question about a clip; `frames` are those in which its things are, `boxes` theirs where they first show."""

    frames: tuple[int, ...] = ()


def clip(seed: int, index: int, split: str = "train") -> Clip:
    """Draw clip `index` of the stream `seed`: two to five things, each at least three frames long and in a lane of its own.

    Lanes are rows or columns, so that nothing ever covers anything; two things share one if the second comes after the
    first is gone. Colours all differ; names may repeat.
    """
    rng = np.random.default_rng([SPLITS[split], seed, index, 2])
    still = background(rng)
    upright = bool(rng.integers(2))
    # Slot k and k + LANES are the two halves of lane k.
    slots = rng.permutation(2 * LANES)[: int(rng.integers(2, 6))].tolist()
    colours = rng.permutation(list(COLOURS))[: len(slots)]
    actors, frames = [], [still.copy() for _ in range(FRAMES)]
    for slot, colour in zip(slots, colours, strict=True):
        shared = (slot + LANES) % (2 * LANES) in slots
        actors.append(_act(frames, rng, str(colour), split, upright, slot % LANES, slot // LANES if shared else None))
    return Clip(tuple(actors), tuple(frames), split, seed, index)


def _act(
    frames: list[Image.Image],
    rng: np.random.Generator,
    colour: str,
    split: str,
    upright: bool,
    lane: int,
    half: int | None,
) -> Actor:
    """Draw one thing into the frames of its life: half of the clip, or any three frames and more."""
    first, last = (half * FRAMES // 2, (half + 1) * FRAMES // 2) if half is not None else (0, FRAMES)
    start = int(rng.integers(first, last - 2))
    stop = int(rng.integers(start + 3, last + 1))
    kind = str(rng.choice(("digit", "shape")))
    name = str(rng.choice(DIGITS if kind == "digit" else SHAPES))
    if kind == "digit":
        mask = _digit(int(rng.choice(digit_pool(split)[int(name)])), int(rng.integers(52, 97)))
    else:
        mask = _shape(name, int(rng.integers(44, 85)), float(rng.uniform(-8, 8)))
    mask = mask.crop(mask.getbbox())
    way = str(rng.choice((*(("up", "down") if upright else ("left", "right")), "")))
    paint = np.clip(np.array(COLOURS[colour]) + rng.integers(-14, 15, size=3), 0, 255)
    across, along = (mask.width, mask.height) if upright else (mask.height, mask.width)
    side = lane * LANE + int(rng.integers(0, LANE - across + 1))
    room = SIZE - along
    path = int(rng.integers(LEAST, room + 1)) if way else 0
    begin = int(rng.integers(0, room - path + 1))
    boxes: list[Box | None] = [None] * FRAMES
    for t in range(start, stop):
        done = round(path * (t - start) / (stop - start - 1))
        at = begin + (path - done if way in ("left", "up") else done)
        x, y = (side, at) if upright else (at, side)
        boxes[t] = (x, y, x + mask.width, y + mask.height)
        frames[t].paste(tuple(int(c) for c in paint), boxes[t], mask)
    return Actor(kind, name, colour, way, tuple(boxes))


def clip_questions(of: Clip) -> list[ClipQuestion]:
    """Every question that has exactly one right answer in this clip, in a fixed order."""
    asked = _order(of) + _direction(of)
    for what in ("digits", "shapes", "things"):
        those = [a for a in of.actors if what == "things" or f"{a.kind}s" == what]
        for verb, counted in (("came", those), ("move", [a for a in those if a.way])):
            text = f"how many {what} {verb} ?"
            asked.append(_question("count", text, text, COUNTS[len(counted)], those))
    return asked


def _order(of: Clip) -> list[ClipQuestion]:
    names = Counter((a.kind, a.name) for a in of.actors)
    asked = []
    for end, key in (("first", lambda a: a.frames[0]), ("last", lambda a: -a.frames[0])):
        ranked = sorted(of.actors, key=key)
        if key(ranked[0]) != key(ranked[1]):
            text = f"what colour came {end} ?"
            asked.append(_question("order", text, text, ranked[0].colour, of.actors))
        for a, b in zip(of.actors, of.actors[1:], strict=False):
            if (
                key(a) == key(b)
                or (a.kind, a.name) == (b.kind, b.name)
                or max(names[x.kind, x.name] for x in (a, b)) > 1
            ):
                continue
            wording = f"which came {end} the {{}} or the {{}} ?"
            answer = min(a, b, key=key).name
            asked.append(_question("order", wording, wording.format(a.called, b.called), answer, (a, b)))
    return asked


def _direction(of: Clip) -> list[ClipQuestion]:
    """Colours never repeat, so a colour names one thing."""
    wording = "which way does the {} {} go ?"
    return [
        _question("direction", wording.format("{}", a.kind), wording.format(a.colour, a.kind), a.way, (a,))
        for a in of.actors
        if a.way
    ]


def _question(kind: str, template: str, text: str, answer: str, those) -> ClipQuestion:
    frames = sorted({t for a in those for t in a.frames})
    boxes = tuple(box for a in those if (box := a.boxes[a.frames[0]]))
    return ClipQuestion(kind, template, text, answer, boxes, tuple(frames))


def clip_set(number: int = 60, each: int = 40, seed: int = 0, split: str = "test") -> list[Several]:
    """`each` questions of each kind about `number` clips; the same arguments always give the same items."""
    made = (clip(seed, index, split) for index in range(number))
    items = (Several(c.images, question, "clip") for c in made for question in clip_questions(c))
    return balanced(items, CLIP_KINDS, each, seed)
