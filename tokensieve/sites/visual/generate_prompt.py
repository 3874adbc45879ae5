"""Asked: what stands in the prompt of a call of `generate`, told apart from what follows it in the same pass.

A pass may hold more than the prompt: a draft to be checked, or, without a cache, the answer so far. It may hold less: a chunk.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tokensieve.sites.model import calls
from tokensieve.sites.model.compatibility import GenerationConfig, GenerationMixin
from tokensieve.sites.model.ledger import Ledger


@dataclass(frozen=True)
class Prompt:
    """The prompt of one call of `generate`.

    Attributes:
        length: its tokens, those that a cache holds already included.
        ids: ``(B, n)``, its last tokens; None where it is given as embeddings.
        chunk: ``prefill_chunk_size``; None where it goes through in one pass.
    """

    length: int
    ids: Tensor | None
    chunk: int | None

    def cut(self, past: int, length: int, visual: Callable[[Tensor], Tensor]) -> bool:
        """Whether a run of visual tokens goes on beyond one end of a pass.

        Args:
            past: tokens in front of the pass; length: its own.
            visual: maps ids to where visual tokens stand among them.
        """
        if self.chunk is None or self.ids is None:
            return False
        there, first = visual(self.ids), self.length - self.ids.shape[1]
        ends = [at - first for at in (past, past + length)]
        return any(bool((there[:, at - 1] & there[:, at]).any()) for at in ends if 0 < at < there.shape[1])


class GeneratePrompt:
    """Knows the prompt of the call of `generate` that is under way."""

    def __init__(self, model: nn.Module, ledger: Ledger):
        self.model, self.ledger = model, ledger
        self.prompt: Prompt | None = None

    def attach(self) -> list[Callable[[], None]]:
        return [
            calls.around(m, "generate", self._known) for m in self.model.modules() if isinstance(m, GenerationMixin)
        ]

    def _known(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def generate(*args: Any, **kwargs: Any) -> Any:
            with self.ledger.whole():
                before, self.prompt = self.prompt, _prompt(plain, args, kwargs)
                try:
                    return plain(*args, **kwargs)
                finally:
                    self.prompt = before

        return generate

    def upto(self, past: int, length: int) -> int:
        """How many of ``length`` tokens behind ``past`` others belong to the prompt: all, outside of `generate`."""
        return length if self.prompt is None else max(0, min(length, self.prompt.length - past))


def _prompt(generate: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Prompt | None:
    given = inspect.signature(generate).bind_partial(*args, **kwargs).arguments
    given = {**given, **given.pop("kwargs", {})}
    ids = given.get("input_ids", given.get("inputs"))
    parts = [given.get(name) for name in ("inputs_embeds", "attention_mask")]
    # A mask speaks of the whole sequence; without one, so do the ids.
    lengths = [x.shape[1] for x in (ids, *parts) if isinstance(x, Tensor) and x.dim() > 1]
    if not lengths:
        return None
    config: Any = given.get("generation_config")
    own = config.prefill_chunk_size if isinstance(config, GenerationConfig) else None
    return Prompt(max(lengths), ids, given.get("prefill_chunk_size", own))
