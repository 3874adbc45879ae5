"""Asking: a question with its text, as a language model takes them, with control tokens in the text kept as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from tokensieve.core.plan import Plan
from tokensieve.sites.model.clock import device, now
from tokensieve.sites.sieve import Sieve
from tokensieve.text.loading import open_tokenizer

PLACE = "TOKENSIEVE"
"""Stands for the text while the chat template is applied."""


@dataclass(frozen=True)
class Reply:
    """What a model said.

    Attributes:
        tokens: of the whole prompt; seconds: from the prompt to the end of the answer, of several at once this one's share.
    """

    said: str
    tokens: int
    seconds: float


class PromptAsker:
    """Puts questions to a language model, greedily.

    Args:
        new_tokens: of an answer, at most.
    """

    def __init__(self, model: Any, tokenizer: Any, new_tokens: int, seed: int):
        self.model, self.tokenizer, self.new_tokens, self.seed = model, tokenizer, new_tokens, seed
        self._plain = open_tokenizer(tokenizer)
        self._plain.encode_special_tokens = True

    def ids(self, context: str, question: str, system: str) -> list[int]:
        """The prompt: the text, a blank line, the question, as a user's turn where the tokenizer has a chat template."""
        content = f"{context}\n\n{question}" if context.strip() else question
        before, after = self._frame(system)
        own = self._plain.encode(content, add_special_tokens=False).ids
        return [*self._marked(before), *own, *self._marked(after)]

    def ask(self, context: str, question: str, system: str, plan: Plan | None = None) -> Reply:
        """Ask a question; as :meth:`together`."""
        return self.together([(context, question, system)], plan)[0]

    def together(self, asked: Sequence[tuple[str, str, str]], plan: Plan | None = None) -> list[Reply]:
        """Ask some questions at once, each of a text, a question and a system prompt; shorter ones are padded on the left.

        Args:
            plan: stages that run in the model.

        Returns:
            a reply each; of several, each has an equal share of the seconds.

        Raises:
            ValueError: a prompt and its answer are longer than the model's context.
        """
        prompts = [self.ids(*one) for one in asked]
        longest = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        width = max(map(len, prompts))
        if longest is not None and width + self.new_tokens > longest:
            raise ValueError(f"a prompt of {width} tokens and its answer; the model's context ends at {longest}")
        where, began = device(self.model), 0.0
        if plan is not None:
            with Sieve(self.model, plan, self.seed):
                began = now(where)
                out = self._generate(prompts, width)
        else:
            began = now(where)
            out = self._generate(prompts, width)
        seconds = (now(where) - began) / len(prompts)
        said = self.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        return [Reply(" ".join(s.split()), len(ids), seconds) for s, ids in zip(said, prompts, strict=True)]

    @torch.no_grad()
    def _generate(self, prompts: Sequence[list[int]], width: int) -> torch.Tensor:
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        rows = torch.tensor([[pad or 0] * (width - len(ids)) + ids for ids in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=self.model.device)
        return self.model.generate(
            rows, attention_mask=mask, max_new_tokens=self.new_tokens, do_sample=False, pad_token_id=pad
        )

    def _frame(self, system: str) -> tuple[str, str]:
        """What stands in front of the content and behind it."""
        if not getattr(self.tokenizer, "chat_template", None):
            front = f"{system}\n\n" if system else ""
            return (self.tokenizer.bos_token or "") + front, "\n"
        turns = [{"role": "system", "content": system}] if system else []
        whole = self.tokenizer.apply_chat_template(
            [*turns, {"role": "user", "content": PLACE}], add_generation_prompt=True, tokenize=False
        )
        before, _, after = whole.partition(PLACE)
        return before, after

    def _marked(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def timed(work: Any) -> tuple[Any, float]:
    """What a call gives, and its seconds."""
    began = perf_counter()
    return work(), perf_counter() - began
