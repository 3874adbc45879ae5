"""Subject: the denoisers of what was passed, a pipeline of diffusers or a denoiser itself."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from torch import nn

DENOISERS = ("unet", "transformer", "transformer_2")
"""Names under which pipelines keep what they call in every step."""


@dataclass(frozen=True)
class Denoisers:
    """What a stage at ``site="diffusion"`` acts on.

    Attributes:
        denoisers: the models that are called in every step.
        pipeline: what calls them, with its scheduler; None where a denoiser was passed.
    """

    denoisers: tuple[nn.Module, ...]
    pipeline: Any = None


def of_diffusers(given: Any) -> bool:
    """Whether something is a pipeline or a model of diffusers, or wraps one (PEFT, torch.compile). Nothing is imported for it."""
    return _pipeline(given) or _model(given) is not None


def subject(given: Any) -> Denoisers:
    """The denoisers of a pipeline, or the one that was passed.

    Raises:
        ValueError: there is none.
    """
    if _pipeline(given):
        parts = given.components
        found = tuple(inner for name in DENOISERS if (inner := _model(parts.get(name))) is not None)
        if not found:
            raise ValueError(
                f"{type(given).__name__} has no denoiser under the names {', '.join(DENOISERS)}; its parts are "
                f"{', '.join(parts)}: pass the one to be sieved"
            )
        return Denoisers(found, given)
    inner = _model(given)
    if inner is None:
        raise ValueError(
            f"{type(given).__name__} is no denoiser of diffusers; site='diffusion' takes a diffusers pipeline, or its unet or "
            "transformer"
        )
    if hasattr(inner, "encode") and hasattr(inner, "decode"):
        raise ValueError(f"{type(inner).__name__} is an autoencoder; pass the pipeline, or its unet or transformer")
    return Denoisers((inner,))


def _pipeline(given: Any) -> bool:
    diffusers = sys.modules.get("diffusers")
    return diffusers is not None and isinstance(given, diffusers.DiffusionPipeline)


def _model(given: Any) -> nn.Module | None:
    """The model of diffusers inside a module, outermost first."""
    diffusers = sys.modules.get("diffusers")
    if diffusers is None or not isinstance(given, nn.Module):
        return None
    return next((m for m in given.modules() if isinstance(m, diffusers.ModelMixin)), None)
