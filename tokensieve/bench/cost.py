"""What a plan costs, from the model's config alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from tokensieve.parts import budget, flops
from tokensieve.parts.budget import Keep
from tokensieve.plan import Plan, Stage
from tokensieve.sites.anatomy import Anatomy, find
from tokensieve.sites.resolve import layered, solve


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
    in_encoder = [float(tokens)] * (len(anatomy.vision.layers) if anatomy.vision else 0)
    per_layer: list[float] = []
    for stage in stages:
        if stage.site == "encoder":
            now = _count(stage.keep, tokens)
            in_encoder = encoder_tokens(anatomy, stage, tokens, now)
        elif stage.site == "handoff":
            now = _count(solve(stage.keep, (), depth, now, tokens, text, anatomy.language.config), now)
    for layer, here in layered(stages, anatomy.language).items():
        per_layer += [float(now)] * (layer - len(per_layer))
        for stage in here:
            now = _count(solve(stage.keep, per_layer, depth, now, tokens, text, anatomy.language.config), now)
    per_layer += [float(now)] * (depth - len(per_layer))
    return of_tokens(anatomy, per_layer, in_encoder, tokens, text)


def of_tokens(
    anatomy: Anatomy,
    per_layer: list[float],
    in_encoder: list[float],
    tokens: float,
    text: float,
    pictures: float = 1,
    patches: float | None = None,
) -> Cost:
    """The cost of given visual tokens per language-model layer and, for each of ``pictures``, per encoder block.

    ``tokens`` are those of the whole prompt without a plan, ``patches`` those of one picture in the encoder (the same number if
    not given).
    """
    assert anatomy.language is not None
    patches = tokens if patches is None else patches
    language = anatomy.language.config
    vision, special = (anatomy.vision.config, anatomy.vision.specials) if anatomy.vision else (None, 0)
    return Cost(
        flops=sum(flops.of_layer(language, text + n) for n in per_layer),
        full_flops=len(per_layer) * flops.of_layer(language, text + tokens),
        encoder_flops=pictures * sum(flops.of_layer(vision, special + n) for n in in_encoder),
        full_encoder_flops=pictures * len(in_encoder) * flops.of_layer(vision, special + patches),
        kv_bytes=sum(flops.kv_bytes(language, text + n) for n in per_layer),
        full_kv_bytes=len(per_layer) * flops.kv_bytes(language, text + tokens),
        final=per_layer[-1],
        mean=sum(per_layer) / len(per_layer),
    )


def encoder_tokens(anatomy: Anatomy, stage: Stage, tokens: int, keep: int) -> list[float]:
    """Patch tokens in front of each encoder block under an encoder stage."""
    assert anatomy.vision is not None
    depth = len(anatomy.vision.layers)
    layers = (
        sorted({anatomy.vision.layer(i) for i in stage.layers})
        if stage.layers
        else list(range(anatomy.feature_layer + 1))
    )
    steps = dict(zip(layers, budget.steps(tokens, keep, len(layers)), strict=True))
    out, now = [], float(tokens)
    for i in range(depth):
        out.append(now)
        now = float(steps.get(i, now))
    return out


def _count(keep: budget.Budget, now: int) -> int:
    direct = keep.direct if isinstance(keep, Keep) else keep
    return int(budget.counts(direct, torch.ones(1, now, dtype=torch.bool)))
