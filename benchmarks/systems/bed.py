"""What every check stands on: the testbed model, its held-out questions, and accuracies measured once and kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import torch

import tokensieve as ts
from benchmarks import digits, several
from benchmarks.beds import PACKAGED, Bed, visual
from tokensieve import testbed
from tokensieve.core.method import Method

PER_KIND, BATCH, TOKENS = 40, 25, 576
INSIDE = {"layers": 1}  # of 4: the paper's second of 32 is as early; by the second of 4 the text has read the image
SEED = 7
Outcome = tuple[bool, dict[str, Any]]
CHECKS: dict[int, Callable[[CheckContext], Outcome]] = {}


class CheckContext:
    """A testbed's model and its held-out questions; accuracies are measured once and kept.

    Checks name counts of the packaged testbed's 576 visual tokens; of another testbed's they are the same share.
    """

    def __init__(self, bed: Bed = PACKAGED) -> None:
        self.bed = bed
        self.model, self.processor = bed.load()
        self.tokens = visual(self.model)
        self.items = bed.test_set(n_scenes=150, questions_per_kind=PER_KIND, seed=SEED)
        self._known: dict[str, list[bool]] = {}
        self._left: dict[str, list[float]] = {}
        self._vit: Any = None
        self._several: Several | None = None

    @property
    def several(self) -> Several:
        if self._several is None:
            self._several = Several()
        return self._several

    @property
    def vit(self) -> Any:
        if self._vit is None:
            self._vit = digits.train()
        return self._vit

    def right(self, name: str | ts.Plan, keep: Any, kind: str | None = None, **options: Any) -> float:
        """Accuracy over all kinds (balanced), or of one."""
        known = self._known[self._asked(name, keep, options)]
        flags = [ok for ok, item in zip(known, self.items, strict=True) if kind in (None, item.kind)]
        return round(sum(flags) / len(flags), 4)

    def left(self, name: str | ts.Plan, keep: Any, **options: Any) -> float:
        """Mean tokens left of an image at the end, over the questions whose accuracy :meth:`right` tells."""
        counts = self._left[self._asked(name, keep, options)]
        return sum(counts) / len(counts)

    def _asked(self, name: str | ts.Plan, keep: Any, options: dict[str, Any]) -> str:
        """The key under which answers and counts of all questions are known."""
        key = json.dumps([name, keep, options], sort_keys=True, default=repr)
        if key not in self._known:
            right, left = [], []
            with ts.sieve(self.model, name, keep=self._share(keep), seed=SEED, **options) as s:
                for start in range(0, len(self.items), BATCH):
                    part = self.items[start : start + BATCH]
                    right += self.bed.correct(self.model, self.processor, part, BATCH)
                    assert s.last is not None
                    left += [s.last.layer_tokens[-1]] * len(part)
            self._known[key], self._left[key] = right, left
        return key

    def _share(self, keep: Any) -> Any:
        """A count of the packaged testbed's tokens, as one of this testbed's."""
        return max(1, round(keep * self.tokens / TOKENS)) if type(keep) is int else keep

    @torch.no_grad()
    def kept(self, name: str, keep: int | float, count: int = 60, **options: Any) -> list[tuple[Any, torch.Tensor]]:
        """Items and the original visual tokens that were kept for them, one by one."""
        out = []
        with ts.sieve(self.model, name, keep=self._share(keep), seed=SEED, **options) as s:
            for item in self.items[:: max(1, len(self.items) // count)]:
                self.bed.answers(self.model, self.processor, [item])
                assert s.last is not None
                out.append((item, s.last.stages[-1].reduction.kept[0]))
        return out

    @torch.no_grad()
    def features(self, item: testbed.Item) -> torch.Tensor:
        """``(576, D)``: the visual tokens of an item's image, in front of the language model."""
        pixels = self.processor.image_processor([item.image], return_tensors="pt")["pixel_values"]
        return self.model.get_image_features(pixels).pooler_output[0]

    def counts(self, name: str, keep: int | float, scenes: int = 60, **options: Any) -> list[tuple[int, int]]:
        """(tokens kept, things in the picture) for some test scenes, one by one."""
        out = []
        with ts.sieve(self.model, name, keep=keep, seed=SEED, **options) as s:
            for scene in (testbed.generate(SEED, index, "test") for index in range(scenes)):
                testbed.answers(self.model, self.processor, [scene.image], ["how many things are there ?"])
                assert s.last is not None
                out.append((int(s.last.stages[0].reduction.counts[0]), len(scene.things)))
        return out

    def on_object(self, name: str, keep: int | float, **options: Any) -> float:
        """Share of kept tokens whose patch centre lies in a box of what is asked about."""
        hits = total = 0
        side = math.isqrt(self.tokens)
        for item, kept in self.kept(name, keep, **options):
            patch = item.image.width / side
            centres = [((int(k) % side + 0.5) * patch, (int(k) // side + 0.5) * patch) for k in kept]
            hits += sum(any(x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in item.boxes) for x, y in centres)
            total += len(centres)
        return round(hits / total, 4)

    @torch.no_grad()
    def vit_right(self, name: str, keep: int | float, **options: Any) -> float:
        with ts.sieve(self.vit, name, keep=keep, site="encoder", seed=SEED, **options):
            return round(digits.accuracy(self.vit), 4)


EACH = {"clip": 8, "pair": 20, "anyres": 8}


class Several:
    """The testbed's model of several pictures, and held-out questions about clips and large pictures."""

    def __init__(self) -> None:
        self.model, self.reader = testbed.load_several()
        self.items = {form: several.items(form, each, SEED) for form, each in EACH.items()}
        self._known: dict[str, list[bool]] = {}

    def right(
        self, form: str, what: str | Method | ts.Plan, keep: Any = None, kinds: tuple[str, ...] = (), **options: Any
    ) -> float:
        """Accuracy over all kinds of a form's questions (balanced), or over some."""
        items = [i for i in self.items[form] if not kinds or i.kind in kinds]
        key = repr((form, what.to_json() if isinstance(what, ts.Plan) else what, keep, kinds, options))
        if key not in self._known:
            self._known[key] = self.flags(items, what, keep, **options)
        return round(sum(self._known[key]) / len(items), 4)

    def flags(
        self, items: list[testbed.Several], what: str | Method | ts.Plan, keep: Any, **options: Any
    ) -> list[bool]:
        with ts.sieve(self.model, what, keep=keep, seed=SEED, **options):
            return testbed.correct(self.model, self.reader, items, batch=several.BATCH[items[0].form])

    def kept(self, item: testbed.Several, name: str, keep: int) -> int:
        """How many visual tokens of an item's picture or clip are left."""
        with ts.sieve(self.model, name, keep=keep, seed=SEED) as s:
            testbed.correct(self.model, self.reader, [item])
        assert s.last is not None
        return int(s.last.stages[-1].reduction.counts[0])


def check(system: int) -> Callable[[Callable[[CheckContext], Outcome]], Callable[[CheckContext], Outcome]]:
    def add(function: Callable[[CheckContext], Outcome]) -> Callable[[CheckContext], Outcome]:
        CHECKS[system] = function
        return function

    return add


def beats(numbers: dict[str, float], winner: str, strict: tuple[str, ...], weak: tuple[str, ...] = ()) -> bool:
    return all(numbers[winner] > numbers[k] for k in strict) and all(numbers[winner] >= numbers[k] for k in weak)
