"""Encoder: the small text encoder that trained checks share, and a vocabulary of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import BertConfig, BertModel

PAD, UNKNOWN, CLS, MASK = "[PAD]", "[UNK]", "[CLS]", "[MASK]"
SPECIALS = (PAD, UNKNOWN, CLS, MASK)


class Vocabulary:
    """Subwords learned from texts; ids 0 to 3 are padding, unknown, CLS and mask."""

    pad, cls, mask = 0, 2, 3

    def __init__(self, texts: Iterable[str], size: int = 2048):
        made = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        made.train_from_iterator(
            texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(SPECIALS), show_progress=False)
        )
        self.tokenizer = made

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without markers."""
        return [found.ids for found in self.tokenizer.encode_batch(list(texts))]


def batch(
    sequences: Sequence[Sequence[int]], longest: int, before: Sequence[int] = (Vocabulary.cls,)
) -> tuple[Tensor, Tensor]:
    """``(B, N)`` ids behind the markers ``before``, padded, and which are real; longer texts lose their end."""
    cut = [[*before, *s][:longest] for s in sequences]
    width = max(len(s) for s in cut)
    ids = torch.tensor([s + [Vocabulary.pad] * (width - len(s)) for s in cut])
    real = torch.tensor([[True] * len(s) + [False] * (width - len(s)) for s in cut])
    return ids, real


def tiny(size: int, width: int = 128, layers: int = 2, heads: int = 4, longest: int = 128) -> BertModel:
    """A BERT of random weights, small enough to train on the spot; without dropout, so that runs repeat."""
    config = BertConfig(
        vocab_size=size, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width,
        max_position_embeddings=longest, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=Vocabulary.pad,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


def masked(ids: Tensor, real: Tensor, share: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids with a share of the tokens (never the first) replaced by the mask, and which they are."""
    chosen = (torch.rand(ids.shape, generator=draw) < share) & real
    chosen[:, 0] = False
    return ids.masked_fill(chosen, Vocabulary.mask), chosen
