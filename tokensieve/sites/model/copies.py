"""Copies: a model is not copied while its hooks know another one."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokensieve.sites.model import guards
from tokensieve.sites.model.calls import Detach

WAY = "__reduce_ex__"
"""What `copy.deepcopy` and `pickle` ask an object for."""


def forbid(model: nn.Module) -> Detach:
    """Refuse to deep-copy or pickle a model, or any part of one; returns the function that allows it again."""

    def refuse(*_: Any) -> Any:
        raise guards.refusal("copy", model=type(model).__name__)

    modules = list(model.modules())
    for module in modules:
        module.__dict__[WAY] = refuse

    def allow() -> None:
        for module in modules:
            module.__dict__.pop(WAY, None)

    return allow
