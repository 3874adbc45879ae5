"""Cost: what something will cost before it is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from tokensieve.retrieval.index.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from tokensieve.core.plan import Plan
    from tokensieve.core.stage import Stage
    from tokensieve.retrieval.index.estimate import IndexCost
    from tokensieve.sites.cost import Cost


@overload
def cost(
    model: nn.Module, plan: Plan | Stage, tokens: int = 576, text: int = 32, patches: Sequence[int] | None = None
) -> Cost: ...


@overload
def cost(model: Recipe, plan: str | Path) -> IndexCost: ...


def cost(model: Any, plan: Any, tokens: int = 576, text: int = 32, patches: Sequence[int] | None = None) -> Any:
    """The cost of a plan for a model (see :func:`tokensieve.sites.cost.cost`); or, of a recipe and a folder, the bytes and
    minutes of an index before it is built (see :func:`tokensieve.retrieval.index.estimate.index_cost`).

    Example:
        >>> print(ts.cost(ts.Recipe(), "DOCS"))  # doctest: +SKIP
    """
    if isinstance(model, Recipe):
        from tokensieve.retrieval.index.estimate import index_cost

        return index_cost(model, plan)
    from tokensieve.sites import cost as of_models

    return of_models.cost(model, plan, tokens, text, patches)
