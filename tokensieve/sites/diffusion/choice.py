"""Choice: which tokens of a denoiser's rows stay, and whose output each of the others takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core import budget
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.parts import merge
from tokensieve.sites.model.clock import Clock


@dataclass(frozen=True)
class Choice:
    """What a stage chooses with."""

    stage: Stage
    clock: Clock
    seed: int

    @torch.no_grad()
    def of(
        self,
        x: Tensor,
        grid: tuple[int, int] | None,
        keep: budget.Budget,
        halves: bool,
        answered: bool,
        **known: Tensor,
    ) -> Reduction | None:
        """The reduction of tokens ``(B, N, D)``; None where all stay.

        Args:
            halves: whether the two halves of the rows choose together, by the mean of what they hold.
            answered: whether a token that is dropped takes the output of the most similar one that stays.
            known: further signals, ``(B, N)``.
        """
        if int(budget.counts(keep, torch.ones(1, x.shape[1], dtype=torch.bool))) == x.shape[1]:
            return None
        with self.clock:
            features, *more = (_mean(t.float()) if halves else t.float() for t in (x, *known.values()))
            signals = Signals.of(features, grid=grid, seed=self.seed, **dict(zip(known, more, strict=True)))
            # On a processor each row is computed as it would be alone, to the last bit.
            apart = signals.batch > 1 and x.device.type == "cpu"
            rows = [signals.row(i) for i in range(signals.batch)] if apart else [signals]
            made = [self._one(s, keep, answered) for s in rows]
            found = Reduction.stack(made) if len(made) > 1 else made[0]
            return found.rows(torch.arange(len(features), device=x.device).repeat(2)) if halves else found

    def _one(self, s: Signals, keep: budget.Budget, answered: bool) -> Reduction:
        found = self.stage.method(s, keep)
        gone = found.owner < 0
        if not answered or found.matrix is not None or not bool(gone.any()):
            return found
        chosen = torch.zeros_like(gone).scatter_(1, found.kept, True)
        nearest, _ = merge.nearest(s.features, chosen, asked=gone)
        slot = chosen.long().cumsum(1) - 1
        owner = torch.where(gone, slot.gather(1, nearest.clamp(min=0)), found.owner)
        # The weight of a token that was dropped is 0 already.
        return Reduction(found.n, found.kept, found.mask, owner, found.weight, None)


def _mean(x: Tensor) -> Tensor:
    """Of the two halves of the rows."""
    return (x[: len(x) // 2] + x[len(x) // 2 :]) / 2
