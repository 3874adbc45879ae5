"""Testbeds: models that answer held-out questions about pictures, on which methods are compared.

A testbed is a few functions, as `tokensieve.testbed` has them; whoever has another one adds a line to ``BEDS``, and
`python -m benchmarks.leaderboard NAME` measures every method on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from tokensieve import testbed
from tokensieve.testbed import Item, around

LEFT_OUT = 0.8
"""Accuracy with all tokens below which a kind of question is left out of tables: what is lost of it says nothing."""


@dataclass(frozen=True)
class Bed:
    """A testbed.

    Attributes:
        name: by which it is asked for, and under which pages hold its part.
        about: what it is and what it is good for, in Markdown.
        weights: the file that says which model it is.
        load: the model in evaluation mode, and its processor.
        test_set: held-out questions, as :func:`tokensieve.testbed.test_set`.
        prompt: a question as the processor expects it, with one mark for the picture.
        new_tokens: that an answer has at most.
        shares: of the visual tokens that stay, at which methods are compared; seeds: of questions, two at least; per_kind:
            questions of each kind and seed.
    """

    name: str
    about: str
    weights: Callable[[], Path]
    load: Callable[[], tuple[Any, Any]]
    test_set: Callable[..., list[Item]]
    prompt: Callable[[str], str]
    new_tokens: int
    shares: Sequence[float] = (1 / 3, 2 / 9, 1 / 9, 1 / 18)
    seeds: Sequence[int] = (0, 1, 2)
    per_kind: int = 10

    def __post_init__(self) -> None:
        if len(self.seeds) < 2:
            raise ValueError(f"{self.name}: seeds={tuple(self.seeds)}; two at least, for what chance makes of a number")

    def correct(self, model: Any, processor: Any, items: Sequence[Item], batch: int) -> list[bool]:
        """For each item, whether it is answered exactly, under whatever is attached to the model."""
        return testbed.correct(model, processor, items, batch, self.prompt, self.new_tokens)

    def answers(self, model: Any, processor: Any, items: Sequence[Item]) -> list[str]:
        """What is said to some items, in one batch."""
        texts = [i.question.text for i in items]
        return testbed.answers(model, processor, [i.image for i in items], texts, self.prompt, self.new_tokens)

    def text(self, processor: Any, items: Sequence[Item]) -> int:
        """Tokens of text in a prompt, in the mean: all but the picture's."""
        return round(mean(len(processor.tokenizer(self.prompt(i.question.text)).input_ids) - 1 for i in items))


def visual(model: Any) -> int:
    """Visual tokens of a picture."""
    seen = model.config.vision_config
    return int((seen.image_size // seen.patch_size) ** 2)


def by_kind(items: Iterable[Item], right: Iterable[bool]) -> dict[str, float]:
    """Accuracy by kind of question."""
    flags: dict[str, list[bool]] = {}
    for item, ok in zip(items, right, strict=True):
        flags.setdefault(item.kind, []).append(ok)
    return {kind: sum(ok) / len(ok) for kind, ok in flags.items()}


def told(full: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The kinds that tables are made of, from the full model's accuracy by kind for each seed; their mean over the seeds."""
    every = {kind: mean(f[kind] for f in full) for kind in full[0]}
    return {kind: value for kind, value in every.items() if value >= LEFT_OUT}


PACKAGED = Bed(
    "packaged",
    "The packaged LLaVA: 2.5 M parameters, 576 visual tokens, trained from nothing on generated scenes "
    "([how to read it](measuring.md)). It finds mistakes and compares methods, it does not predict a real model's "
    "accuracy.",
    lambda: testbed.path() / "model.safetensors",
    testbed.load,
    testbed.test_set,
    testbed.prompt,
    4,
)
AROUND = Bed(
    "around",
    "The LLaVA around the real SmolLM2 ([what it is](../how-to/real-models.md#a-vision-language-model-around-smollm2)): 30 "
    "layers, 144 visual tokens, clutter behind the things.",
    lambda: around.path() / "around.safetensors",
    around.load,
    around.test_set,
    around.prompt,
    8,
    shares=(1 / 3, 1 / 9),
)
BEDS = {bed.name: bed for bed in (PACKAGED, AROUND)}
