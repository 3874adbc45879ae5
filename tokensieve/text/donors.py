"""Donor spaces: vectors of a vocabulary's tokens in which likeness means likeness."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import svds
from tokenizers import Tokenizer
from torch import Tensor

from tokensieve.text.corpus import batches, pieces
from tokensieve.text.vocabulary import Vocabulary

WINDOW = 4
WIDTH = 128


def of_strings(tokenizer: Tokenizer, encode: Callable[[Sequence[str]], Tensor]) -> Tensor:
    """Vectors of the tokens' texts, by id.

    Args:
        encode: gives ``(n, E)`` vectors of n texts.
    """
    vocabulary = Vocabulary.of(tokenizer)
    texts = [(t.strip() or t) if t else (s or "") for t, s in zip(vocabulary.texts, vocabulary.strings, strict=True)]
    return encode(texts).float()


def of_corpus(tokenizer: Tokenizer, texts: Iterable[str], width: int = WIDTH, window: int = WINDOW) -> Tensor:
    """Vectors of the tokens by what stands near them in texts: the positive pointwise mutual information of tokens at most so
    far apart, in ``width`` dimensions by singular values (Levy and Goldberg 2014, roots of the singular values).

    Returns:
        ``(W, width)`` float32; tokens that the texts do not hold are zero.
    """
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    counts = sp.csr_matrix((size, size), dtype=np.float64)
    for group in batches(part for text in texts for part in pieces(text)):
        left, right = [], []
        for encoded in tokenizer.encode_batch_fast(group, add_special_tokens=False):
            ids = np.array(encoded.ids, np.int64)
            for d in range(1, window + 1):
                left += [ids[:-d], ids[d:]]
                right += [ids[d:], ids[:-d]]
        if left:
            at = (np.concatenate(left), np.concatenate(right))
            counts = counts + sp.csr_matrix((np.ones(len(at[0])), at), shape=(size, size))
    total = counts.sum()
    if not total:
        raise ValueError("the texts hold no two tokens beside each other, so that nothing is known of any")
    margin = np.asarray(counts.sum(1)).ravel()
    table = counts.tocoo()
    # contexts to the power of 0.75, which tempers rare ones
    context = margin**0.75
    context *= total / context.sum()
    table.data = np.maximum(np.log(table.data * total / (margin[table.row] * context[table.col])), 0)
    table.eliminate_zeros()
    u, s, _ = svds(table.tocsr(), k=min(width, size - 2), random_state=0)
    return torch.from_numpy(np.ascontiguousarray(u * np.sqrt(s))).float()


def pooled(encoded: Any) -> Tensor:
    """The mean vector of each text that an encoder has encoded into several."""
    groups = encoded.vectors.split(encoded.lengths.tolist())
    return torch.stack([group.mean(0) for group in groups])
