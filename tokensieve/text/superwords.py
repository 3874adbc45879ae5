"""Merges over the tokens of a tokenizer, learned by spelling its ids as characters.

Hugging Face's trainer starts from characters. A text whose tokens are written as one character each is, to it, a text like any
other: what it learns are merges of tokens, across words (SuperBPE, arXiv 2503.13423) or behind those of any vocabulary. Texts
are cut by the rules of the tokenizer that is to be, not by those of the first stage, so that merges are counted on what will be
encoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tokensieve.text.corpus import batches, pieces
from tokensieve.text.merges import Merge, merges_of

SURROGATES = range(0xD800, 0xE000)
MOST = 0x110000 - len(SURROGATES) - 1
"""Tokens that can be spelled by a character each; one is left to stand between chunks."""
LONGEST = 512
"""Tokens of a chunk that the trainer is given at most: a merge goes through all of each chunk that it occurs in."""
MARGIN = 1.02
"""Merges asked for over those wanted: some make a token that is there already."""


def _character(i: int) -> str:
    return chr(i if i < SURROGATES.start else i + len(SURROGATES))


def learn(
    tokenizer: Tokenizer,
    texts: Iterable[str],
    count: int,
    skip: frozenset[int] = frozenset(),
    show: bool = False,
) -> list[Merge]:
    """Merges over what a tokenizer makes of texts, in the order in which a trainer that starts from its tokens learns them.

    Args:
        tokenizer: a byte-level BPE that cuts text as the one that is to be.
        count: how many; some more are given, since some make a token that is there already.
        skip: ids that no merge may hold: special tokens.
        show: a bar of the trainer's on stderr.

    Returns:
        Pairs of tokens as the vocabulary writes them; fewer where the texts hold no more pairs that occur twice.

    Raises:
        ValueError: the vocabulary is larger than there are characters.
    """
    strings = {i: s for s, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    if max(strings) >= MOST:
        raise ValueError(f"the vocabulary has ids up to {max(strings):,}; they can be spelled up to {MOST - 1:,}")
    between = _character(max(strings) + 1)
    spelled = {i: _character(i) for i in strings if i not in skip}
    trainer = trainers.BpeTrainer(
        vocab_size=len(spelled) + int(count * MARGIN) + 64,
        initial_alphabet=list(spelled.values()),
        min_frequency=2,
        show_progress=show,
    )
    over = Tokenizer(models.BPE())
    over.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(between)
    over.train_from_iterator(_spelled(tokenizer, texts, ord(between), skip), trainer)
    token = {c: strings[i] for i, c in spelled.items()}
    return [(_read(left, token), _read(right, token)) for left, right in merges_of(over)]


def _read(spelling: str, token: dict[str, str]) -> str:
    return "".join(token[c] for c in spelling)


def _spelled(tokenizer: Tokenizer, texts: Iterable[str], between: int, skip: frozenset[int]) -> Iterator[str]:
    """Texts with a character for each token, and one between chunks and in the place of skipped tokens."""
    shift = len(SURROGATES)
    skipped = np.array(sorted(skip), np.int64)
    for group in batches(part for text in texts for part in pieces(text)):
        for encoded in tokenizer.encode_batch(group, add_special_tokens=False):
            ids = np.array(encoded.ids, np.int64)
            if not len(ids):
                continue
            chunk = np.array([-1 if w is None else w for w in encoded.word_ids], np.int64)
            points = np.where(ids < SURROGATES.start, ids, ids + shift)
            points[np.isin(ids, skipped)] = between
            starts = np.r_[0, np.flatnonzero(chunk[1:] != chunk[:-1]) + 1]
            within = np.arange(len(ids)) - np.repeat(starts, np.diff(np.r_[starts, len(ids)]))
            yield (
                np.insert(points, np.flatnonzero(within % LONGEST == 0)[1:], between)
                .astype("<u4")
                .tobytes()
                .decode("utf-32-le")
            )
