"""What a sieve did in its last pass."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from tokensieve.core.reduction import Reduction
from tokensieve.core.stage import Stage


@dataclass(frozen=True)
class StageTrace:
    """One stage's work.

    Attributes:
        stage: the stage.
        reduction: from the original tokens of each image (or each prompt's, where the budget is per prompt) to those that
            are left after this stage; earlier stages are composed in.
        score: ``(I, n)``, what the method ranked by (over the tokens it met); None where it does not rank, or nobody asked for it
            (``sieve(..., scores=True)``).
        grid: rows and columns of the tokens it met, where they lie on a grid.
    """

    stage: Stage
    reduction: Reduction
    score: Tensor | None = field(repr=False)
    grid: tuple[int, int] | None


@dataclass
class Trace:
    """The last pass that brought visual tokens.

    Attributes:
        stages: in the order they ran.
        rows: the batch row of each image (reductions have one row per image).
        layer_tokens: mean visual tokens per image in front of each language-model layer; of a bare encoder the tokens of a row,
            special ones included, in front of each block.
        places: ``(I, n)`` long, the prompt positions of each image's tokens, -1 at padding; of a bare encoder those of the tokens
            that may leave.
        stays: of a bare encoder, ``(B, L)`` bool, the tokens of the whole sequence whose places are left; None elsewhere.
        left: of a bare encoder, ``(B, L)`` long, the block in which each token was dropped (-1 in front of the first), and the
            number of blocks where it was not; its restored state is the one behind that block. None elsewhere.
        packed: of a bare encoder, how many blocks ran without padding, rows of different numbers of tokens one behind the other.
        steps: of a bare encoder, for each step the block in which tokens left (-1 in front of the first), and the reduction from
            the original tokens to those that it left.
        modules: of a denoiser, the module that each entry of ``stages`` and ``layer_tokens`` is about; empty for all others.
    """

    stages: list[StageTrace]
    rows: list[int]
    layer_tokens: list[float]
    places: Tensor | None = field(default=None, repr=False)
    modules: list[str] = field(default_factory=list)
    stays: Tensor | None = field(default=None, repr=False)
    left: Tensor | None = field(default=None, repr=False)
    packed: int = 0
    steps: list[tuple[int, Reduction]] = field(default_factory=list, repr=False)

    def of_prompts(self, count: int) -> list[float]:
        """Mean visual tokens per prompt, where :attr:`layer_tokens` are per image and tiles count as images of their own."""
        return [tokens * len(self.rows) / count for tokens in self.layer_tokens]
