"""Projection: heads that map frozen token vectors to those that are stored, and a meter of what MaxSim teaches them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize

FORMS = ("linear", "feedforward", "glu", "residual")


def linear(width: int, out: int, bias: bool = False) -> nn.Linear:
    """A linear map that starts orthogonal, so that the cosines of frozen vectors survive at the start."""
    made = nn.Linear(width, out, bias=bias)
    nn.init.orthogonal_(made.weight)
    return made


class Projection(nn.Module):
    """``(..., width)`` to ``(..., out)``, token by token.

    Source: arXiv 2510.12327, drop-in heads of ColBERT. ``linear``: W x. ``feedforward``: W2 gelu(W1 x), ``scale`` times as wide
    in between. ``glu``: W2 (gelu(V x) * W1 x). ``residual``: the upscaled feedforward, with a linear skip around each of its two
    layers. Deviations: linear maps start orthogonal and without bias; tokens of length 1 are first brought to the length
    sqrt(width), at which the activation bends.

    Raises:
        ValueError: an unknown form, or a width below 1.
    """

    def __init__(self, width: int, out: int, form: str = "linear", scale: int = 2):
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form={form!r}; it must be one of {', '.join(FORMS)}")
        if min(width, out, scale) < 1:
            raise ValueError(f"width={width}, out={out}, scale={scale}; each must be at least 1")
        self.width, self.out, self.form, self.scale = width, out, form, scale
        inner = width * scale
        self.last = linear(width if form == "linear" else inner, out)
        if form != "linear":
            self.first = linear(width, inner)
        if form == "glu":
            self.gate = linear(width, inner)
        if form == "residual":
            self.skip, self.past = linear(width, inner), linear(inner, out)

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the same module again."""
        return {"width": self.width, "out": self.out, "form": self.form, "scale": self.scale}

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.width:
            raise ValueError(f"vectors are {x.shape[-1]} wide; this head was made for width={self.width}")
        x = x * self.width**0.5
        if self.form == "linear":
            return self.last(x)
        if self.form == "glu":
            return self.last(gelu(self.gate(x)) * self.first(x))
        if self.form == "feedforward":
            return self.last(gelu(self.first(x)))
        inner = gelu(self.first(x)) + self.skip(x)
        return self.last(inner) + self.past(inner)

    def read(
        self, vectors: Tensor, offsets: Tensor, words: Tensor | None, query: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors that stand for some texts, of length 1 (see :class:`tokensieve.retrieval.encoders.head.Head`)."""
        return normalize(self(vectors), dim=-1), torch.arange(len(vectors)), offsets


def flow(head: Callable[[Tensor], Tensor], vectors: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """How much gradient each token receives, ``(T,)`` twice: behind the head, and in front of it.

    Under MaxSim a document's token that no query token matched best receives none.

    Args:
        head: maps ``vectors`` ``(T, width)`` to ``(T, out)``; loss: of what the head gives, a scalar.
    """
    x = vectors.detach().clone().requires_grad_()
    y = head(x)
    behind, before = torch.autograd.grad(loss(y), [y, x])
    return behind.norm(dim=-1), before.norm(dim=-1)
