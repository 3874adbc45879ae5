"""Compatibility: the one file that knows what differs between releases of transformers.

Nothing else compares releases or imports what has moved between them. Features are told apart by names and signatures; the
number of a release is read for the warning about untested ones, and for error messages, and decides nothing.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Container, Mapping, Sequence
from typing import Any

import transformers
from torch import Tensor, nn

TESTED = ("5.16.1", "5.17.0", "5.18.0", "5.19.0", "5.20.2", "5.21.1", "5.22.2", "5.23.0", "5.24.0")
"""Releases on which the sites', models' and cache's tests have passed."""


def release() -> str:
    """What is installed, for messages."""
    return f"transformers {transformers.__version__}"


try:
    from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel, cache_utils
    from transformers.cache_utils import (
        Cache,
        DynamicLayer,
        DynamicSlidingWindowLayer,
        LinearAttentionLayer,
        QuantizedLayer,
    )
    from transformers.generation import GenerationConfig, GenerationMixin
    from transformers.masking_utils import (
        ALL_MASK_ATTENTION_FUNCTIONS,
        LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING,
        create_masks_for_generate,
        find_packed_sequence_indices,
    )
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.utils import is_flash_attn_2_available, is_torch_flex_attn_available
    from transformers.utils.logging import disable_progress_bar
    from transformers.vision_utils import get_vision_window_index
except ImportError as error:
    raise ImportError(
        f"{release()} lacks what tokensieve hooks into ({error}); install one that was tested, {TESTED[0]} to {TESTED[-1]}"
    ) from error

__all__ = [
    "ALL_ATTENTION_FUNCTIONS", "ALL_MASK_ATTENTION_FUNCTIONS", "CONTINUOUS", "EMPTY", "SIEVABLE", "TESTED", "AttentionInterface",
    "AttentionMaskInterface", "BaseQuantizedLayer", "Cache", "DynamicCache", "DynamicLayer",
    "DynamicSlidingWindowLayer", "GenerationConfig", "GenerationMixin", "LinearAttentionLayer", "PreTrainedModel",
    "cache_argument", "cache_in", "cache_of", "check_hooks", "disable_progress_bar", "find_packed_sequence_indices",
    "get_vision_window_index", "is_flash_attn_2_available", "is_torch_flex_attn_available", "layers_of", "masks_of",
    "pixels_in", "pixels_name", "release", "warn_untested", "with_cache",
]  # fmt: skip

BaseQuantizedLayer: Any = getattr(cache_utils, "BaseQuantizedLayer", QuantizedLayer)
"""What every layer of a quantized cache is; in releases whose layers are all quantized group by group, the class of those."""

EMPTY: tuple[type, ...] = tuple(getattr(cache_utils, name) for name in ("DummyLayer",) if hasattr(cache_utils, name))
"""Cache layers that hold nothing, since theirs attends to the keys of another layer or not at all."""

SIEVABLE = (DynamicLayer, DynamicSlidingWindowLayer)
"""Cache layers whose entries can leave."""

CACHE = ("cache", "past_key_values", "layer_past")
"""What the cache of keys and values is called among arguments and outputs, the newest name first."""
GENERATE_CACHE = "past_key_values"
"""The name by which `generate` takes a cache, in all releases."""

CONTINUOUS = "init_continuous_batching"
"""The method of a model behind all ways to batch continuously, where a release has them."""

PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos", "pixel_values")}
"""What pictures and videos are called among the arguments of what encodes them, the newest name first."""


# ---- the cache among arguments and outputs ------------------------------------------------------------------------------


