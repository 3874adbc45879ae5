"""One report of several tokenizers on the same texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tokenizers import Tokenizer

from tokensieve.text.corpus import Corpus
from tokensieve.text.encoding import Coder
from tokensieve.text.measure import Measured, measure
from tokensieve.text.parallel import Parallel
from tokensieve.text.reach import Reach, reach


@dataclass(frozen=True)
class Row:
    """What is reported of one tokenizer.

    Attributes:
        name: as it was given; note: which encoder read the texts; vocabulary: ids, those without a token included.
        measured: on the texts; reach: of the vocabulary.
        premium: for each language its tokens over those of the base for the same content.
    """

    name: str
    note: str
    vocabulary: int
    measured: Measured
    reach: Reach
    premium: dict[str, float]


@dataclass(frozen=True)
class Report:
    """Several tokenizers on the same texts.

    Attributes:
        rows: one a tokenizer, in the order given.
        files, bytes: of the texts; skipped: files that were passed over, and why.
        parallel: where the premium comes from; few: languages with too few texts for one, and how many.
    """

    rows: tuple[Row, ...]
    files: int
    bytes: int
    skipped: dict[str, str]
    base: str
    parallel: str
    few: dict[str, int]

    def json(self) -> dict[str, Any]:
        """The report as plain values; numbers that are none are null."""
        rows = []
        for row in self.rows:
            plain = asdict(row)
            plain["measured"] |= {
                name: getattr(row.measured, name)
                for name in ("bytes_per_token", "pieces_per_word", "pieces_per_number")
            }
            plain["measured"].pop("lengths")
            rows.append(plain)
        return _finite(asdict(self) | {"rows": rows})


def report(
    tokenizers: Sequence[tuple[str, Any]],
    corpus: Corpus,
    parallel: Parallel | None = None,
    step: Callable[[str, int, int], object] = lambda what, done, of: None,
) -> Report:
    """Measure tokenizers on a corpus, on their own vocabularies, and on parallel texts.

    Args:
        tokenizers: (name, anything that :func:`~tokensieve.text.loading.open_tokenizer` takes); no name twice.
        step: called with what is done, how much of it is, and of how much.

    Raises:
        ValueError: none is given, one has no token, or a name stands twice.
    """
    if not tokenizers:
        raise ValueError("no tokenizer to report on; give at least one")
    for name, _ in tokenizers:
        if sum(name == other for other, _ in tokenizers) > 1:
            raise ValueError(f"tokenizer {name!r} is given twice")
    coders = [Coder(name, source) for name, source in tokenizers]
    size, done = sum(len(d.text) for d in corpus.documents), 0

    def read(characters: int) -> None:
        nonlocal done
        done += characters
        step("texts", done, size)

    measured = measure(coders, corpus.documents, read)
    rows = []
    for i, (coder, of_text) in enumerate(zip(coders, measured, strict=True)):
        share = premiums(coder.tokenizer, parallel) if parallel else {}
        found = reach(coder.tokenizer, coder.vocabulary)
        rows.append(Row(coder.name, coder.note, len(coder.vocabulary), of_text, found, share))
        step("vocabularies and languages", i + 1, len(coders))
    return Report(
        tuple(rows), len(corpus.documents), corpus.size, corpus.skipped, parallel.base if parallel else "",
        parallel.source if parallel else "", parallel.few if parallel else {},
    )  # fmt: skip


def premiums(tokenizer: Tokenizer, parallel: Parallel) -> dict[str, float]:
    """For each language its tokens over those of the base, each text encoded by itself (arXiv 2305.15425)."""
    base = sorted({text for _, own in parallel.pairs.values() for text in own})
    cost = dict(zip(base, _lengths(tokenizer, base), strict=True))
    return {
        name: sum(_lengths(tokenizer, texts)) / max(sum(cost[t] for t in own), 1)
        for name, (texts, own) in parallel.pairs.items()
    }


def _lengths(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    return [len(e) for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
