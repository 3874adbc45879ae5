"""Questions with one right answer about a scene, in lower-case words separated by blanks."""

from collections import Counter
from dataclasses import dataclass

from .scenes import Scene, Thing
from .words import COUNTS

QUESTION_KINDS = ("identity", "colour", "location", "count", "reading")


@dataclass(frozen=True)
class SceneQuestion:
    """A question, its answer, and the boxes of the things it is about.

    `template` is the wording with the thing asked about left open; the answer prior is measured per template.
    """

    kind: str
    template: str
    text: str
    answer: str
    boxes: tuple[tuple[int, int, int, int], ...]


def prompt(text: str) -> str:
    """The prompt of a question, as the processor of the packaged model expects it."""
    return f"<image> {text} answer :"


def questions(scene: Scene) -> list[SceneQuestion]:
    """Every question that has exactly one right answer in this scene, in a fixed order."""
    names = Counter((thing.kind, thing.name) for thing in scene.things)
    asked = []
    for thing in scene.things:
        asked.append(_naming(thing))
        if names[thing.kind, thing.name] == 1:
            called = thing.name if thing.kind == "shape" else f"{thing.kind} {thing.name}"
            open_slot = "{}" if thing.kind == "shape" else f"{thing.kind} {{}}"
            for kind, wording, answer in (
                ("colour", "what colour is the {} ?", thing.colour),
                ("location", "where is the {} ?", thing.place),
            ):
                template = wording.format(open_slot)
                asked.append(SceneQuestion(kind, template, wording.format(called), answer, (thing.box,)))
    return asked + [_counting(scene, what) for what in ("digits", "shapes", "things")]


def _naming(thing: Thing) -> SceneQuestion:
    """Colours never repeat in a scene of up to eight things, so a colour names one thing."""
    kind, wording = "identity", f"which {thing.kind} is {{}} ?"
    if thing.kind == "word":
        kind, wording = "reading", "what does the {} word say ?"
    return SceneQuestion(kind, wording, wording.format(thing.colour), thing.name, (thing.box,))


def _counting(scene: Scene, what: str) -> SceneQuestion:
    counted = [thing for thing in scene.things if what == "things" or f"{thing.kind}s" == what]
    text = f"how many {what} are there ?"
    return SceneQuestion("count", text, text, COUNTS[len(counted)], tuple(thing.box for thing in counted))
