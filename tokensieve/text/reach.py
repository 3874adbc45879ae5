"""Which tokens text can reach: those that no text is ever encoded to only take room."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer

from tokensieve.text.vocabulary import Vocabulary

LETTERS = 64
"""Letters of the vocabulary that a token is tried behind, at most; only what none has reached yet is tried again."""


@dataclass(frozen=True)
class Reach:
    """What of a vocabulary text can reach.

    Attributes:
        unreachable: ids of tokens that are whole characters and that encoding their text, alone or after a letter, never gives.
        incomplete: ids of tokens of several bytes that are no whole characters of UTF-8.
        single: ids of single bytes that are no character, or one that has another token.
        special: ids of special tokens; unused: ids below the largest that no token has.
    """

    unreachable: tuple[int, ...]
    incomplete: tuple[int, ...]
    single: tuple[int, ...]
    special: tuple[int, ...]
    unused: tuple[int, ...]


def reach(tokenizer: Tokenizer, vocabulary: Vocabulary | None = None) -> Reach:
    """Sort a vocabulary by what text reaches; one pass over its strings, and further ones over what is left."""
    vocabulary = vocabulary or Vocabulary.of(tokenizer)
    plain = list(vocabulary.plain())
    broken = [i for i in plain if vocabulary.texts[i] is None]
    texts = {i: text for i in plain if (text := vocabulary.texts[i]) is not None}
    left = _missed(tokenizer, texts, [""])
    # A decoder drops the space before the first word, and an encoder of that kind adds one.
    unspaced = {i: t[1:] for i, t in left.items() if t[:1] == " " and len(t) > 1}
    found = unspaced.keys() - _missed(tokenizer, unspaced, [""]).keys()
    left = _missed(tokenizer, {i: t for i, t in left.items() if i not in found}, _letters(vocabulary))
    return Reach(
        unreachable=tuple(i for i in left if len(vocabulary.bytes[i] or b"") > 1),
        incomplete=tuple(i for i in broken if len(vocabulary.bytes[i] or b"") > 1),
        single=tuple(sorted(i for i in [*broken, *left] if len(vocabulary.bytes[i] or b"") == 1)),
        special=tuple(sorted(vocabulary.special)),
        unused=tuple(i for i, s in enumerate(vocabulary.strings) if s is None),
    )


def _letters(vocabulary: Vocabulary) -> list[str]:
    """Letters that are tokens, Latin ones first."""
    stripped = {t.strip() for i in vocabulary.plain() if (t := vocabulary.texts[i]) is not None and len(t) <= 2}
    return sorted((t for t in stripped if len(t) == 1 and t.isalpha()), key=lambda t: (ord(t) > 0x7F, t))[:LETTERS]


def _missed(tokenizer: Tokenizer, texts: dict[int, str], before: Iterable[str]) -> dict[int, str]:
    """The texts whose token does not end their encoding behind any of what may stand before."""
    for prefix in before:
        if not texts:
            break
        encoded = tokenizer.encode_batch_fast([prefix + t for t in texts.values()], add_special_tokens=False)
        texts = {i: t for (i, t), e in zip(texts.items(), encoded, strict=True) if i not in e.ids[-1:]}
    return texts
