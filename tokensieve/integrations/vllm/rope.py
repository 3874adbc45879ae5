"""Rotary tables of several axes for models of one, so that kept tokens can have the positions that they had."""

from __future__ import annotations

from typing import Any

TYPES = ("default", "yarn")
"""Rotary embeddings that vLLM makes with several axes."""
LANGUAGES = ("llama", "mistral", "qwen2", "qwen3")
"""Language models that were run with them."""


def section(text: Any) -> int | None:
    """How many frequencies the first axis has where tables were made by :func:`widen`; None where the model has its own."""
    found = (getattr(text, "rope_parameters", None) or {}).get("mrope_section")
    return found[0] if found and not any(found[1:]) else None


def narrow(text: Any) -> str | None:
    """Why kept tokens cannot have the positions that they had in a language model of one axis; None where they can."""
    given = getattr(text, "rope_parameters", None) or {}
    if text.model_type not in LANGUAGES:
        return f"its language model is a {text.model_type}, and was tried in {', '.join(LANGUAGES)}"
    if given.get("rope_type", "default") not in TYPES:
        return f"its rotary embedding is of the type {given.get('rope_type')!r}, which vLLM makes with one axis only"
    return None


def widen(text: Any) -> None:
    """Tables of three axes, all frequencies on the first: with the same position on all axes they are those of one."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    turned = int(head * text.rope_parameters.get("partial_rotary_factor", 1.0))
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [turned // 2, 0, 0]}
