"""ColBERTer: one vector for each whole word of a text, a learned gate that removes words, and scores in two parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from tokensieve.retrieval.heads.projection import linear


def word_means(vectors: Tensor, offsets: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of the vectors of each distinct word of each text; tokens of no word (-1) leave, unless a text has no others.

    Args:
        vectors: ``(T, d)``; offsets: ``(n + 1,)``; words: ``(T,)`` long, equal for equal words of a text.

    Returns:
        ``(M, d)`` in the order of each word's first token, that token ``(M,)``, and the new offsets.
    """
    text = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())
    count = torch.zeros(len(offsets) - 1, dtype=torch.long).index_add_(0, text, (words >= 0).long())
    held = ((words >= 0) | (count == 0)[text]).nonzero()[:, 0]
    key = text[held] * (words.max() + 2) + words[held] + 1
    group = torch.unique(key, return_inverse=True)[1]
    size = int(group.max()) + 1
    first = torch.full((size,), len(vectors)).scatter_reduce_(0, group, held, "amin")
    order = first.argsort()
    back = torch.empty_like(order).scatter_(0, order, torch.arange(size))[group]
    number = torch.zeros(size).index_add_(0, back, torch.ones(len(held)))
    total = vectors.new_zeros(size, vectors.shape[1]).index_add(0, back, vectors[held])
    place = first[order]
    lengths = torch.zeros(len(offsets) - 1, dtype=torch.long).index_add_(0, text[place], torch.ones_like(place))
    return total / number[:, None], place, torch.cat([offsets[:1], lengths.cumsum(0)])


def lexical(numbers: Tensor, words: Tensor, offsets: Tensor, size: int) -> Tensor:
    """``(n, size)``: the number of each word of each text, at the place of the word, 0 where a text lacks it.

    Args:
        numbers: ``(M, 1)``.
        words: ``(M,)`` long, the same for a word in all texts, below ``size``, -1 for none.
        offsets: ``(n + 1,)``.
    """
    text = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())
    held = words >= 0
    out = numbers.new_zeros(len(offsets) - 1, size)
    return out.index_put((text[held], words[held]), numbers[held, 0])


class ColBERTer(nn.Module):
    """Token vectors ``(T, width)`` to gated word vectors ``(M, out)``; a pooled vector ``(n, width)`` to ``(n, out)``.

    Source: arXiv 2203.13088, in the order of its code: compress, average the subwords of each distinct word, gate. The gate
    relu(w v + b) multiplies a document's word vector, and words whose gate is 0 leave the index; L1 of the gates is what
    drives them there. The score is sigmoid(a) pooled + (1 - sigmoid(a)) refined, with a learned. With ``exact``, a vector
    of one number per word follows, and only equal words match (Uni-ColBERTer, :func:`lexical`). Deviations: the encoder's
    own pooled vector stands for [CLS]; a text without words left keeps its first, as zeros; single numbers are not negative
    (softplus), so that scores are sparse dot products. An index holds the words and scores them alone; the pooled vectors
    are the caller's, and :meth:`fused` puts both scores together.

    Raises:
        ValueError: a width below 1.
    """

    def __init__(self, width: int, out: int, gated: bool = True, exact: bool = False):
        super().__init__()
        if min(width, out) < 1:
            raise ValueError(f"width={width}, out={out}; each must be at least 1")
        self.width, self.inner, self.gated, self.exact = width, out, gated, exact
        self.compress, self.pool = linear(width, out), linear(width, out)
        if gated:
            self.gate = nn.Linear(out, 1)
            # Every word passes at the start.
            nn.init.zeros_(self.gate.weight)
            nn.init.ones_(self.gate.bias)
        if exact:
            self.single = nn.Linear(out, 1)
        self.share = nn.Parameter(torch.zeros(1))

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the same module again."""
        return {"width": self.width, "out": self.inner, "gated": self.gated, "exact": self.exact}

    @property
    def out(self) -> int:
        return 1 if self.exact else self.inner

    def words(
        self, vectors: Tensor, offsets: Tensor, words: Tensor, query: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Word vectors, each one's gate ``(M,)`` (1 for queries), its first token, and the new offsets; none has left."""
        x, place, cuts = word_means(self.compress(vectors), offsets, words)
        gate = x.new_ones(len(x))
        if self.gated and not query:
            gate = relu(self.gate(x))[:, 0]
            x = x * gate[:, None]
        return (softplus(self.single(x)) * gate[:, None] if self.exact else x), gate, place, cuts

    def read(
        self, vectors: Tensor, offsets: Tensor, words: Tensor | None, query: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors that stand for some texts (see :class:`tokensieve.retrieval.encoders.head.Head`).

        Raises:
            ValueError: the encoder does not say which tokens are of one word.
        """
        if words is None:
            raise ValueError("words is None; ColBERTer needs an encoder of texts, which gives the signal 'word'")
        x, gate, place, cuts = self.words(vectors, offsets, words, query)
        text = torch.arange(len(cuts) - 1).repeat_interleave(cuts.diff())
        stays = gate > 0
        left = torch.zeros(len(cuts) - 1, dtype=torch.long).index_add_(0, text, stays.long())
        stays[cuts[:-1][left == 0]] = True
        lengths = torch.zeros(len(cuts) - 1, dtype=torch.long).index_add_(0, text, stays.long())
        return x[stays], place[stays], torch.cat([cuts[:1], lengths.cumsum(0)])

    def fused(self, pooled: Tensor, refined: Tensor) -> Tensor:
        """One score of the pooled vectors' cosines and the words' scores over the query's number of words."""
        share = self.share.sigmoid()
        return share * pooled + (1 - share) * refined
