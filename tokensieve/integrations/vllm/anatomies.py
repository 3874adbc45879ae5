"""What is known of a model from its config: its anatomy, as a transformers model of it has it, without weights."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from tokensieve.integrations.vllm.refusals import Tower
from tokensieve.sites.model.structure import Anatomy, find

UNKNOWN = "transformers has no model of this config, from which its encoder would be known"


def anatomy_of(config: Any) -> Anatomy | None:
    """The anatomy of the model that a config describes, on the meta device; None where transformers or a sieve knows none."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return find(AutoModelForImageTextToText.from_config(config))
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, AssertionError, ImportError):
        return None


def tower_of(config: Any, anatomy: Anatomy | None) -> Tower:
    """What its encoder can tell in vLLM, which builds no block behind the one that features leave from."""
    if anatomy is None or anatomy.vision is None:
        return Tower(1, 0, False, UNKNOWN)
    depth = len(anatomy.vision.layers)
    built = anatomy.feature_layer + 1 if hasattr(config, "vision_feature_layer") else depth
    blind = "attention stands between its encoder and its language model, so that no token is of one patch"
    return Tower(depth, built, anatomy.vision.cls, blind if anatomy.resampled else "")


def kinds(config: Any) -> list[str]:
    """The model types of a config and its parts."""
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", None) or {}]
    return [getattr(part, "model_type", "") for part in (config, *parts)]
