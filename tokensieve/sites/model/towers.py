"""Towers: the encoders of a model by name, and why tokens cannot leave between the blocks of one."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from tokensieve.sites.model.blocks import Stack, attention_of, blocks, specials
from tokensieve.sites.model.compatibility import GenerationMixin, PreTrainedModel
from tokensieve.sites.model.quirks import ENCODERS

PARTS = {"vision_config": "vision", "text_config": "text", "audio_config": "audio", "encoder_config": "audio"}
"""The parts of a config that describe an encoder each, and what its tower is called."""
INPUTS = frozenset({"input_ids", "pixel_values", "pixel_values_videos", "input_values", "input_features"})
"""What a module takes that embeds tokens itself."""
PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
"""What configs call the tokens in whose place a language model gets what an encoder has put out."""
WINDOWS = (
    "window_size", "num_windows", "context_size", "attention_window", "one_sided_attn_window_size", "block_size", "num_landmarks",
    "chunk_length",
)  # fmt: skip
"""Attributes of blocks and attention modules that cut the tokens into windows or segments by their place."""
SEPARATE = ("temporal_attention", "temporal_layernorm")
"""Submodules of blocks that attend along one axis of a grid of space and time at a time."""


def towers(model: nn.Module) -> dict[str, nn.Module]:
    """The encoders that a model holds, by name: of two towers both, of a model with a decoder its encoder, and of a bare encoder
    itself, by the name ""; {} where a language model stands behind the encoder, or there is none."""
    config: Any = getattr(model, "config", None)
    if config is None:
        return {}
    if getattr(config, "is_encoder_decoder", False):
        get: Any = getattr(model, "get_encoder", None)
        found = None if get is None else get()
        return {"encoder": found} if isinstance(found, nn.Module) and found is not model else {}
    parts = {name: part for key, name in PARTS.items() if (part := getattr(config, key, None)) is not None}
    writes = isinstance(model, GenerationMixin)
    if "text" not in parts and not writes:
        return {"": model}
    if writes and set(parts) <= {"text"}:
        return (
            {} if parts or any(getattr(a, "is_causal", True) for a in map(attention_of, blocks(model))) else {"": model}
        )
    if any(getattr(config, name, None) is not None for name in PLACEHOLDERS) or (writes and "vision" in parts):
        return {}
    if writes:  # what hears in front of a language model
        parts.pop("text", None)
    elif len(parts) == 1:
        return {"": model}
    inside = [m for m in model.modules() if isinstance(m, PreTrainedModel) and m is not model]
    made = {n: next((m for m in inside if m.config is part), None) for n, part in parts.items()}
    made = {n: m or next((x for x in inside if type(x.config) is type(parts[n])), None) for n, m in made.items()}
    return {n: m for n, m in made.items() if m is not None}


def tower(model: nn.Module, name: str = "") -> Stack | None:
    """The blocks of a tower; None where the model has a language model behind its encoder, or no encoder.

    Raises:
        ValueError: there is no such tower, or several to choose from, or its tokens cannot leave between blocks.
    """
    found, kind = towers(model), type(model).__name__
    if not found:
        if name:
            raise ValueError(f"tower={name!r}; {kind} has no towers to choose from: leave tower out")
        return None
    names = " and ".join(repr(n) for n in found if n)
    if len(found) > 1 and not name:
        raise ValueError(f"{kind} has the towers {names}: say which one, as in tower={next(iter(found))!r}")
    if name and name not in found:
        raise ValueError(f"tower={name!r}; {kind} has {names or 'one encoder: leave tower out'}")
    return stack(found[name or next(iter(found))])


def stack(model: nn.Module) -> Stack:
    """The blocks of an encoder, whatever head stands behind it.

    Raises:
        ValueError: it has none, or tokens cannot leave between them; it says why.
    """
    name = type(model).__name__
    why = refused(model)
    if why is not None:
        raise ValueError(f"{name} cannot be sieved: {why}")
    layers = _blocks(model)
    attentions = tuple(attention_of(layer) for layer in layers)
    around = [m for m in model.modules() if isinstance(m, PreTrainedModel) and layers[0] in set(m.modules())]
    embeds = [m for m in around if INPUTS & set(inspect.signature(m.forward).parameters)]
    root: Any = embeds[-1] if embeds else model
    config: Any = around[-1].config if around else root.config
    if any(getattr(a, "is_causal", False) for a in attentions):
        raise ValueError(
            f"{name} has no recognisable vision part beside a language model (text_config); visual tokens can be reduced in "
            "vision-language models and in vision encoders, and its tokens see only those before them"
        )
    depth = getattr(config, "num_hidden_layers", None)
    times = depth if len(layers) == 1 and isinstance(depth, int) and depth > 1 else 1  # ALBERT runs one block again
    tapped = tuple(a if a is not None and _tapped(a) else None for a in attentions)
    return Stack(root, layers * times, tapped * times, *specials(root))


def refused(model: nn.Module) -> str | None:
    """Why tokens cannot leave between the blocks of an encoder, as far as its modules tell; None where they can."""
    kinds = {str(m.config.model_type) for m in model.modules() if isinstance(m, PreTrainedModel)}
    known = next((ENCODERS[kind] for kind in sorted(kinds) if kind in ENCODERS), None)
    if known is not None:
        return known
    layers = _blocks(model)
    if not layers:
        return "it has no transformer blocks (a list of modules that hold attention)"
    parts = [m for layer in layers for m in layer.modules() if "Bias" not in type(m).__name__]
    cut = next((name for m in parts for name in WINDOWS if _set(getattr(m, name, None))), None)
    if cut is not None:
        return f"its blocks attend within windows or segments that tokens belong to by their place ({cut}), which needs them all"
    shifted = {getattr(m, "position_embeddings_type", None) for m in parts} - {None}
    if shifted:
        return (
            f"its attention makes relative positions ({shifted.pop()}) of all tokens in the order in which they come, and is "
            "told no places"
        )
    inner = [m for layer in layers for m in layer.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    if any(_stage(one) for one in inner):
        return (
            "its blocks stand in stages between which tokens are joined on their grid (a pyramid), which needs them all"
        )
    if any(hasattr(layer, name) for layer in layers for name in SEPARATE):
        return "its blocks attend along space and time by turns, on a grid that needs all tokens"
    return None


def _blocks(model: nn.Module) -> tuple[nn.Module, ...]:
    """The longest list of modules that hold attention and more."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) and all(map(_attending, m))]
    return max([blocks(model), *(tuple(one) for one in lists)], key=len)


def _attending(layer: nn.Module) -> bool:
    return not _named(layer) and any(map(_named, layer.modules()))


def _named(module: nn.Module) -> bool:
    return "Attention" in type(module).__name__


def _set(value: Any) -> bool:
    return any(value) if isinstance(value, (tuple, list)) else isinstance(value, int) and value > 0


def _stage(inner: nn.ModuleList) -> bool:
    """Whether a list inside a block holds blocks itself: several members with attention."""
    return sum(any(map(_named, one.modules())) for one in inner) > 1


def _tapped(attention: nn.Module) -> bool:
    """Whether an attention module calls the kernel that its config names, where a tap sees it."""
    return "ALL_ATTENTION_FUNCTIONS" in inspect.unwrap(type(attention).forward).__code__.co_names and hasattr(
        attention, "config"
    )
