"""Anatomy: where a model keeps its encoder, its language model and their attention."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.sites.model import towers
from tokensieve.sites.model.blocks import Stack, blocks, encoder_of, stack_of
from tokensieve.sites.model.compatibility import (
    EMPTY,
    SIEVABLE,
    GenerationMixin,
    LinearAttentionLayer,
    PreTrainedModel,
    check_hooks,
    layers_of,
)
from tokensieve.sites.model.quirks import REFUSED


@dataclass(frozen=True)
class Anatomy:
    """What a sieve needs to know of a model.

    Attributes:
        base: the module whose forward takes ``input_ids`` and calls the language model (None for a bare encoder).
        vision: the encoder of images, or the encoder itself for a bare one; None where pictures have none.
        video_tower: the encoder of videos, where they have one of their own.
        resampled: whether attention stands between the encoder and the language model, so that tokens are not made of patches.
        language: the language model; None for a bare encoder.
        feature_layer: index of the encoder block whose output feeds the language model.
        image_token_id, video_token_id: the placeholders of visual tokens in ``input_ids``.
    """

    model: nn.Module
    base: nn.Module | None
    vision: Stack | None
    language: Stack | None
    feature_layer: int = -1
    image_token_id: int | None = None
    video_token_id: int | None = None
    video_tower: Stack | None = None
    resampled: bool = False

    def placeholders(self, ids: Tensor | None, embedded: Tensor | None) -> dict[str, Tensor]:
        """For "image" and "video", ``(B, L)`` bool: where its placeholder stands, by id or by embedding."""
        out = {}
        for kind, token in (("image", self.image_token_id), ("video", self.video_token_id)):
            if ids is not None:
                out[kind] = ids == (-1 if token is None else token)
                continue
            assert embedded is not None
            embed: Any = self.model.get_input_embeddings()  # type: ignore[operator]
            same = embedded == embed(torch.tensor(token or 0, device=embedded.device))
            out[kind] = same.all(-1) & (token is not None)
        return out


def pretrained(model: Any) -> nn.Module:
    """The transformers model inside what wraps it (PEFT, data parallelism, torch.compile, a pipeline, sentence-transformers); the
    module itself where none is.

    Raises:
        ValueError: there is no model.
    """
    if not isinstance(model, nn.Module):  # a pipeline
        model = getattr(model, "model", model)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{type(model).__name__} is no model, nor holds one as its .model")
    if isinstance(model, PreTrainedModel):
        return model
    return next((m for m in model.modules() if isinstance(m, PreTrainedModel)), model)


def find(model: nn.Module) -> Anatomy:
    """Find the parts of a transformers model: a vision-language model, or a bare vision encoder.

    Raises:
        ValueError: no run of transformer blocks is recognised, or a vision-language model without a vision part.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise ValueError(f"{type(model).__name__} is not a transformers model (it has no config)")
    name = type(model).__name__
    refusal = refused(model)
    if refusal:
        raise ValueError(f"{name}: {refusal}")
    text = getattr(config, "text_config", None)
    if text is None:
        return _bare(model)
    sight = getattr(config, "vision_config", None)
    language = stack_of(language_of(model))
    towers = [] if sight is None else [(n, m) for n, m in _holders(model, sight) if blocks(m)]
    vision = next((encoder_of(m) for n, m in towers if "video" not in n), None)
    video_tower = next((encoder_of(m) for n, m in towers if "video" in n), None)
    block = -1
    if vision is not None:
        wanted = getattr(config, "vision_feature_layer", -1)
        wanted = wanted[-1] if isinstance(wanted, (list, tuple)) else wanted
        block = _block(-1 if wanted is None else wanted, len(vision.layers))
    base = next(m for m in model.modules() if _child(m, language.root))
    image, video = _token(config, "image"), _token(config, "video")
    video = None if video == image else video  # one placeholder serves for both
    if image is None and video is None:
        raise ValueError(f"{name} has no image_token_id in its config; visual tokens cannot be found")
    check_hooks(language.root, language.attending)
    return Anatomy(
        model, base, vision, language, block, image, video, video_tower, _resampled(base, towers, language.root)
    )


