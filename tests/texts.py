"""Small real texts and tokenizers for tests of the chapter on text."""

from __future__ import annotations

import functools
from collections import Counter
from itertools import pairwise
from pydoc_data.topics import topics

from tokensieve.text.config import TokenizerConfig
from tokensieve.text.corpus import Corpus, Document
from tokensieve.text.train import Trained, train

ODD = "naïve 東京 🎉 \x00 1234567 e\u0301 \r\n\tif x:\n    return 12345 of the\n"


@functools.cache
def corpus(size: int = 60_000, at: int = 0) -> Corpus:
    """Topics of Python's help, of about so many characters."""
    out, held = [], 0
    for name in sorted(topics)[at:]:
        out.append(Document(f"{name}.txt", topics[name]))
        held += len(topics[name])
        if held > size:
            break
    return Corpus(tuple(out), {})


@functools.cache
def trained(vocab: int = 600, **options) -> Trained:
    """A tokenizer of these texts."""
    return train(corpus(), TokenizerConfig(vocab=vocab, **options))


def learned_by_loops(rows: list[list[int]], names: dict[int, str], count: int) -> list[tuple[str, str]]:
    """The first merges over rows of ids, by the definition: the commonest pair, of equal ones that of the smallest ids."""
    names, out = dict(names), []
    order = {i: n for n, i in enumerate(sorted(names))}
    rows = [[order[i] for i in row] for row in rows]
    spelled = {order[i]: s for i, s in names.items()}
    by_text = {s: i for i, s in spelled.items()}
    while len(out) < count:
        pairs = Counter(pair for row in rows for pair in pairwise(row))
        if not pairs or max(pairs.values()) < 2:
            break
        pair = min(pairs, key=lambda p: (-pairs[p], p))
        out.append((spelled[pair[0]], spelled[pair[1]]))
        text = spelled[pair[0]] + spelled[pair[1]]
        new = len(spelled)
        spelled[new] = text
        by_text.setdefault(text, new)
        rows = [replaced(row, pair, new) for row in rows]
    return out


def replaced(row: list[int], pair: tuple[int, int], new: int) -> list[int]:
    out, i = [], 0
    while i < len(row):
        if tuple(row[i : i + 2]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(row[i])
            i += 1
    return out
