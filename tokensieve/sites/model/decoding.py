"""Decoding: ways to generate that no sieve goes with."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from tokensieve.sites.model import calls, guards
from tokensieve.sites.model.compatibility import CONTINUOUS, GenerationMixin


def forbid(model: nn.Module) -> list[Callable[[], None]]:
    """Refuse continuous batching and contrastive search on a model; returns the functions that allow them again."""
    writers: list[Any] = [m for m in model.modules() if isinstance(m, GenerationMixin)]
    out = [calls.around(m, "generate", partial(_checked, m)) for m in writers]
    return out + [calls.around(m, CONTINUOUS, _refused) for m in writers if hasattr(m, CONTINUOUS)]


def _refused(plain: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise guards.refusal("continuous")

    return refuse


def _checked(model: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
    def generate(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(plain).bind_partial(*args, **kwargs).arguments
        usual = model.generation_config
        layers = (given.get("kwargs", {}), vars(given.get("generation_config") or usual), vars(usual))

        def said(name: str) -> Any:
            """What holds: of the call, else of its config, else of the model's."""
            return next((layer[name] for layer in layers if layer.get(name) is not None), None)

        if said("penalty_alpha") and said("top_k") != 1 and not said("do_sample"):
            raise guards.refusal("contrastive", penalty=said("penalty_alpha"))
        return plain(*args, **kwargs)

    return generate
