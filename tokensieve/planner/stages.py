"""Stages chosen from what a calibration batch shows of a model: where its visual states change, and what text reads of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, pad

from tokensieve.core.plan import Plan
from tokensieve.core.stage import Stage
from tokensieve.methods.prefill.adatoken_3d import AdaToken3D
from tokensieve.methods.prefill.btp import LAYERS, schedule
from tokensieve.parts.budget import Budget, check
from tokensieve.planner.quality import Inputs, prompts
from tokensieve.planner.schedule import beginning, scheduled
from tokensieve.sites.model.structure import Anatomy, find
from tokensieve.sites.sieve import sieve


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
            model(**prompts(batch))
    finally:
        for handle in handles:
            handle.remove()
    if tokens == 0:
        raise ValueError("batches hold no visual token; pass the inputs of prompts with images")
    return total / tokens


def peaks(change: Tensor, count: int, first: int) -> list[int]:
    """The ``count`` layers to put a stage in front of: those behind the largest changes, peaks before slopes.

    A peak is a layer at which states change more than at its neighbours. No stage lies in front of layer ``first``.

    Raises:
        ValueError: there are fewer layers than stages.
    """
    depth = len(change)
    if depth - first < count:
        raise ValueError(f"count={count} stages do not fit between layer {first} and layer {depth - 1}")
    behind = change[first - 1 : -1]
    beside = pad(change, (1, 1), value=-torch.inf)
    peak = (change >= beside[:-2]) & (change >= beside[2:])
    rank = behind + peak[first - 1 : -1] * (change.max() - change.min() + 1)
    return sorted((rank.argsort(descending=True, stable=True)[:count] + first).tolist())


def btp(model: nn.Module, batches: Iterable[Inputs], keep: Budget) -> Plan:
    """Balanced Token Pruning (arXiv 2505.22038) with its stages where this model's visual states change most.

    Args:
        batches: inputs of a calibration set, prompts with images.
        keep: visual tokens kept, as the mean over the language model's layers.

    Where states have just changed, what was read from them before no longer ranks the tokens, so each stage stands behind one
    of the largest changes, none in front of the share of the depth where the paper's first one stands. A model too shallow
    for four stages gets fewer.
    """
    language = _language(find(model))
    first = language.layer(LAYERS[0])
    count = min(len(LAYERS), len(language.layers) - first)
    return Plan(schedule(keep, peaks(change(model, batches), count, first)))


@torch.no_grad()
def flows(model: nn.Module, batches: Iterable[Inputs]) -> Tensor:
    """``(depth, images, n)``: how much attention the text pays to each visual token in each layer but the last, whose
    entries are those of the layer before it; the mean over heads and text tokens, 0 at padding.

    Raises:
        ValueError: no batch holds visual tokens.
    """
    depth = len(_language(find(model)).layers)
    probes = [Stage(AdaToken3D(), 1.0, layers=(i,)) for i in range(1, depth)]
    found = []
    with sieve(model, Plan(probes), scores=True) as s:
        for batch in batches:
            before = s.last
            model(**prompts(batch))
            if s.last is not None and s.last is not before:
                found.append(torch.stack([t.score for t in s.last.stages if t.score is not None]))
    if not found:
        raise ValueError("batches hold no visual token; pass the inputs of prompts with images")
    most = max(f.shape[2] for f in found)
    read = torch.cat([pad(f, (0, most - f.shape[2])) for f in found], 1)
    return torch.cat([read, read[-1:]])


def needed(flow: Tensor, cover: float) -> Tensor:
    """``(...)``: the fewest tokens that carry the share ``cover`` of the flow, ``(..., n)``."""
    ranked = flow.sort(-1, descending=True).values.double().cumsum(-1)
    # A share that is met but for rounding is met.
    return (ranked < (cover - 1e-6) * ranked[..., -1:]).sum(-1) + 1


def adatoken3d(model: nn.Module, batches: Iterable[Inputs], cover: float = 0.95, first: int | None = None) -> Plan:
    """AdaToken-3D (arXiv 2505.12782): the schedule of tokens per layer that this model's flow of attention asks for.

    Args:
        batches: inputs of a calibration set, prompts with images.
        cover: the share of the flow from visual tokens to text that has to stay (the paper: tokens contribute little where
            all of them together make less than 5%).
        first: the first layer that may lose tokens, at least 1; 2 by default.

    A layer keeps as many tokens as carry ``cover`` of the flow, the mean over images, in it or in any layer behind it,
    for what has left cannot come back.
    """
    check(cover, "cover", whole=False, most=1.0)
    method, first = beginning(model, AdaToken3D(), first)
    flow = flows(model, batches)
    need = needed(flow, cover).double().mean(1).ceil().long()
    counts: list[int] = need.flip(0).cummax(0).values.flip(0).tolist()
    return scheduled(method, [flow.shape[2]] * first + counts[first:])


def _language(anatomy: Anatomy) -> Any:
    if anatomy.language is None:
        raise ValueError(
            f"{type(anatomy.model).__name__} has no language model; its stages can be found in vision-language models"
        )
    return anatomy.language
