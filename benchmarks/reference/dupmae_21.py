"""DupMAE: pretraining that makes both the CLS token and the ordinary tokens of an encoder tell the text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import BertModel

from benchmarks.reference.text_encoder import masked


class DupMAE(nn.Module):
    """A text encoder with the heads that pretrain it.

    Source: arXiv 2211.08769 and its code. The encoder reads a text of which ``hidden`` is masked. (1) One decoder layer
    rebuilds every token from the CLS state: its queries are that state at each position, its keys a sample of the other
    tokens, drawn anew for each position, of which ``unseen`` is left out. (2) The ordinary tokens' logits, their maximum
    over the text, predict the bag of its words. (3) Masked tokens, as ever. Deviations: no whole-word masking.

    Args:
        encoder: with CLS as the first token.
    """

    def __init__(self, encoder: BertModel, hidden: float = 0.3, unseen: float = 0.5):
        super().__init__()
        width, heads = encoder.config.hidden_size, encoder.config.num_attention_heads
        self.encoder, self.hidden, self.unseen = encoder, hidden, unseen
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(encoder.config.vocab_size))
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def logits(self, states: Tensor) -> Tensor:
        """``(..., V)`` of states ``(..., D)``, by the encoder's own embeddings."""
        return self.transform(states) @ self.encoder.embeddings.word_embeddings.weight.T + self.bias

    def forward(self, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Two embeddings of texts ``(B, N)``: the CLS state ``(B, D)``, and the ordinary tokens' maximum ``(B, V)``."""
        states = self.encoder(input_ids=ids, attention_mask=real.long()).last_hidden_state
        return states[:, 0], self._most(self.logits(states[:, 1:]), real)

    def loss(self, ids: Tensor, real: Tensor, draw: torch.Generator) -> Tensor:
        """The sum of the three losses of a batch ``(B, N)``."""
        seen, chosen = masked(ids, real, self.hidden, draw)
        states = self.encoder(input_ids=seen, attention_mask=real.long()).last_hidden_state
        ordinary = self.logits(states[:, 1:])
        total = cross_entropy(ordinary[chosen[:, 1:]], ids[chosen]) + self._bag(ordinary, ids, real)
        told = real.clone()
        told[:, 0] = False
        return total + cross_entropy(self.logits(self._decode(states[:, 0], ids, real, draw)[told]), ids[told])

    def _most(self, logits: Tensor, real: Tensor) -> Tensor:
        return logits.masked_fill(~real[:, 1:, None], -torch.inf).amax(1)

    def _bag(self, logits: Tensor, ids: Tensor, real: Tensor) -> Tensor:
        told = real[:, 1:]
        # Each distinct word weighs one token's share of the text.
        share = told / told.sum(1, keepdim=True).clamp(min=1)
        bag = torch.zeros(len(ids), logits.shape[2]).scatter_reduce_(1, ids[:, 1:], share, "amax")
        return -(bag * self._most(logits, real).log_softmax(1)).sum(1).mean()

    def _decode(self, cls: Tensor, ids: Tensor, real: Tensor, draw: torch.Generator) -> Tensor:
        table, n = self.encoder.embeddings, ids.shape[1]
        asked = table(inputs_embeds=cls[:, None].expand(-1, n, -1))
        known = torch.cat([cls[:, None], table(input_ids=ids)[:, 1:]], 1)
        # True is left out: padding, a sample drawn for each position, and the position itself; never CLS.
        out = (
            (torch.rand(len(ids), n, n, generator=draw) < self.unseen) | torch.eye(n, dtype=torch.bool) | ~real[:, None]
        )
        out[:, :, 0] = False
        mask = out.repeat_interleave(self.attend.num_heads, 0)
        mixed = self.norms[0](asked + self.attend(asked, known, known, attn_mask=mask, need_weights=False)[0])
        return self.norms[1](mixed + self.feed(mixed))


class Joint(nn.Module):
    """One vector of length 1 from both embeddings, each by a linear map: ``(B, D)`` and ``(B, V)`` to ``(B, cls +
    ordinary)``.

    Raises:
        ValueError: no width at all.
    """

    def __init__(self, width: int, size: int, cls: int, ordinary: int):
        super().__init__()
        if cls + ordinary < 1:
            raise ValueError(f"cls={cls}, ordinary={ordinary}; one of them must be at least 1")
        self.cls = nn.Linear(width, cls) if cls else None
        self.ordinary = nn.Linear(size, ordinary) if ordinary else None

    def forward(self, cls: Tensor, ordinary: Tensor) -> Tensor:
        parts = [] if self.cls is None else [self.cls(cls)]
        parts += [] if self.ordinary is None else [self.ordinary(ordinary)]
        return normalize(torch.cat(parts, 1), dim=1)
