"""LoTLIP: a text encoder with corner tokens, which gather what CLS alone would drop of a long caption."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import BertModel

from tokensieve.retrieval.heads.contrast import in_batch


def summary_mask(real: Tensor, corners: int) -> Tensor:
    """``(B, N, N)`` bool, True where a row attends to a column, from which are real ``(B, N)``: CLS, corners, then the text.

    CLS and corners see the text and themselves, not each other; the text sees the text and CLS.
    """
    n, first = real.shape[1], corners + 1
    mask = real[:, None].repeat(1, n, 1)
    mask[:, :, :first] = False
    mask[:, first:, 0] = True
    return mask | torch.eye(n, dtype=torch.bool)


class LoTLIP(nn.Module):
    """Ids ``(B, N)``, CLS first, to ``(B, 1 + corners, out)`` features of length 1: that of CLS, then those of the corner
    tokens.

    Source: arXiv 2410.05249 and its code. Corner tokens stand behind CLS and begin apart from each other; a short caption
    is matched with its image by CLS, a long one by CLS and by each corner token; at use CLS stands for any text.
    ``corners=0`` is the usual encoder.

    Raises:
        ValueError: a negative number of corners.
    """

    def __init__(self, encoder: BertModel, out: int, corners: int = 2):
        super().__init__()
        if corners < 0:
            raise ValueError(f"corners={corners}; it must be at least 0")
        width = encoder.config.hidden_size
        self.encoder, self.corners = encoder, corners
        self.extra = nn.Parameter(torch.randn(corners, width) * encoder.config.initializer_range)
        self.last = nn.Linear(width, out)

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        words = self.encoder.embeddings.word_embeddings(ids)
        x = torch.cat([words[:, :1], self.extra.expand(len(ids), -1, -1), words[:, 1:]], 1)
        seen = torch.cat([real[:, :1], real.new_ones(len(ids), self.corners), real[:, 1:]], 1)
        mask = summary_mask(seen, self.corners) if self.corners else seen[:, None].expand(-1, seen.shape[1], -1)
        states = self.encoder(inputs_embeds=x, attention_mask=mask[:, None]).last_hidden_state
        return normalize(self.last(states[:, : self.corners + 1]), dim=-1)

    def loss(self, images: Tensor, short: Tensor, long: Tensor, temperature: float = 0.07) -> Tensor:
        """Of image features ``(B, out)`` of length 1, and of what :meth:`forward` gave for short and for long captions."""

        def both(texts: Tensor) -> Tensor:
            like = texts @ images.T
            return (in_batch(like, temperature) + in_batch(like.T, temperature)) / 2

        return both(short[:, 0]) + torch.stack([both(long[:, k]) for k in range(self.corners + 1)]).mean()