def _resampled(base: nn.Module, towers: list[tuple[str, nn.Module]], language: nn.Module) -> bool:
    other = {id(m) for root in (language, *(t for _, t in towers)) for m in root.modules()}
    between = (m for name, m in base.named_modules() if id(m) not in other and "audio" not in name)
    return any("Attention" in type(m).__name__ for m in between)


def crossing(model: nn.Module) -> tuple[nn.Module, Stack, tuple[int, ...]]:
    """Of a model that attends to images by cross-attention: the module whose forward takes pictures, the language model, and
    those of its layers.

    Raises:
        ValueError: the model has fewer than two such layers.
    """
    found: tuple[int, ...] = ()
    if getattr(getattr(model, "config", None), "text_config", None) is not None:
        language = stack_of(language_of(model))
        if "cross_attention_states" in inspect.signature(language.root.forward).parameters:
            found = tuple(i for i, a in enumerate(language.attentions) if "CrossAttention" in type(a).__name__)
    if len(found) < 2:
        raise ValueError(
            f"{type(model).__name__} has {len(found)} layers in which text attends to images by cross-attention; site='cross' "
            "needs two (in other models, methods such as 'text-attention' run at site='prefill')"
        )
    check_hooks(language.root, language.attending)
    return next(m for m in model.modules() if _child(m, language.root)), language, found


def refused(model: nn.Module) -> str | None:
    """Why a model cannot be sieved; None where it can, as far as its config and modules tell."""
    config: Any = model.config
    if config.model_type in REFUSED:
        return REFUSED[config.model_type]
    if getattr(config, "is_encoder_decoder", False):
        return "it has an encoder and a decoder; visual tokens can leave in front of decoder-only language models"
    if getattr(config, "text_config", None) is None:
        return None
    if getattr(type(model), "generate", GenerationMixin.generate) is not GenerationMixin.generate:
        return "its generate() goes past its forward pass, where visual tokens are found"
    language = language_of(model)
    if any("CrossAttention" in type(m).__name__ for m in language.modules()):
        return (
            "its language model attends to images by cross-attention; no visual token stands in the prompt (site='cross' "
            "applies to it)"
        )
    kinds = {type(layer) for layer in layers_of(language.config) if layer is not None}
    other = sorted(k.__name__ for k in kinds if k not in (*SIEVABLE, LinearAttentionLayer, *EMPTY))
    if other:
        return f"its cache holds layers of kind {', '.join(other)}, whose entries cannot leave"
    return None


def _token(config: Any, kind: str) -> int | None:
    names = (f"{kind}_token_id", f"{kind}_token_index")
    return next((int(t) for t in (getattr(config, n, None) for n in names) if t is not None), None)


def _bare(model: nn.Module) -> Anatomy:
    """An encoder on its own, possibly under a head (image classification)."""
    if isinstance(model, GenerationMixin):
        raise ValueError(
            f"{type(model).__name__} has no recognisable vision part beside a language model (text_config); visual tokens can be "
            "reduced in vision-language models and in vision encoders"
        )
    stack = towers.stack(model)
    return Anatomy(model, None, stack, None, len(stack.layers) - 1)


def _is_model(module: nn.Module) -> bool:
    return hasattr(module, "config") and hasattr(module, "post_init")


def _holders(model: nn.Module, config: Any) -> list[tuple[str, nn.Module]]:
    """The outermost submodels built from a part of the config."""
    inside = [(n, m) for n, m in model.named_modules() if m is not model and _is_model(m)]
    found = [(n, m) for n, m in inside if m.config is config] or [
        (n, m) for n, m in inside if type(m.config) is type(config)
    ]
    names = [n + "." for n, _ in found]
    return [(n, m) for n, m in found if not any(n.startswith(other) for other in names)]


def language_of(model: nn.Module) -> nn.Module:
    config: Any = model.config
    found = _holders(model, config.text_config)
    if not found:
        raise ValueError(f"{type(model).__name__} has no recognisable language part")
    return found[0][1]


def _child(module: nn.Module, child: nn.Module) -> bool:
    return any(c is child for c in module.children())


def _block(hidden_state: int, depth: int) -> int:
    """The block behind an entry of ``hidden_states`` (entry 0 is the embedding)."""
    return hidden_state - 1 if hidden_state > 0 else depth + hidden_state