def cache_of(kwargs: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a model or a layer; None where there is none."""
    return next((kwargs[name] for name in CACHE if kwargs.get(name) is not None), None)


def with_cache(kwargs: Mapping[str, Any], cache: Any) -> dict[str, Any]:
    """The arguments of a layer or a model with another cache in the place of theirs."""
    return {k: cache if k in CACHE and v is not None else v for k, v in kwargs.items()}


def cache_argument(module: nn.Module, cache: Any) -> dict[str, Any]:
    """The argument by which a module's forward takes a cache, under the name that it has there.

    Raises:
        ValueError: it has none that is known.
    """
    name = _cache_name(module)
    if name is None:
        raise ValueError(f"{release()}: {type(module).__name__}.forward takes no cache as {' or '.join(CACHE)}")
    return {name: cache}


def cache_in(output: Any) -> Any:
    """The cache of a model's output; None where it has none."""
    names = output.keys() if hasattr(output, "keys") else ()
    return next((output[name] for name in CACHE if name in names), None)


def _cache_name(module: nn.Module) -> str | None:
    taken = _parameters(module)
    if not _passes_on(taken) or set(CACHE) & set(taken):
        return next((name for name in CACHE if name in taken), None)
    # What passes everything on is called as the release calls its own.
    own = inspect.signature(create_masks_for_generate).parameters
    return next((name for name in CACHE if name in own), None)


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(module.forward).parameters


def _passes_on(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in parameters.values())


# ---- pictures among arguments --------------------------------------------------------------------------------------------


def pixels_in(given: Mapping[str, Any], kind: str) -> Any:
    """The pixels of an "image" or a "video" among the arguments of what encodes it; None where there are none."""
    return next((given[name] for name in PIXELS[kind] if given.get(name) is not None), None)


def pixels_name(taken: Container[str], kind: str) -> str:
    """The name under which pixels of an "image" or a "video" are taken."""
    return next((name for name in PIXELS[kind] if name in taken), PIXELS[kind][0])


# ---- the layers of a cache ----------------------------------------------------------------------------------------------


def layers_of(config: Any) -> list[Any]:
    """An empty cache's layer for each layer of a language model; None for one that shares another's, where a release leaves
    those out."""
    layers = list(DynamicCache(config=config).layers)
    shared = getattr(config, "num_kv_shared_layers", None) or 0
    return layers + [None] * shared if shared and len(layers) + shared == config.num_hidden_layers else layers


# ---- masks --------------------------------------------------------------------------------------------------------------


def masks_of(config: Any, x: Tensor, padding: Tensor | None, cache: Any, ids: Tensor | None = None) -> Any:
    """The mask that a language model would make of a padding mask; a dict by kind of layer, where its config names kinds.

    Args:
        x: ``(B, L, D)`` embeddings of the pass; padding: ``(B, past + L)``; ids: ``(B, L)`` position ids, which tell
            sequences in one row apart where there is no padding mask.
    """
    makers = {k: LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING.get(k) for k in getattr(config, "layer_types", None) or ()}
    given = set(inspect.signature(create_masks_for_generate).parameters) - {"kwargs"}
    taken = [inspect.signature(make).parameters for make in makers.values() if callable(make)]
    if any(given - set(names) for names in taken if not _passes_on(names)):
        # Of some releases the one for all kinds calls that of chunked attention with an argument that it does not take.
        return {kind: make(config, x, padding, cache, ids) for kind, make in makers.items()}
    return create_masks_for_generate(config, x, padding, cache, ids)


# ---- what is not known of a release ---------------------------------------------------------------------------------------


def check_hooks(root: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Check that a language model and its layers (those with attention) are called with what hooks look for.

    Raises:
        ValueError: names the release and what is missing.
    """
    taken = _parameters(root)
    for name in ("inputs_embeds", "attention_mask"):
        if name not in taken and not _passes_on(taken):
            raise _unknown(f"{type(root).__name__}.forward takes no {name}")
    for module in (root, *layers):
        if _cache_name(module) is None:
            raise _unknown(f"{type(module).__name__}.forward takes no cache as {' or '.join(CACHE)}")
    for layer in layers:
        if "attention_mask" not in _parameters(layer) and not _passes_on(_parameters(layer)):
            raise _unknown(f"{type(layer).__name__}.forward takes no attention_mask")


def _unknown(what: str) -> ValueError:
    tested = "which was tested" if transformers.__version__ in TESTED else "which is untested"
    return ValueError(
        f"{release()}, {tested}: {what}; without it no sieve can be attached. Install a release that was tested with this model, "
        f"{TESTED[0]} to {TESTED[-1]}"
    )


@functools.cache
def warn_untested() -> None:
    """Warn, once in a process, where the release is not among the tested ones."""
    if transformers.__version__ not in TESTED:
        warnings.warn(f"{release()} is untested; run `tokensieve doctor`", stacklevel=2)
