"""What a plan costs, from the model's config alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tokensieve.core.plan import Plan
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.parts import budget
from tokensieve.parts.budget import flops
from tokensieve.sites.encoder import schedule
from tokensieve.sites.encoder.site import EncoderSite
from tokensieve.sites.model import towers
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.clock import Clock
from tokensieve.sites.model.decoder import decoder
from tokensieve.sites.model.ledger import Ledger
from tokensieve.sites.model.structure import Anatomy, find
from tokensieve.sites.visual.focus_site import FocusSite
from tokensieve.sites.visual.layer_budgets import layered, solve

SIDES = ("spatial_merge_size", "scale_factor", "downsample_factor", "hidden_stride")
SHARES = ("downsample_ratio", "pixel_shuffle_ratio")
"""Names under which configs say how many patches along a side become one visual token, or the inverse."""


@dataclass(frozen=True)
class Cost:
    """Prefill of one prompt with one image.

    Attributes:
        flops, full_flops: of the language model's prefill, with the plan and without.
        encoder_flops, full_encoder_flops: of the vision encoder, over its own tokens; attention counts all pairs, also where
            windows narrow it.
        kv_bytes, full_kv_bytes: of the cache after prefill, at two bytes a number.
        final: visual tokens in the last layer; mean: over the layers.
        seen_flops: ``flops`` of kernels that would not compute the pairs and heads that stages at site="focus" hide; those
            there are compute and mask them, so that nothing of it is saved in ``flops``.
    """

    flops: float
    full_flops: float
    encoder_flops: float
    full_encoder_flops: float
    kv_bytes: float
    full_kv_bytes: float
    final: float
    mean: float
    seen_flops: float

    @property
    def share(self) -> float:
        """Encoder and prefill FLOPs as a share of the full ones."""
        return (self.flops + self.encoder_flops) / (self.full_flops + self.full_encoder_flops)


def cost(
    model: nn.Module, plan: Plan | Stage, tokens: int = 576, text: int = 32, patches: Sequence[int] | None = None
) -> Cost:
    """The cost of a plan for ``tokens`` visual and ``text`` text tokens, exact for budgets that are counts or shares; of an
    encoder alone for ``tokens`` that may leave (patches, frames, words).

    Stages at site="prompt" are taken to compress all of the text; with no others but the cache's, a language model without a
    visual part will do, and ``tokens`` are none.

    Args:
        patches: tokens of each of the images (crops, tiles) that the encoder is given for this prompt. By default one image,
            and as many patches for each visual token as the config says.

    Raises:
        ValueError: a stage that an encoder has no place for.
    """
    stages = (plan if isinstance(plan, Plan) else Plan(plan)).stages
    if stages and all(s.site in ("prompt", "cache") for s in stages) and not _speaks(model):
        return _of_text(decoder(model), stages, text)
    inside = next((s for s in stages if s.in_encoder), None)
    alone = towers.tower(model, inside.tower if inside else "") if inside or not _speaks(model) else None
    if alone is not None:
        return _of_encoder(model, alone, stages, tokens)
    anatomy = find(model)
    if anatomy.language is None:
        raise ValueError(f"{type(model).__name__} has no language model; cost() speaks of vision-language models")
    depth, now, entered, written = len(anatomy.language.layers), tokens, tokens, text
    given = [tokens * merged(anatomy)] if patches is None else list(patches)
    in_encoder = [[float(n)] * (len(anatomy.vision.layers) if anatomy.vision else 0) for n in given]
    per_layer: list[float] = []
    for stage in stages:
        if stage.site == "prompt":
            text = _count(stage.keep, text) if text else 0
        elif stage.in_encoder:
            now = entered = _count(stage.keep, tokens)
            in_encoder = [encoder_tokens(anatomy, stage, tokens, now)]
        elif stage.site == "handoff":
            now = _count(solve(stage.keep, (), depth, now, tokens, text, anatomy.language.config), now)
    for layer, here in layered(stages, anatomy.language).items():
        per_layer += [float(now)] * (layer - len(per_layer))
        for stage in here:
            now = entered if stage.method.restores_dropped else now
            now = _count(solve(stage.keep, per_layer, depth, now, tokens, text, anatomy.language.config), now)
    per_layer += [float(now)] * (depth - len(per_layer))
    made = of_tokens(anatomy, per_layer, in_encoder, tokens, text)
    limited = FocusSite(anatomy.language, [s for s in stages if s.site == "focus"], Ledger({})).layers
    hidden = sum(
        flops.of_layer(anatomy.language.config, text + per_layer[i])
        - _seen(anatomy.language.config, here, round(per_layer[i]), text)
        for i, here in limited.items()
    )
    whole = made if text == written else of_tokens(anatomy, per_layer, in_encoder, tokens, written)
    full = {"full_flops": whole.full_flops, "full_kv_bytes": whole.full_kv_bytes}
    return replace(made, seen_flops=made.flops - hidden, **full)


def _of_text(stack: Stack, stages: Sequence[Stage], text: int) -> Cost:
    """Of a prompt of text alone."""
    left = text
    for stage in stages:
        left = _count(stage.keep, left) if stage.site == "prompt" else left
    (computed, held), (full, full_held) = text_cost(stack.config, [left]), text_cost(stack.config, [text])
    return Cost(computed, full, 0.0, 0.0, held, full_held, 0.0, 0.0, computed)


def _speaks(model: nn.Module) -> bool:
    return getattr(model.config, "text_config", None) is not None


def _of_encoder(model: nn.Module, stack: Stack, stages: Sequence[Stage], tokens: int) -> Cost:
    """The cost of one sequence in an encoder alone; nothing is prefilled or cached behind it."""
    wrong = next((s for s in stages if not s.in_encoder), None)
    if wrong is not None:
        raise ValueError(
            f"site={wrong.site!r} of {wrong.method.name}; {type(model).__name__} is an encoder alone: site='encoder'"
        )
    depth = schedule.Depth(stack, (), around=stack.specials)
    before = full = depth.tokens(tokens, ())
    last = tokens
    if stages:
        ledger = Ledger({}, {id(stages[0]): {need.name: None for need in stages[0].needs}})
        site = EncoderSite(stack, stages[0], Clock(model), len(stack.layers) - 1, ledger, False, model)
        depth = schedule.Depth(stack, site.layers, site.between, stack.specials, site.back)
        left = [int(t) for t in schedule.targets(stages[0], depth, torch.tensor([tokens]))]
        before, last = depth.tokens(tokens, left), left[-1]
    mean = sum(first for first, _ in before) / len(before)
    return Cost(0.0, 0.0, depth.flops(before), depth.flops(full), 0.0, 0.0, float(last), mean, 0.0)


def text_cost(config: Any, lengths: Iterable[int]) -> tuple[float, float]:
    """FLOPs of prefill and bytes of cache (two a number) of prompts of text alone.

    Args:
        config: a causal language model's; lengths: tokens of each prompt.
    """
    depth, counts = config.num_hidden_layers, Counter(lengths)
    computed = sum(flops.of_layer(config, tokens) * times for tokens, times in counts.items())
    return depth * computed, depth * flops.kv_bytes(config, sum(tokens * times for tokens, times in counts.items()))


def _seen(config: Any, stages: Sequence[Stage], visual: int, text: int) -> float:
    """FLOPs of a layer without the pairs that these stages hide, which they say when asked with empty signals."""
    side = math.isqrt(visual)
    empty = Signals(
        features=torch.zeros(1, visual, 1),
        grid=(side, side) if side * side == visual else None,
        text_attention=torch.zeros(1, text, visual),
        text_text=torch.zeros(1, text, text),
        text_neurons=torch.zeros(1, text, 1),
    )
    by_text, by_vision, off = float(text * visual), float(visual * visual), set[int]()
    for stage in stages:
        assert isinstance(stage.keep, (int, float))
        focus = stage.focus_method.focus(empty, stage.keep)
        by_text = by_text if focus.text is None else min(by_text, float(focus.text.sum()))
        by_vision = by_vision if focus.visual is None else min(by_vision, float(focus.visual.sum()))
        off |= set(focus.off)
    return flops.of_pairs(config, text, visual, text * text, visual * text + by_text + by_vision, off)


def of_tokens(
    anatomy: Anatomy, per_layer: Sequence[float], in_encoder: Sequence[Sequence[float]], tokens: float, text: float
) -> Cost:
    """The cost of given visual tokens per language-model layer and, for each of the encoder's images, per encoder block."""
    assert anatomy.language is not None
    language = anatomy.language.config
    computed = sum(flops.of_layer(language, text + n) for n in per_layer)
    held = [n for i, n in enumerate(per_layer) if anatomy.language.sources[i] == i]
    return Cost(
        flops=computed,
        seen_flops=computed,
        full_flops=len(per_layer) * flops.of_layer(language, text + tokens),
        encoder_flops=sum(_encoding(anatomy.vision, n) for n in in_encoder),
        full_encoder_flops=sum(_encoding(anatomy.vision, [n[0]] * len(n)) for n in in_encoder if n),
        kv_bytes=sum(flops.kv_bytes(language, text + n) for n in held),
        full_kv_bytes=len(held) * flops.kv_bytes(language, text + tokens),
        final=per_layer[-1],
        mean=sum(per_layer) / len(per_layer),
    )


def merged(anatomy: Anatomy) -> float:
    """Patches that become one visual token, as far as the config tells; 1 where it tells of none."""
    vision = anatomy.vision.config if anatomy.vision else None
    for config in (anatomy.model.config, vision):
        sides = [float(getattr(config, name)) for name in SIDES if hasattr(config, name)]
        sides += [1 / float(getattr(config, name)) for name in SHARES if hasattr(config, name)]
        if sides:
            return sides[0] ** 2
    pooled = getattr(anatomy.model.config, "mm_tokens_per_image", None)
    return (vision.image_size // vision.patch_size) ** 2 / pooled if pooled and vision else 1.0


def _encoding(vision: Stack | None, tokens: Sequence[float]) -> float:
    """FLOPs of the encoder for one image, with given tokens in front of each block. Weights are counted in the blocks: the
    configs of encoders do not tell which have a gated feed-forward."""
    if vision is None:
        return 0.0
    held = [sum(p.numel() for p in block.parameters() if p.dim() == 2) for block in vision.layers]
    return sum(flops.of_block(vision.config, w, vision.specials + n) for w, n in zip(held, tokens, strict=True))


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
    return int(budget.counts(keep, torch.ones(1, now, dtype=torch.bool)))
