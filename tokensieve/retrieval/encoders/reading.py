"""Reading: texts as the tokens that an encoder is given, with the characters and the word behind each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokensieve.retrieval.sources.passages import is_text


@dataclass(frozen=True)
class Reading:
    """How texts are put in front of the model; the defaults read them as they are.

    Attributes:
        query_marker, document_marker: tokens of the vocabulary that stand behind the first token (ColBERT's [Q] and [D]).
        query_prompt, document_prompt: text in front of the text; its vectors are kept, without spans.
        query_length, document_length: tokens at most, markers included; longer texts lose their end.
        expand: fill queries up to their length with mask tokens, whose vectors are kept (ColBERT).
        attend_expansion: whether other tokens attend to those.
        skip: words whose vectors are left out of documents (ColBERT: punctuation).
        pooling: "mean", "cls", "max" or "last", for the single vector of a text; None for models that make none.
    """

    query_marker: str | None = None
    document_marker: str | None = None
    query_prompt: str = ""
    document_prompt: str = ""
    query_length: int = 256
    document_length: int = 256
    expand: bool = False
    attend_expansion: bool = False
    skip: tuple[str, ...] = ()
    pooling: str | None = None

    def __post_init__(self) -> None:
        for name in ("query_length", "document_length"):
            if getattr(self, name) < 4:
                raise ValueError(f"{name}={getattr(self, name)}; a text needs at least 4 tokens, markers included")
        if self.pooling not in (None, "mean", "cls", "max", "last"):
            raise ValueError(f"pooling={self.pooling!r}; it must be 'mean', 'cls', 'max', 'last' or None")


@dataclass(frozen=True)
class TokenizedText:
    """One text as the model reads it."""

    ids: list[int]
    spans: list[tuple[int, int]]
    words: list[int]
    stops: list[bool]
    attended: int


@dataclass(frozen=True)
class Size:
    """How many tokens the whole of a text has, markers included, and for how many of them the vocabulary has no word."""

    tokens: int
    unknown: int


class Reader:
    """A tokenizer and how it is used.

    Raises:
        ValueError: a slow tokenizer, markers that its vocabulary lacks, no mask token to fill queries with.
    """

    def __init__(self, tokenizer: Any, reading: Reading):
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(f"{type(tokenizer).__name__} is no fast tokenizer; spans of tokens are not known")
        if reading.expand and tokenizer.mask_token_id is None:
            raise ValueError(f"expand=True fills queries with mask tokens; {type(tokenizer).__name__} has none")
        self.tokenizer, self.reading = tokenizer, reading
        self._markers = {True: self._marker(reading.query_marker), False: self._marker(reading.document_marker)}
        known = tokenizer.get_vocab()
        self.skipped = sorted({known[word] for word in reading.skip if word in known})

    def _marker(self, token: str | None) -> int | None:
        if not token:
            return None
        index = self.tokenizer.convert_tokens_to_ids(token)
        if index is None or (index == self.tokenizer.unk_token_id and token != self.tokenizer.unk_token):
            raise ValueError(f"the marker {token!r} is not in the vocabulary of this tokenizer")
        return int(index)

    @property
    def unknown(self) -> int | None:
        """The token that stands for what the vocabulary has no word for; None where it has words for everything."""
        return self.tokenizer.unk_token_id

    def sizes(self, texts: Sequence[str], query: bool) -> list[Size]:
        """The tokens that texts would have if none lost its end."""
        prompt = self.reading.query_prompt if query else self.reading.document_prompt
        made = self.tokenizer(
            [prompt + text for text in texts], truncation=False, return_attention_mask=False, verbose=False
        )
        more = self._markers[query] is not None
        return [Size(len(ids) + more, ids.count(self.unknown)) for ids in made["input_ids"]] if texts else []

    def read(self, texts: Sequence[str], query: bool) -> list[TokenizedText]:
        """Texts as tokens."""
        for i, text in enumerate(texts):
            if not is_text(text):
                what = f"a {type(text).__name__}" if not isinstance(text, str) else "no Unicode"
                raise ValueError(f"text {i} is {what}; this encoder reads strings of Unicode")
        if not texts:
            return []
        how, marker = self.reading, self._markers[query]
        prompt = how.query_prompt if query else how.document_prompt
        length = how.query_length if query else how.document_length
        made = self.tokenizer(
            [prompt + text for text in texts],
            truncation=True,
            max_length=length - (marker is not None),
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        return [
            self._text(
                text, made["input_ids"][i], made["offset_mapping"][i], made.word_ids(i), len(prompt), marker, query
            )
            for i, text in enumerate(texts)
        ]

    def _text(
        self,
        text: str,
        ids: list[int],
        offsets: list[tuple[int, int]],
        word_ids: list[int | None],
        prompt: int,
        marker: int | None,
        query: bool,
    ) -> TokenizedText:
        spans = [(a - prompt, b - prompt) if b > a >= prompt else (-1, -1) for a, b in offsets]
        bounds: dict[int, tuple[int, int]] = {}
        for (a, b), word in zip(spans, word_ids, strict=True):
            if a >= 0 and word is not None:
                first, last = bounds.get(word, (a, b))
                bounds[word] = (min(first, a), max(last, b))
        named = {word: text[a:b].strip().casefold() for word, (a, b) in bounds.items()}
        numbers: dict[str, int] = {}
        for name in named.values():
            numbers.setdefault(name, len(numbers))
        valid = [w if a >= 0 else None for (a, _), w in zip(spans, word_ids, strict=True)]
        words = [-1 if w is None else numbers[named[w]] for w in valid]
        stops = [w is not None and _says_little(named[w]) for w in valid]
        ids = list(ids)
        if marker is not None:
            ids.insert(1, marker)
            spans.insert(1, (-1, -1))
            words.insert(1, -1)
            stops.insert(1, False)
        attended, more = len(ids), 0
        if query and self.reading.expand:
            more = self.reading.query_length - len(ids)
            attended = self.reading.query_length if self.reading.attend_expansion else attended
        return TokenizedText(
            ids + more * [self.tokenizer.mask_token_id],
            spans + more * [(-1, -1)],
            words + more * [-1],
            stops + more * [False],
            attended,
        )


def _says_little(word: str) -> bool:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return word in ENGLISH_STOP_WORDS or not any(c.isalnum() for c in word)
