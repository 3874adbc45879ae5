"""Quality of answers on a calibration set, under whatever is attached to the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.sites.model.compatibility import DynamicCache, cache_argument

Inputs = Mapping[str, Any]
"""Keyword arguments of one forward pass, as a processor makes them: ``input_ids``, ``pixel_values``, ..."""

IGNORE = -100


def prompts(batch: Inputs) -> dict[str, Any]:
    """A batch without its answers, as the model takes it."""
    return {k: v for k, v in batch.items() if k != "labels"}


@dataclass(frozen=True)
class Quality:
    """Accuracy: the share of prompts whose whole answer greedy decoding would write; likelihood: the mean over prompts of an
    answer's log-probability per token."""

    accuracy: float
    likelihood: float


@torch.no_grad()
def answered(model: nn.Module, batches: Iterable[Inputs]) -> list[dict[str, Any]]:
    """The batches with ``labels``, the tokens of each prompt's answer: ``(B, T)``, -100 behind its end.

    Where a batch has none, the answer is the token that the model as it is would write next.
    """
    out = []
    for batch in batches:
        full = dict(batch)
        if "labels" not in full:
            full["labels"] = model(**batch).logits[:, -1:].argmax(-1)
        out.append(full)
    if not out:
        raise ValueError("batches is empty; pass the inputs of at least one prompt")
    return out


@torch.no_grad()
def quality(model: nn.Module, batches: Sequence[Inputs]) -> Quality:
    """How well the model answers: prompts first, as in `generate`, then each answer in one pass on the prompt's cache.

    Args:
        batches: left-padded prompts without their answers, and ``labels`` as :func:`answered` describes them.
    """
    right: list[Tensor] = []
    likely: list[Tensor] = []
    for batch in batches:
        inputs = prompts(batch)
        labels = batch["labels"].to(inputs["input_ids"].device)
        real = labels != IGNORE
        logits = [_prompt(model, inputs, cache := DynamicCache())]
        if labels.shape[1] > 1:
            mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
            mask = torch.cat([mask, real[:, :-1].to(mask.dtype)], 1)
            answer = labels[:, :-1].masked_fill(~real[:, :-1], 0)
            logits.append(model(input_ids=answer, attention_mask=mask, **cache_argument(model, cache)).logits)
        log = torch.cat(logits, 1).float().log_softmax(-1)
        right.append(((log.argmax(-1) == labels) | ~real).all(1).float())
        each = log.gather(2, labels.masked_fill(~real, 0)[..., None])[..., 0]
        likely.append((each * real).sum(1) / real.sum(1).clamp(min=1))
    return Quality(float(torch.cat(right).mean()), float(torch.cat(likely).mean()))


def _prompt(model: nn.Module, inputs: dict[str, Any], cache: DynamicCache) -> Tensor:
    return model(**inputs, **cache_argument(model, cache), use_cache=True).logits[:, -1:]
