"""Heads that leave vision alone, found on calibration prompts, and the plan that makes use of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.core.plan import Plan
from tokensieve.core.stage import Stage
from tokensieve.methods.focus.yopo import YOPO
from tokensieve.parts import select
from tokensieve.planner.quality import Inputs, prompts
from tokensieve.sites.model import taps
from tokensieve.sites.model.structure import find
from tokensieve.sites.visual import layer_signals


@torch.no_grad()
def activity(model: nn.Module, batches: Iterable[Inputs]) -> Tensor:
    """``(depth, heads)``: the share of its attention that each head of each language-model layer gives to visual tokens, the
    mean over the text behind them.

    Raises:
        ValueError: no batch holds visual tokens.
    """
    anatomy = find(model)
    assert anatomy.language is not None
    total = torch.zeros(len(anatomy.language.layers), anatomy.language.config.num_attention_heads)
    visual, text, tokens = torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.bool), 0

    def watch(index: int) -> taps.Observer:
        def observe(call: taps.Call) -> None:
            place, real = select.compact(text)
            rows = layer_signals.looking(call, place, 0, call.scale)
            given = (rows * visual[:, None, None]).sum(3) * real[:, None]
            total[index] += given.sum((0, 2)).cpu()

        return observe

    undo = [taps.attach(a, observe=watch(i)) for i, a in enumerate(anatomy.language.attentions) if a is not None]
    try:
        for batch in batches:
            ids = batch["input_ids"]
            visual = ids == anatomy.image_token_id
            text = ~visual & (visual.long().cumsum(1) > 0) & batch.get("attention_mask", torch.ones_like(ids)).bool()
            tokens += int(text.sum())
            if bool(visual.any()):
                model(**prompts(batch))
    finally:
        for off in undo:
            off()
    if tokens == 0:
        raise ValueError("batches hold no visual token with text behind it; pass the inputs of prompts with images")
    return total / tokens


def yopo(
    model: nn.Module, batches: Iterable[Inputs], keep: int | float = 25, heads: float = 0.5, skip: float = 0.5
) -> Plan:
    """YOPO (arXiv 2410.06169) for a model: neighbours only, no heads that are inactive on vision, and no vision in late layers.

    Args:
        batches: inputs of a calibration set, prompts with images.
        keep: visual tokens that a visual token may see (see ``yopo``).
        heads: the share of each layer's heads, the least active ones, that rest on vision.
        skip: the share of the depth from which visual computation is skipped (one token stays).

    Raises:
        ValueError: heads outside [0, 1).
    """
    if not 0 <= heads < 1:
        raise ValueError(f"heads={heads}; the share of heads that rest lies in [0, 1)")
    active = activity(model, batches)
    least = active.argsort(dim=1, stable=True)[:, : round(heads * active.shape[1])]
    return limited(model, least.tolist(), keep, skip)


def limited(model: nn.Module, off: list[list[int]], keep: int | float, skip: float) -> Plan:
    """The plan of :func:`yopo` with given heads, ``off[i]`` those of layer i."""
    language: Any = find(model).language
    last = language.layer(float(skip))
    stages = [Stage(YOPO(tuple(sorted(off[i]))), keep, site="focus", layers=(i,)) for i in range(last)]
    return Plan([*stages, Stage(YOPO(), 1, site="prefill", layers=(last,))])
