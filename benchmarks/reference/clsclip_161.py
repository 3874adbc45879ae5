"""A class's text state in the place of the visual class token in shallow blocks, and masks by likeness of patches to the text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Pair(nn.Module):
    """A small paired encoder: pictures ``(B, 3, side, side)`` and texts of words ``(B, L)`` long, in one space of ``width``.

    The class token behind the last block is a picture's vector, as it is: no projection stands between the spaces, so that a
    text's vector can stand in its place.
    """

    def __init__(self, words: int, side: int = 48, patch: int = 6, width: int = 64, layers: int = 4, heads: int = 4):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.words = nn.Embedding(words, width)
        self.text = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.LayerNorm(width)
        )
        self.scale = nn.Parameter(torch.tensor(2.3))

    def see(self, pictures: Tensor, text: Tensor | None = None, shallow: int = 0) -> Tensor:
        """``(B, 1 + N, width)``: states behind the last block; ``text`` ``(B, width)`` stands in the place of the class token in
        front of each of the first ``shallow`` blocks."""
        x = self.patches(pictures).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.places
        for i, block in enumerate(self.blocks):
            if text is not None and i < shallow:
                x = torch.cat([text[:, None], x[:, 1:]], 1)
            x = block(x)
        return self.norm(x)

    def read(self, texts: Tensor) -> Tensor:
        """``(B, width)``."""
        return self.text(self.words(texts).mean(1))

    def loss(self, pictures: Tensor, texts: Tensor) -> Tensor:
        """Contrastive, both ways; texts that are equal in a batch are all right."""
        a, b = F.normalize(self.see(pictures)[:, 0], dim=1), F.normalize(self.read(texts), dim=1)
        like = a @ b.T * self.scale.exp()
        same = (texts[:, None] == texts[None]).all(2).float()
        wanted = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(like, wanted) + F.cross_entropy(like.T, wanted)) / 2


@torch.no_grad()
def guided(pair: Pair, pictures: Tensor, texts: Tensor, shallow: int) -> Tensor:
    """``(B, N)``: the cosine of each patch with a text, which guides the first ``shallow`` blocks; 0 for plain maps.

    Source: ClsCLIP, arXiv 2304.06212. Deviations: one space has no projections to be undone; no regions are zoomed into.
    """
    text = pair.read(texts)
    states = pair.see(pictures, text, shallow)[:, 1:]
    return (F.normalize(states, dim=2) * F.normalize(text, dim=1)[:, None]).sum(2)
