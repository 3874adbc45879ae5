"""Stages chosen from what a calibration batch shows of a model: where its visual states change, and what text reads of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from tokensieve.methods.vlm.btp import schedule
from tokensieve.parts.budget import Budget
from tokensieve.plan import Plan
from tokensieve.search.quality import Inputs
from tokensieve.sites.anatomy import Anatomy, find


@torch.no_grad()
def change(model: nn.Module, batches: Iterable[Inputs]) -> Tensor:
    """``(depth,)``: 1 - cosine between the state of a visual token in front of each language-model layer and behind it, the
    mean over all visual tokens of the batches.

    Raises:
        ValueError: no batch holds visual tokens.
    """
    anatomy = find(model)
    layers = _language(anatomy).layers
    total, tokens = torch.zeros(len(layers)), 0
    visual = torch.zeros(0)

    def watch(index: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            alike = cosine_similarity(before[visual].float(), after[visual].float(), dim=-1)
            total[index] += float((1 - alike).sum())

        return hook

    handles = [layer.register_forward_hook(watch(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        for batch in batches:
            visual = batch["input_ids"] == anatomy.image_token_id
            tokens += int(visual.sum())
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    if tokens == 0:
        raise ValueError("batches hold no visual token; pass the inputs of prompts with images")
    return total / tokens


def peaks(change: Tensor, count: int, first: int = 2) -> list[int]:
    """The ``count`` layers to put a stage in front of: those behind the largest changes, peaks before slopes.

    A peak is a layer at which states change more than at its neighbours. No stage lies in front of layer ``first``.

    Raises:
        ValueError: there are fewer layers than stages.
    """
    depth = len(change)
    if depth - first < count:
        raise ValueError(f"count={count} stages do not fit between layer {first} and layer {depth - 1}")
    behind = change[first - 1 : -1]
    beside = torch.nn.functional.pad(change, (1, 1), value=-torch.inf)
    peak = (change >= beside[:-2]) & (change >= beside[2:])
    rank = behind + peak[first - 1 : -1] * (change.max() - change.min() + 1)
    return sorted((rank.argsort(descending=True, stable=True)[:count] + first).tolist())


def btp(model: nn.Module, batches: Iterable[Inputs], keep: Budget) -> Plan:
    """Balanced Token Pruning (arXiv 2505.22038) with its stages where this model's visual states change most.

    Args:
        batches: inputs of a calibration set, prompts with images.
        keep: visual tokens kept, as the mean over the language model's layers.

    Where states have just changed, what was read from them before no longer ranks the tokens, so each of the four stages
    stands behind one of the largest changes.
    """
    return Plan(schedule(keep, peaks(change(model, batches), 4)))


def _language(anatomy: Anatomy) -> Any:
    if anatomy.language is None:
        raise ValueError(
            f"{type(anatomy.model).__name__} has no language model; its stages can be found in vision-language models"
        )
    return anatomy.language
