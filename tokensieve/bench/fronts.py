"""Fronts: the stages of a plan that act in front of a model, in benches of people's questions and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tokensieve.bench.questions import Question
from tokensieve.bench.texts import Text
from tokensieve.core.plan import Plan
from tokensieve.prompt.compress import Compressor
from tokensieve.testbed.lm.tasks import TaskSample


class Fronts:
    """Compresses what is put in front of questions and continuations.

    Args:
        tokenizer: the model's, in which budgets are counted.
        lm: what reads surprisal, the model and its tokenizer; None where it is no language model alone.
    """

    def __init__(self, tokenizer: Any, lm: tuple[Any, Any] | None, seed: int):
        self.tokenizer, self._compressor = tokenizer, Compressor(tokenizer, lm=lm, seed=seed)

    def questions(self, items: Sequence[Question], front: Plan) -> list[Question]:
        """The same questions with shorter contexts; those without one stay as they are."""
        return [
            replace(q, context=(self._compressor(q.context, q.question, plan=front).text,)) if q.context else q
            for q in items
        ]

    def text(self, text: Text, front: Plan) -> Text:
        """The same text with a shorter context; planted facts are left out, as far as the context lost them."""
        ids = self._shorter(text.ids[: text.context], front)
        planted = None if text.planted is None else self._planted(text.planted, front)
        return replace(text, ids=np.concatenate([ids, text.ids[text.context :]]), context=len(ids), planted=planted)

    def _planted(self, sample: TaskSample, front: Plan) -> TaskSample:
        ids = self._shorter(sample.ids[: sample.context], front)
        moved = len(ids) - sample.context
        return replace(
            sample, ids=np.concatenate([ids, sample.ids[sample.context :]]), context=len(ids), made=(),
            answers=tuple((a + moved, b + moved) for a, b in sample.answers),
        )  # fmt: skip

    def _shorter(self, ids: np.ndarray, front: Plan) -> np.ndarray:
        text = self.tokenizer.decode(ids.tolist())
        left = self._compressor(text, plan=front).text
        return np.asarray(self.tokenizer(left, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
