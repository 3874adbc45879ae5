"""Opening causal language models, by transformers' public classes; the one file of this chapter that knows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def open_config(source: str | Path) -> Any:
    """A model's config, of its text part where it has several.

    Args:
        source: a folder or a hub name.

    Raises:
        ValueError: it is none.
    """
    try:
        return AutoConfig.from_pretrained(str(source)).get_text_config()
    except OSError as problem:
        raise ValueError(f"{source} is no model's folder or hub name: {str(problem).splitlines()[0]}") from problem


def open_model(source: str | Path) -> Any:
    """A causal language model in float32, to be read or changed; never weights of other formats than safetensors.

    Raises:
        ValueError: it is none, or its weights are quantized.
    """
    config = open_config(source)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{source}: its weights are quantized, and cannot be read as rows; give the model in full precision"
        )
    try:
        return AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32, use_safetensors=True).eval()
    except OSError as problem:
        raise ValueError(
            f"{source} cannot be opened as a causal language model: {str(problem).splitlines()[0]}"
        ) from problem
