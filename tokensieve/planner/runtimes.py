"""Runtimes: programs that serve a model under a plan, and what of plans they can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokensieve.core.plan import Plan
from tokensieve.core.registry import Registry

Served = Callable[[Plan], Plan | str]
"""From a plan to the same as a runtime can serve it, or why it cannot."""

RUNTIMES: Registry[Callable[[Any], Served]] = Registry("runtime", "tokensieve.integrations.runtimes")
"""By name, what says of a model which plans a runtime can serve with it."""


def transformers(model: Any) -> Served:
    """A sieve on transformers: it runs every plan that fits the model."""
    return lambda plan: plan


RUNTIMES.register("transformers")(transformers)
