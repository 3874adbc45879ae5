"""What a plan costs, from the model's config alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tokensieve.parts import budget, flops
from tokensieve.parts.budget import Keep
from tokensieve.plan import Plan, Stage
from tokensieve.sites.anatomy import Anatomy, find
from tokensieve.sites.resolve import solve


@dataclass(frozen=True)
class Cost:
    """Prefill of one prompt with one image.

    Attributes:
        flops, full_flops: of the language model's prefill, with the plan and without.
        encoder_flops, full_encoder_flops: of the vision encoder.
        kv_bytes, full_kv_bytes: of the cache after prefill, at two bytes a number.
        final: visual tokens in the last layer; mean: over the layers.
    """

    flops: float
    full_flops: float
    encoder_flops: float
    full_encoder_flops: float
    kv_bytes: float
    full_kv_bytes: float
    final: float
    mean: float

    @property
    def share(self) -> float:
        """Encoder and prefill FLOPs as a share of the full ones."""
        return (self.flops + self.encoder_flops) / (self.full_flops + self.full_encoder_flops)


def cost(model: nn.Module, plan: Plan | Stage, tokens: int = 576, text: int = 32) -> Cost:
    """The cost of a plan for ``tokens`` visual and ``text`` text tokens, exact for budgets that are counts or shares.

    Raises:
        ValueError: the model has no language model.
    """
    anatomy = find(model)
    if anatomy.language is None:
        raise ValueError(f"{type(model).__name__} has no language model; cost() speaks of vision-language models")
    stages = (plan if isinstance(plan, Plan) else Plan(plan)).stages
    depth, now = len(anatomy.language.layers), tokens
    in_encoder = [float(tokens)] * len(anatomy.vision.layers)
    per_layer: list[float] = []
    for stage in stages:
        if stage.site == "encoder":
            now = _count(stage.keep, tokens)
            in_encoder = encoder_tokens(anatomy, stage, tokens, now)
        elif stage.site == "handoff":
            now = _count(solve(stage.keep, 0, depth, now, tokens, text, anatomy.language.config), now)
        else:
            layer = anatomy.language.layer(stage.layer)
            per_layer += [float(now)] * (layer - len(per_layer))
            now = _count(solve(stage.keep, layer, depth, now, tokens, text, anatomy.language.config), now)
    per_layer += [float(now)] * (depth - len(per_layer))
    special = anatomy.vision.specials
    encoder = of_encoder(anatomy, [(1, special + n) for n in in_encoder])
    full_encoder = of_encoder(anatomy, [(1, special + tokens)] * len(in_encoder))
    return of_tokens(anatomy, per_layer, tokens, text, encoder, full_encoder)


def of_tokens(
    anatomy: Anatomy, per_layer: list[float], tokens: float, text: float, encoder: float, full_encoder: float
) -> Cost:
    """The cost of given visual tokens per language-model layer, beside an encoder of known FLOPs."""
    assert anatomy.language is not None
    config = anatomy.language.config
    return Cost(
        flops=sum(flops.of_layer(config, text + n) for n in per_layer),
        full_flops=len(per_layer) * flops.of_layer(config, text + tokens),
        encoder_flops=encoder,
        full_encoder_flops=full_encoder,
        kv_bytes=sum(flops.kv_bytes(config, text + n) for n in per_layer),
        full_kv_bytes=len(per_layer) * flops.kv_bytes(config, text + tokens),
        final=per_layer[-1],
        mean=sum(per_layer) / len(per_layer),
    )


def of_encoder(anatomy: Anatomy, shapes: Sequence[tuple[float, float]]) -> float:
    """FLOPs of the encoder's blocks, given (sequences, tokens of each) in front of every one.

    Read off the blocks themselves: encoders name the entries of their configs in many ways. Attention in windows is counted as if
    it were over the whole sequence.
    """
    total = 0.0
    for layer, attention, (sequences, tokens) in zip(
        anatomy.vision.layers, anatomy.vision.attentions, shapes, strict=True
    ):
        linears = [m for m in layer.modules() if isinstance(m, nn.Linear)]
        inside = [m for m in (attention or layer).modules() if isinstance(m, nn.Linear)]
        weights = sum(m.weight.numel() for m in linears)
        total += sequences * flops.of_weights(weights, inside[-1].in_features, tokens)
    return total


@contextmanager
def encoder_shapes(anatomy: Anatomy) -> Iterator[list[tuple[float, float]]]:
    """(sequences, tokens of each) that the last pass inside gave every block of the encoder."""
    seen: list[tuple[float, float]] = [(0.0, 0.0)] * len(anatomy.vision.layers)

    def listen(index: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            seen[index] = (float(x[..., 0, 0].numel()), float(x.shape[-2]))

        return hook

    hooks = [
        layer.register_forward_pre_hook(listen(i), with_kwargs=True) for i, layer in enumerate(anatomy.vision.layers)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def encoder_tokens(anatomy: Anatomy, stage: Stage, tokens: int, keep: int) -> list[float]:
    """Patch tokens in front of each encoder block under an encoder stage."""
    depth = len(anatomy.vision.layers)
    layers = [anatomy.vision.layer(i) for i in stage.layers] if stage.layers else list(range(anatomy.feature_layer + 1))
    steps = dict(zip(layers, budget.steps(tokens, keep, len(layers)), strict=True))
    out, now = [], float(tokens)
    for i in range(depth):
        out.append(now)
        now = float(steps.get(i, now))
    return out


def _count(keep: budget.Budget, now: int) -> int:
    direct = keep.direct if isinstance(keep, Keep) else keep
    return int(budget.counts(direct, torch.ones(1, now, dtype=torch.bool)))
