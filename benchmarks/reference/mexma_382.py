"""MEXMA: sentence vectors of two languages, trained by tokens that one language's vector tells in the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize
from transformers import BertModel

from benchmarks.reference.text_encoder import masked


def koleo(vectors: Tensor) -> Tensor:
    """Minus the mean logarithm of each vector's ``(n, d)`` distance to its nearest neighbour, all brought to length 1 first.

    Source: arXiv 1806.03198: small where vectors spread.

    Raises:
        ValueError: fewer than two vectors.
    """
    if len(vectors) < 2:
        raise ValueError(f"{len(vectors)} vectors have no neighbours; pass at least 2")
    unit = normalize(vectors, dim=1)
    with torch.no_grad():
        near = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
    return -((unit - unit[near]).norm(dim=1) + 1e-8).log().mean()


class Mexma(nn.Module):
    """An encoder of two languages with the layer that tells masked tokens.

    Source: arXiv 2409.12737 and its code: a sentence vector is the CLS state of the whole sentence. The states of a masked
    sentence, their CLS replaced by the other language's sentence vector, pass one more layer, which tells the masked
    tokens; both directions. Beside it the squared distance of the two sentence vectors, and ``spread`` times KoLeo of each
    side. ``told=False`` leaves the masked tokens out (the sentence objective alone); ``tokens=False`` keeps them, and lets
    their gradient reach the encoder by the sentence vector only. Deviations: without dropout.

    Args:
        encoder: with CLS as the first token; one vocabulary for both languages.
    """

    def __init__(
        self, encoder: BertModel, hidden: float = 0.4, spread: float = 0.01, told: bool = True, tokens: bool = True
    ):
        super().__init__()
        width, heads = encoder.config.hidden_size, encoder.config.num_attention_heads
        self.encoder, self.hidden, self.spread, self.told, self.tokens = encoder, hidden, spread, told, tokens
        self.layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True)
        self.bias = nn.Parameter(torch.zeros(encoder.config.vocab_size))

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        """``(B, D)``: the sentence vectors of ``(B, N)``."""
        return self._states(ids, real)[:, 0]

    def loss(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], draw: torch.Generator) -> Tensor:
        """Of a batch of sentences in two languages, ids and which are real, ``(B, N)`` each."""
        one, two = self(*first), self(*second)
        total = mse_loss(one, two) + self.spread * (koleo(one) + koleo(two))
        if self.told:
            total = total + self._tell(*first, two, draw) + self._tell(*second, one, draw)
        return total

    def _states(self, ids: Tensor, real: Tensor) -> Tensor:
        return self.encoder(input_ids=ids, attention_mask=real.long()).last_hidden_state

    def _tell(self, ids: Tensor, real: Tensor, other: Tensor, draw: torch.Generator) -> Tensor:
        seen, chosen = masked(ids, real, self.hidden, draw)
        states = self._states(seen, real)[:, 1:]
        states = torch.cat([other[:, None], states if self.tokens else states.detach()], 1)
        found = self.layer(states, src_key_padding_mask=~real)[chosen]
        return cross_entropy(found @ self.encoder.embeddings.word_embeddings.weight.T + self.bias, ids[chosen])
