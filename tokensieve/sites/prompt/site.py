"""The site "prompt": one stage of a plan, on a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast
from zlib import crc32

import torch

from tokensieve.core.method import PromptMethod
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.sites.prompt.counting import TokenCounter
from tokensieve.sites.prompt.cutting import Cut, cut, held
from tokensieve.sites.prompt.filling import Filled, costs_of, fill
from tokensieve.sites.prompt.headings import headed, headings
from tokensieve.sites.prompt.protect import Span
from tokensieve.sites.prompt.surprisal import surprisals
from tokensieve.sites.prompt.vectors import Embed, shifts


@dataclass(frozen=True)
class TextReaders:
    """The small models that read a text, each present where it was given.

    Attributes:
        embed: vectors of texts; ask: those of questions, by the same encoder; bare: as ``embed``, for texts that come once.
        longest: tells how many tokens of a text the encoder reads, where that is known.
        lm: a causal language model and its tokenizer.
    """

    embed: Embed | None = None
    ask: Embed | None = None
    bare: Embed | None = None
    longest: Callable[[], int | None] = lambda: None
    lm: tuple[Any, Any] | None = None


def shorten(
    text: str,
    starts: Sequence[int],
    stage: Stage,
    room: int,
    count: TokenCounter,
    readers: TextReaders,
    question: str = "",
    protected: Sequence[Span] = (),
    seed: int = 0,
) -> Filled:
    """Bring a text under a budget as one stage says.

    Args:
        starts: where its passages begin; room: the budget; protected: stretches that stay, in order.

    Raises:
        ValueError: the budget is too small, or the method reads what was not given. ImportError: as :func:`~.cutting.cut`.
    """
    method = cast(PromptMethod, stage.method)
    made = cut(text, starts, method.unit, protected)
    if not made.spans:
        return Filled([], ["the text holds nothing but blanks"])
    costs = costs_of(made, count)
    must = held(made, protected)
    order = method.order(signals(made, method, readers, question, protected, seed), torch.tensor([_most(costs, room)]))[
        0
    ]
    places, stay = sorted((place, unit) for unit, place in enumerate(order.tolist()) if place >= 0), set(must)
    enter = [unit for _, unit in places if unit not in stay]
    if method.unit == "sentence":
        enter = headed(enter, headings(made))
    filled = fill(made, enter, must, costs, room, count)
    longest = readers.longest() if method.vectors else None
    over = 0 if longest is None else sum(cost > longest for cost in costs)
    told = [f"{over} units are longer than the {longest} tokens that the encoder reads: their beginnings decide"]
    return Filled(filled.spans, [*filled.notes, *(told if over else [])])


def _most(costs: Sequence[int], room: int) -> int:
    """How many units can enter at most: the cheapest."""
    left, most = room, 0
    for cost in sorted(costs):
        left -= cost
        if left < 0:
            break
        most += 1
    return max(1, most)


def signals(
    made: Cut, method: PromptMethod, readers: TextReaders, question: str, protected: Sequence[Span], seed: int
) -> Signals:
    """What a method reads of a text's units.

    Raises:
        ValueError: it reads what was not given; it says how that is passed.
    """
    needs = {need.name for need in method.needs}
    given: dict[str, Any] = {"passage": torch.tensor([made.passages])}
    if "text" in needs:
        if not question.strip():
            raise ValueError(
                f"{method.name} looks for what answers a question; pass question=, or another method (surprisal, crag, tcra)"
            )
        given["text"] = _given(readers.ask, method, "encoder")([question])[None]
    if "shift" in needs:
        sentences = cut(made.text, made.starts, "sentence", protected)
        given["shift"] = shifts(made, sentences, _given(readers.bare, method, "encoder"))[None]
    if "surprisal" in needs:
        given["surprisal"] = surprisals(made, *_given(readers.lm, method, "lm"))[None]
    if method.vectors:
        features = _given(readers.embed, method, "encoder")([" ".join(unit.split()) for unit in made.units()])[None]
    else:
        features = torch.tensor([[[crc32(unit.encode()) / 2**32] for unit in made.units()]])
    return Signals.of(features, seed=seed, **given)


def _given(reader: Any, method: PromptMethod, name: str) -> Any:
    if reader is None:
        what = {
            "encoder": "an encoder of sentences",
            "lm": "a causal language model and its tokenizer, (model, tokenizer)",
        }
        raise ValueError(f"{method.name} reads the text by {what[name]}; pass {name}= (--{name})")
    return reader
