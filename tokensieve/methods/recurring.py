"""Recurring: options that several methods have, said once."""

from __future__ import annotations

from typing import Any

from tokensieve.core.options import option


def encoder_layer_option(default: int = -2) -> Any:
    """The encoder layer whose attention and keys are read; -2 is the one from which features usually leave."""
    return option(default, "the encoder layer that is read, counted from the end where it is negative", unit="layer")


def clip_layer_option(default: int | tuple[int, ...], meaning: str) -> Any:
    """A layer, or several, of CLIP-L's 24, in a model whose encoder may have another depth."""
    scaled = f"{meaning}, counted from the end of CLIP-L's 24 and scaled to the encoder's own depth"
    return option(default, scaled, lo=-24, hi=-1, unit="layers" if isinstance(default, tuple) else "layer")


def first_option(default: float) -> Any:
    """How many times the mean budget the first stage of a system of several keeps."""
    return option(default, "what the first stage of the whole system keeps", lo=1, unit="times the mean budget")


def at_option(default: float | tuple[float, ...]) -> Any:
    """Where the later stages of a system lie in the language model."""
    return option(default, "where the whole system prunes inside the language model", **DEPTH)


DEPTH: dict[str, Any] = {"above": 0, "below": 1, "unit": "share of the depth"}
"""How an option is declared that names a place in the language model."""
BUDGET: dict[str, Any] = {"lo": 0, "hi": 1, "unit": "share of the budget"}
"""How one is that names a part of what is kept."""
SHARE: dict[str, Any] = {"lo": 0, "hi": 1, "unit": "share"}
"""How one is that names a part of anything else."""
COSINE: dict[str, Any] = {"lo": -1, "hi": 1, "unit": "cosine"}
"""How one is that compares directions."""
