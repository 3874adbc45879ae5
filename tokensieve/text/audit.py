"""Tokens that a model has hardly been trained on (Land and Bartolo, arXiv 2405.05417)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tokensieve.text.reach import Reach, reach
from tokensieve.text.vocabulary import Vocabulary

IMPOSSIBLE = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
"""Bytes that no text in UTF-8 holds."""
ALIKE = 0.9
"""Cosine from which rows that nothing has trained are taken for one group; they have all moved the same way."""
FEWEST = 3
FAILS = 0.01
"""A token that is repeated with a smaller probability cannot be repeated."""


@dataclass(frozen=True)
class Flag:
    """A token that looks untrained.

    Attributes:
        id, token: it, as the vocabulary writes it.
        likeness: cosine of its row to the mean untrained row; or how much shorter it is than most, where ``by`` is "norm".
        probability: with which the model repeats it; None where it was not asked.
    """

    id: int
    token: str
    likeness: float
    probability: float | None = None


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        reach: of the vocabulary.
        untrained: ids of the rows that others are compared with; found, not assumed: see :func:`reference`.
        by: "cosine", or "norm" where no untrained rows were found that are alike.
        certain: reachable tokens at least as like these rows as they are to their own mean; 0 for "norm".
        flags: reachable tokens that are most like them, the likest first.
        control: as many tokens drawn at random.
    """

    reach: Reach
    untrained: tuple[int, ...]
    by: str
    certain: int
    flags: tuple[Flag, ...]
    control: tuple[Flag, ...]

    @property
    def failing(self) -> tuple[float, float]:
        """Shares of flagged and of random tokens that cannot be repeated; NaN where none was asked."""
        return _failing(self.flags), _failing(self.control)


def _failing(flags: Sequence[Flag]) -> float:
    asked = [f.probability for f in flags if f.probability is not None]
    return sum(p < FAILS for p in asked) / len(asked) if asked else float("nan")


def candidates(vocabulary: Vocabulary, found: Reach, rows: int) -> list[int]:
    """Ids that text cannot have trained: rows behind the vocabulary, ids without a token, special tokens, tokens that no text
    reaches, bytes that UTF-8 does not use."""
    bytes_ = [i for i in found.single if (b := vocabulary.bytes[i]) and b[0] in IMPOSSIBLE]
    behind = range(len(vocabulary), rows)
    ids = {*behind, *found.unused, *found.special, *vocabulary.added, *found.unreachable, *bytes_}
    return sorted(i for i in ids if i < rows)


def reference(rows: Tensor, ids: Sequence[int]) -> tuple[int, ...]:
    """Those of some ids whose rows are untrained: the largest group that are alike in direction and, within a tenth, length.

    Untrained rows are all moved by the same force, away from every hidden state, and so point one way; trained special tokens
    among the ids do not. Empty where fewer than three are alike.
    """
    length = rows[list(ids)].norm(dim=-1)
    ids = [i for i, n in zip(ids, length.tolist(), strict=True) if n > 0]
    if len(ids) < FEWEST:
        return ()
    own = rows[ids].float()
    length = own.norm(dim=-1)
    alike = own / length[:, None]
    same = (alike @ alike.T >= ALIKE) & ((length[:, None] / length - 1).abs() <= 0.1)
    best = int(same.sum(-1).argmax())
    group = tuple(i for i, s in zip(ids, same[best].tolist(), strict=True) if s)
    return group if len(group) >= FEWEST else ()


def likeness(rows: Tensor, untrained: Sequence[int]) -> Tensor:
    """Of each row its cosine to the mean of untrained ones; without any, how much shorter it is than the median row."""
    rows = rows.float()
    if not untrained:
        length = rows.norm(dim=-1)
        return 1 - length / length.median()
    mean = torch.nn.functional.normalize(rows[list(untrained)].mean(0), dim=0)
    return torch.nn.functional.normalize(rows, dim=-1) @ mean


def audit(
    tokenizer: Tokenizer,
    rows: Tensor,
    repeat: Callable[[Sequence[int]], Sequence[float]] | None = None,
    most: int = 40,
    seed: int = 0,
) -> Audit:
    """Look for under-trained tokens by the rows of a model's output.

    Args:
        rows: (V, D), those of the output embedding (which are the input's where they are tied).
        repeat: gives for token ids the probability of repeating each (:func:`tokensieve.text.models.repeats`).
        most: tokens that are flagged, and as many drawn at random.

    Raises:
        ValueError: the model has fewer rows than the tokenizer ids.
    """
    vocabulary = Vocabulary.of(tokenizer)
    if len(rows) < len(vocabulary):
        raise ValueError(
            f"the model has {len(rows):,} rows, its tokenizer {len(vocabulary):,} ids; they do not belong together"
        )
    found = reach(tokenizer, vocabulary)
    untrained = reference(rows, candidates(vocabulary, found, len(rows)))
    like = likeness(rows, untrained)
    aside = {*found.unreachable, *found.special, *found.unused, *found.single, *vocabulary.added}
    open_ = torch.tensor([i for i in vocabulary.plain() if i not in aside])
    order = open_[like[open_].argsort(descending=True, stable=True)][:most].tolist()
    drawn = open_[torch.randperm(len(open_), generator=torch.Generator().manual_seed(seed))[:most]].tolist()
    certain = int((like[open_] >= like[list(untrained)].min()).sum()) if untrained else 0

    def flags(ids: list[int]) -> tuple[Flag, ...]:
        said = list(repeat(ids)) if repeat is not None and ids else [None] * len(ids)
        return tuple(Flag(i, vocabulary.strings[i] or "", float(like[i]), p) for i, p in zip(ids, said, strict=True))

    return Audit(found, untrained, "cosine" if untrained else "norm", certain, flags(order), flags(drawn))
