"""Prompts that end inside a token: back up a little, and let only tokens through that agree with what was taken away.

Source: Athiwaratkun et al., Token Alignment via Character Matching for Subword Completion (arXiv 2403.08688). Deviation: bytes
are matched, so that a prompt may end inside a character.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokensieve.text.models import LogitsProcessor
from tokensieve.text.prefixes import Prefixes
from tokensieve.text.proper import Spelling, cut


@dataclass(frozen=True)
class Aligned:
    """Prompts for ``generate``.

    Attributes:
        inputs: what ``model.generate(**inputs)`` takes: ids and mask, padded on the left, and the processor.
        removed: the bytes of each prompt that the answer has to begin with. Their tokens are generated anew, and count as new.
    """

    inputs: dict[str, Any]
    removed: tuple[bytes, ...]
    _spelling: Spelling

    def completions(self, output: Tensor) -> list[bytes]:
        """What follows each prompt in the output of ``generate``; special tokens are left out.

        Args:
            output: (N, T) ids, N a multiple of the prompts.

        Raises:
            ValueError: an answer stopped before the removed bytes came back; it needs more new tokens.
        """
        width, each = self.inputs["input_ids"].shape[1], len(output) // len(self.removed)
        special = self._spelling.special
        out = []
        for row, ids in enumerate(output[:, width:].tolist()):
            size = len(self._spelling.vocabulary)
            text = self._spelling.joined([i for i in ids if i < size and i not in special])
            removed = self.removed[row // each]
            if text[: len(removed)] != removed:
                raise ValueError(
                    f"answer {row} gives {text!r}, and not yet all of the removed {removed!r}; generate more tokens "
                    "(max_new_tokens)"
                )
            out.append(text[len(removed) :])
        return out


class Agreement(LogitsProcessor):
    """Lets only tokens through that agree with bytes that were taken from the end of a prompt, until they are all there.

    Args:
        spelling, prefixes: of the tokenizer; removed: bytes of each prompt; width: tokens of the padded prompts.

    Raises:
        ValueError: no row of tokens begins with some removed bytes.
    """

    def __init__(self, spelling: Spelling, prefixes: Prefixes, removed: Sequence[bytes], width: int):
        self._bytes, self._width = spelling.vocabulary.bytes, width
        self._removed = tuple(removed)
        self._agreeing = [agreeing(prefixes, spelling.vocabulary.bytes, text) for text in removed]
        self._longest = max(map(len, removed))
        for text, allowed in zip(removed, self._agreeing, strict=True):
            if text and not len(allowed[0]):
                raise ValueError(
                    f"no tokens write {text!r}, the end of a prompt; the tokenizer does not know these bytes"
                )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(N, T) ids and (N, V) scores to (N, V) scores; those of tokens that do not agree are -inf."""
        if input_ids.shape[1] - self._width >= self._longest:
            return scores  # every token so far brought at least one byte
        each = len(input_ids) // len(self._removed)
        out = None
        for row, ids in enumerate(input_ids[:, self._width :].tolist()):
            done = sum(len(self._bytes[i] or b"") for i in ids)
            allowed = self._agreeing[row // each].get(done)
            if allowed is None:
                continue
            if out is None:
                out = scores.clone()
            kept = allowed.to(scores.device)
            out[row] = -torch.inf
            out[row, kept] = scores[row, kept]
        return scores if out is None else out


def agreeing(prefixes: Prefixes, spelled: Sequence[bytes | None], text: bytes) -> dict[int, Tensor]:
    """For each byte of a text the ids of tokens that can stand there: what they say is the text's, or goes on behind its
    end, and behind them others can stand."""
    out: dict[int, Tensor] = {}
    for at in reversed(range(len(text))):
        left = text[at:]
        ends = {i: at + len(spelled[i] or b"") for i in prefixes.inside(left)}
        inner = [i for i, end in ends.items() if end == len(text) or len(out[end])]
        out[at] = torch.tensor(sorted({*inner, *prefixes.ids[prefixes.range(left)].tolist()}), dtype=torch.long)
    return out


def align(
    spelling: Spelling,
    prefixes: Prefixes,
    prompts: Sequence[str | bytes],
    back: int,
    first: Callable[[], Sequence[int]],
    pad: int,
    device: Any,
) -> Aligned:
    """See :meth:`tokensieve.text.decoding.ByteModel.align`."""
    if back < 0:
        raise ValueError(f"back is {back}; it must be 0 or more tokens")
    if not prompts:
        raise ValueError("prompts is empty; give at least one, which may be ''")
    rows, removed = [], []
    for prompt in prompts:
        try:
            whole, rest = cut(prompt.encode() if isinstance(prompt, str) else prompt)
        except UnicodeDecodeError as problem:
            raise ValueError(f"prompt {prompt!r} is not UTF-8: {problem}") from problem
        ids = spelling.tokenizer.encode(whole.decode(), add_special_tokens=True).ids
        keep = len(ids)
        while keep > max(0, len(ids) - back) and spelling.vocabulary.bytes[ids[keep - 1]]:
            keep -= 1
        taken = spelling.joined(ids[keep:]) + rest
        rows.append(ids[:keep] or list(first()))
        removed.append(taken)
    width = max(map(len, rows))
    padded = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
    processor = Agreement(spelling, prefixes, removed, width)
    return Aligned(
        {"input_ids": padded, "attention_mask": mask, "logits_processor": [processor]}, tuple(removed), spelling
    )
