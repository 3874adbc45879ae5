"""Compatibility: the one file that knows what differs between releases of transformers, told apart by names and signatures."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers import masking_utils

CACHE = ("cache", "past_key_values", "layer_past")
"""What the cache of keys and values is called among arguments and outputs, the newest name first."""


def cache_of(kwargs: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a model or a layer; None where there is none."""
    return next((kwargs[name] for name in CACHE if kwargs.get(name) is not None), None)


def cache_argument(module: Any, cache: Any) -> dict[str, Any]:
    """The argument by which a module's forward takes a cache, under the name that it has there."""
    taken = inspect.signature(module.forward).parameters
    own = inspect.signature(masking_utils.create_causal_mask).parameters  # of wrappers that pass everything on
    return {next((n for n in CACHE if n in taken), next(n for n in CACHE if n in own)): cache}


def cache_in(output: Any) -> Any:
    """The cache of a model's output; None where it has none."""
    names = output.keys() if hasattr(output, "keys") else ()
    return next((output[name] for name in CACHE if name in names), None)
