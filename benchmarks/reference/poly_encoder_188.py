"""Poly-encoder: a text as m vectors that learned codes read from its tokens; the other side attends over them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tokensieve.retrieval.heads.projection import linear


class PolyEncoder(nn.Module):
    """Token states ``(B, N, width)`` to ``(B, m, out)`` by m codes, and scores of pooled candidates ``(C, out)``.

    Source: arXiv 1905.01969, learned codes: y_i = sum_j softmax_j(c_i . h_j) h_j; a candidate x attends over them,
    y = sum_i softmax_i(x . y_i) y_i, and its score is x . y. ``codes=0`` is the bi-encoder: both sides are means of their
    tokens. Deviations: the encoder is frozen, and a linear map per side is trained in its place; candidates are means of
    their tokens of length 1; attention over the codes is divided by ``temperature``, as such short vectors need.

    Raises:
        ValueError: a negative number of codes, or a width below 1.
    """

    def __init__(self, width: int, out: int, codes: int = 64, temperature: float = 0.05):
        super().__init__()
        if codes < 0 or min(width, out) < 1:
            raise ValueError(f"codes={codes}, width={width}, out={out}; codes must be at least 0, widths at least 1")
        self.context, self.candidate = linear(width, out), linear(width, out)
        self.codes = nn.Parameter(torch.randn(codes, out) / out**0.5) if codes else None
        self.width, self.temperature = width, temperature

    def summary(self, states: Tensor, mask: Tensor) -> Tensor:
        """``(B, m, out)``: what is stored of a text (its mean where there are no codes)."""
        h = self.context(states * self.width**0.5)
        if self.codes is None:
            return normalize(_mean(h, mask), dim=-1)[:, None]
        like = (self.codes @ h.transpose(1, 2)).masked_fill(~mask[:, None], -torch.inf)
        return like.softmax(2) @ h

    def candidates(self, states: Tensor, mask: Tensor) -> Tensor:
        """``(C, out)``: one vector of length 1 for each text of the other side."""
        return normalize(_mean(self.candidate(states * self.width**0.5), mask), dim=-1)

    def score(self, summary: Tensor, candidates: Tensor) -> Tensor:
        """``(C, B)``: every candidate with every text."""
        like = torch.einsum("co,bmo->cbm", candidates, summary)
        if self.codes is None:
            return like[..., 0]
        mixed = torch.einsum("cbm,bmo->cbo", (like / self.temperature).softmax(2), summary)
        return (normalize(mixed, dim=-1) * candidates[:, None]).sum(2)


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    real = mask[..., None].to(x.dtype)
    return (x * real).sum(1) / real.sum(1).clamp(min=1)
