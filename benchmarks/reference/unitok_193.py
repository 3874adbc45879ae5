"""UniTok: a tokenizer of images that is also matched with words."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Matched(nn.Module):
    """The mean of an image's token values and a word, in one space, by contrast within a batch.

    Source: arXiv 2502.20321, which trains its tokenizer by reconstruction and by this. Deviation: a word is the sum of its
    letters at their places, where the paper has a text encoder; equal captions in a batch are all right answers.

    Args:
        dim: of token values; width: of the space.
    """

    def __init__(self, dim: int, width: int = 32):
        super().__init__()
        self.image = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width))
        self.letters = nn.EmbeddingBag(26 * max(map(len, WORDS)), width, mode="sum")
        self.scale = nn.Parameter(torch.tensor(2.3))

    def words(self) -> Tensor:
        """``(10, width)``, of length 1: the labels' names."""
        ids = [26 * i + ord(letter) - ord("a") for word in WORDS for i, letter in enumerate(word)]
        starts = torch.tensor([0, *(len(word) for word in WORDS[:-1])]).cumsum(0)
        return normalize(self.letters(torch.tensor(ids), starts), dim=1)

    def images(self, values: Tensor) -> Tensor:
        """``(B, width)``, of length 1, of token values ``(B, N, dim)``."""
        return normalize(self.image(values.mean(1)), dim=1)

    def loss(self, values: Tensor, labels: Tensor) -> Tensor:
        like = self.scale.exp() * self.images(values) @ self.words()[labels].T
        right = (labels[:, None] == labels).float()
        right = right / right.sum(1, keepdim=True)
        return (cross_entropy(like, right) + cross_entropy(like.T, right)) / 2

    def named(self, values: Tensor) -> Tensor:
        """``(B,)``: the label whose word is nearest."""
        return (self.images(values) @ self.words().T).argmax(1)
