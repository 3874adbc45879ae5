"""The columns of a report, one list for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokensieve.text.report import Row


@dataclass(frozen=True)
class Column:
    """A column: its head, what it shows of a row, and what it means."""

    title: str
    show: Callable[[Row], str]
    meaning: str


COLUMNS = (
    Column("vocabulary", lambda r: f"{r.vocabulary:,}", "ids, those without a token included"),
    Column("tokens", lambda r: f"{r.measured.tokens:,}", "of all texts, without the special ones that a prompt adds"),
    Column("bytes/token", lambda r: f"{r.measured.bytes_per_token:.3f}", "bytes of UTF-8 for each token: more is cheaper"),
    Column("pieces/word", lambda r: f"{r.measured.pieces_per_word:.3f}",
           "tokens that hold a part of a word (a run of letters), on average"),
    Column("pieces/number", lambda r: f"{r.measured.pieces_per_number:.3f}", "likewise of runs of digits"),
    Column("odd numbers", lambda r: f"{r.measured.inconsistent:.1%}",
           "numbers that are cut otherwise than most of as many digits: 0 where digits always split alike"),
    Column("Renyi", lambda r: f"{r.measured.renyi:.3f}", "how evenly tokens are used, at order 2.5; 1 is evenly"),
    Column("unreachable", lambda r: f"{len(r.reach.unreachable):,}", "tokens of whole characters that no text is encoded to"),
    Column("incomplete", lambda r: f"{len(r.reach.incomplete):,}",
           "tokens of several bytes that are no whole characters: alone they decode to the replacement character"),
    Column("lost", lambda r: f"{len(r.measured.lost):,}", "documents that decoding does not give back as they were"),
)  # fmt: skip
