"""UniCode: one table for the words of a language model and the codes of its images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from benchmarks.reference.instella_95 import WIDTH, learned, stack


class OneTable(nn.Module):
    """A causal language model whose table has a row for every code of an image and every label; codes are its first rows.

    Source: arXiv 2403.09072. The visual codebook (``tied``) follows this table by moving average, so that a code's embedding is
    what the decoder of images reads too; the table is trained by the language model's loss alone.

    Args:
        codes: rows that images use; words: rows for labels; dim: of a row, and of the codebook.
        longest: symbols of a sequence.
    """

    def __init__(self, codes: int, words: int, dim: int, longest: int):
        super().__init__()
        self.codes = codes
        self.table = nn.Embedding(codes + words, dim)
        self.into, self.places, self.begin = nn.Linear(dim, WIDTH), learned(longest, WIDTH), learned(WIDTH)
        self.body, self.out_of = stack(), nn.Linear(WIDTH, dim)

    def rows(self) -> Tensor:
        """``(codes, dim)``: what the codebook follows."""
        return self.table.weight[: self.codes]

    def logits(self, symbols: Tensor) -> Tensor:
        """``(B, N, rows)`` of symbols ``(B, N)``, each from those before it; the table is the output's too."""
        x = pad(self.into(self.table(symbols)), (0, 0, 1, 0))[:, : symbols.shape[1]]
        x = torch.cat([x[:, :1] + self.begin, x[:, 1:]], 1) + self.places[: x.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.out_of(self.body(x, mask=mask, is_causal=True)) @ self.table.weight.T

    def loss(self, symbols: Tensor) -> Tensor:
        """Nats a symbol."""
        return cross_entropy(self.logits(symbols).flatten(0, 1), symbols.flatten())
