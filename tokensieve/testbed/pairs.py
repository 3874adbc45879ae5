"""Prompts of two pictures: questions that need the second of them, or both."""

from collections import Counter

from .questions import SceneQuestion, questions
from .scenes import Scene, generate
from .several import Several, balanced
from .words import COUNTS

PAIR_KINDS = ("second", "both")


def pair(seed: int, index: int, split: str = "train") -> tuple[Scene, Scene]:
    """Two scenes of the stream `seed`; no two pairs share one."""
    return generate(seed, 2 * index, split), generate(seed, 2 * index + 1, split)


def pair_questions(first: Scene, second: Scene) -> list[SceneQuestion]:
    """Every question that has exactly one right answer in this pair, in a fixed order.

    Kind "second" is a question about the second picture that the first answers otherwise, or not at all; its boxes
    are in the second picture. Kind "both" cannot be told from one picture; its boxes are left empty.
    """
    before = {q.text: q.answer for q in questions(first)}
    ending = " in the second picture ?"
    asked = [
        SceneQuestion("second", _ends(q.template, ending), _ends(q.text, ending), q.answer, q.boxes)
        for q in questions(second)
        if before.get(q.text) != q.answer
    ]
    for what in ("digits", "shapes", "things"):
        counts = [sum(what == "things" or f"{t.kind}s" == what for t in scene.things) for scene in (first, second)]
        if sum(counts) < len(COUNTS):
            asked.append(_both(f"how many {what} are there in all ?", COUNTS[sum(counts)]))
        if counts[0] != counts[1]:
            asked.append(_both(f"which picture has more {what} ?", "first" if counts[0] > counts[1] else "second"))
    for what, seen in (
        ("colour", [Counter(t.colour for t in scene.things) for scene in (first, second)]),
        *((kind, [Counter(t.name for t in s.things if t.kind == kind) for s in (first, second)]) for kind in _KINDS),
    ):
        shared = list(seen[0] & seen[1])
        if len(shared) == 1:
            asked.append(_both(f"which {what} is in both pictures ?", shared[0]))
    return asked


_KINDS = ("digit", "shape", "word")


def _ends(text: str, ending: str) -> str:
    return text.removesuffix(" ?") + ending


def _both(text: str, answer: str) -> SceneQuestion:
    return SceneQuestion("both", text, text, answer, ())


def pair_set(number: int = 40, each: int = 40, seed: int = 0, split: str = "test") -> list[Several]:
    """`each` questions of each kind about `number` pairs; the same arguments always give the same items."""
    made = (pair(seed, index, split) for index in range(number))
    items = (Several((a.image, b.image), question, "pair") for a, b in made for question in pair_questions(a, b))
    return balanced(items, PAIR_KINDS, each, seed)
