"""Running: one call of a denoiser under a sieve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from tokensieve.core import budget
from tokensieve.core.reduction import Reduction
from tokensieve.sites.diffusion.latents import Latents
from tokensieve.sites.diffusion.reduced import Row
from tokensieve.sites.model import guards
from tokensieve.sites.model.calls import Detach, around, names_of

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class DenoiserPass:
    """What is known while a denoiser runs.

    Attributes:
        latents: what it was called with.
        keep: what stays; None where the stage does not act in this step.
        halves: whether both halves of the batch choose together.
        progress: of the run, 0 where that is not asked.
        step: the number of the run, and how many entries of its schedule are done; (0, 0) where that is not asked.
        seen: by the name of each module that met the tokens of the latents, their row and what became of them (None: all stayed).
    """

    latents: Latents
    keep: budget.Budget | None
    halves: bool
    progress: float
    step: tuple[int, int] = (0, 0)
    seen: dict[str, tuple[Row, Reduction | None, int]] = field(default_factory=dict)

    def met(self, name: str, row: Row, r: Reduction | None, rows: int) -> None:
        self.seen[name] = (row, r, rows)


def disabled(forward: F) -> F:
    """A function that torch.compile leaves alone, with all that it calls: choosing tokens is no graph. What it is called by is
    compiled as before."""
    return torch.compiler.disable(forward)  # type: ignore[no-any-return]


def instead(
    module: nn.Module,
    acts: Callable[[], DenoiserPass | None],
    call: Callable[[DenoiserPass, Callable[..., Any], dict[str, Any]], Any],
) -> Detach:
    """Have ``call`` answer for a module, given the pass, the plain forward and the arguments by name, where ``acts`` has one."""
    places = names_of(module)

    def wrap(plain: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            now = acts()
            if now is None:
                return plain(*args, **kwargs)
            return call(now, plain, {**dict(zip(places, args, strict=False)), **kwargs})

        return disabled(forward)

    return around(module, "forward", wrap)


@contextmanager
def fewer(model: str, form: str) -> Iterator[None]:
    """Around a call with fewer tokens: where it fails, the error says that this may be why."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        raise guards.refusal("unfit", model=model, form=form, error=error) from error
