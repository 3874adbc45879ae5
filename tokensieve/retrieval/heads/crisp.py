"""CRISP: a head trained on what is left of its vectors, so that few stored vectors suffice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tokensieve.core.method import Method
from tokensieve.core.method_registry import get_method
from tokensieve.core.signals import Signals
from tokensieve.parts.budget import Budget
from tokensieve.retrieval.heads.contrast import pad
from tokensieve.retrieval.heads.projection import Projection


def reduced(vectors: Tensor, offsets: Tensor, method: Method, keep: Budget) -> tuple[Tensor, Tensor, Tensor]:
    """Fewer vectors of length 1 for each text, through which gradients flow into all members.

    Args:
        vectors: ``(T, d)``; offsets: ``(n + 1,)``; method: of the site "vectors", which decides without gradients.

    Returns:
        ``(M, d)``, the token at whose place each stands, ``(M,)``, and the new offsets.
    """
    x, mask = pad(vectors, offsets)
    with torch.no_grad():
        r = method(Signals(features=x.detach(), mask=mask), keep)
    mixed = normalize(r.apply(x), dim=-1)[r.mask]
    place = (offsets[:-1, None] + r.kept)[r.mask]
    return mixed, place, torch.cat([offsets[:1], r.counts.cumsum(0)])


class Crisp(nn.Module):
    """A projection whose vectors are clustered, in training as in the index: ``(T, width)`` to fewer ``(M, out)``.

    Source: arXiv 2505.11471: k-means of the tokens of each text, without gradients, and MaxSim of the centroids, whose
    gradients reach all members; queries keep the share ``query_keep``, documents ``keep``. Other methods of the site
    "vectors" that need nothing but vectors fit as well (``first-k`` is the paper's tail pruning, trained). Deviations: the
    head alone is trained, on frozen vectors; centroids have length 1; the first centres stand at equal steps along the
    text, so that results repeat.

    Raises:
        ValueError: a method that needs more than vectors.
    """

    def __init__(self, head: Projection, keep: float = 0.25, query_keep: float = 0.25, method: str = "kmeans"):
        super().__init__()
        self.head, self.keep, self.query_keep = head, keep, query_keep
        self.method = get_method(method)
        if "vectors" not in self.method.sites or self.method.needs:
            raise ValueError(f"method={method!r} needs more than stored vectors; 'kmeans' is the paper's")

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the same module again."""
        return {
            "head": self.head.settings,
            "keep": self.keep,
            "query_keep": self.query_keep,
            "method": self.method.name,
        }

    @property
    def width(self) -> int:
        return self.head.width

    @property
    def out(self) -> int:
        return self.head.out

    def read(
        self, vectors: Tensor, offsets: Tensor, words: Tensor | None, query: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors that stand for some texts, of length 1 (see :class:`tokensieve.retrieval.encoders.head.Head`)."""
        made = normalize(self.head(vectors), dim=-1)
        return reduced(made, offsets, self.method, self.query_keep if query else self.keep)
