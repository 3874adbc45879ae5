"""Denoising: how a stage at ``site="diffusion"`` acts in the steps of a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

from tokensieve.core import budget

FORMS = ("attention", "stream")


@dataclass(frozen=True)
class Denoising:
    """When and in which form tokens of a denoiser are spared.

    Args:
        form: "attention": self-attention runs on fewer tokens, and all are there again behind it; "stream": tokens leave between
            two blocks and come back behind the last one.
        steps: the stage acts while progress (0 in the first step, 1 in the last) lies in this closed interval.
        shared: the two halves of a batch for guidance, which hold the same latents, keep the same tokens.
        cached: "stream" only: tokens that left come back with what they had behind the last block when they last went through
            it, instead of the state in which they left.
        schedule: from progress to the share of tokens to keep, in the place of one budget for all steps.

    Raises:
        ValueError: an unknown form, or steps that are no interval within [0, 1].
    """

    form: str = "attention"
    steps: tuple[float, float] = (0.0, 1.0)
    shared: bool = True
    cached: bool = False
    schedule: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r}; it must be one of {', '.join(FORMS)}")
        steps = self.steps
        ends = isinstance(steps, (tuple, list)) and len(steps) == 2 and all(isinstance(s, Real) for s in steps)
        if not ends or not 0 <= steps[0] <= steps[1] <= 1:
            raise ValueError(
                f"steps={steps!r}; it must be a pair (first, last) of progress, 0 <= first <= last <= 1: (0.2, 1.0)"
            )
        object.__setattr__(self, "steps", (float(steps[0]), float(steps[1])))
        if self.cached and self.form != "stream":
            raise ValueError(
                f"cached=True with form={self.form!r}; only in form='stream' do tokens come back at the end"
            )

    @property
    def timed(self) -> bool:
        """Whether it has to be known how far a run is."""
        return self.steps != (0.0, 1.0) or self.schedule is not None

    def budget(self, keep: budget.Budget, progress: float) -> budget.Budget:
        """What is kept at some progress, a stage's own budget being ``keep``.

        Raises:
            ValueError: the schedule gives no budget.
        """
        if self.schedule is None:
            return keep
        return budget.check(self.schedule(progress), f"keep({progress:.3g})")

    def to_json(self) -> dict[str, Any]:
        """Raises ValueError where it holds a function."""
        if self.schedule is not None:
            raise ValueError(
                "keep is a function of progress, which no file can hold; save a plan with a number, such as keep=0.5"
            )
        return {k: v for k, v in asdict(self).items() if k != "schedule"} | {"steps": list(self.steps)}


KEYWORDS = ("form", "steps", "shared", "cached")
"""Keywords of a stage at ``site="diffusion"`` that may stand among the options of its method."""
