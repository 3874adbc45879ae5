"""What a tokenizer is trained to be: one frozen recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tokensieve.core.options import check_options, option

ALGORITHMS = ("bpe", "unigram", "wordpiece")
BARRIERS = ("words", "newline", "punctuation", "none")
NUMBERS = ("r2l", "l2r", "single", "comma", "free")
BYTES = 256


@dataclass(frozen=True)
class TokenizerConfig:
    """The recipe of a tokenizer.

    BPE and Unigram run over the bytes of UTF-8, all 256 of which have a token, so that every text comes back as it was.
    WordPiece is BERT's, over the characters of the text, and loses spaces.
    """

    vocab: int = option(16384, "tokens, special ones and bytes included", lo=2, unit="tokens")
    algorithm: str = option("bpe", "what learns the vocabulary", choices=ALGORITHMS)
    superwords: float = option(
        0.0,
        "learned across words, after the others (SuperBPE, arXiv 2503.13423); BPE only",
        lo=0.0,
        below=1.0,
        unit="share",
    )
    barriers: tuple[str, ...] = option(
        ("words", "newline"), "what no token goes across; superwords go across words alone", choices=BARRIERS
    )
    numbers: str = option(
        "r2l",
        "how digits are cut: triples from the right or from the left, single, triples from the right with commas put between "
        "them (which decoding leaves), or as the text has them",
        choices=NUMBERS,
    )
    raw: bool = option(
        False, "over raw bytes, each the character of Latin-1 of its number, with no UTF-8 step; BPE only"
    )
    special: tuple[str, ...] = option(
        ("<|endoftext|>",), "special tokens, which get the first ids; the first of them ends a text"
    )
    sample: int = option(0, "bytes of text to learn from, of documents drawn at random; all if 0", lo=0, unit="bytes")
    seed: int = option(0, "of that draw", lo=0)

    def __post_init__(self) -> None:
        check_options(self)
        if "none" in self.barriers and len(self.barriers) > 1:
            raise ValueError(f"barriers={self.barriers}: 'none' stands alone")
        object.__setattr__(self, "barriers", tuple(b for b in BARRIERS if b in self.barriers))
        least = BYTES + len(self.special) if self.algorithm != "wordpiece" else 2 + len(self.special)
        if self.vocab <= least:
            raise ValueError(
                f"vocab={self.vocab}; it must be above {least}: every byte and every special token has a token of its own, and "
                "what is learned comes on top"
            )
        if self.algorithm != "bpe" and (self.superwords or self.raw):
            raise ValueError(
                f"algorithm={self.algorithm!r}: superwords and raw bytes are BPE's; leave them, or take algorithm='bpe'"
            )
        if self.superwords and "words" not in self.barriers:
            raise ValueError(
                f"superwords={self.superwords} with barriers={self.barriers}: superwords come after what is learned within "
                "words, so that 'words' must be a barrier; without it, tokens go across words from the start"
            )
        if self.raw and (self.superwords or self.numbers != "free" or self.barriers != ("none",)):
            raise ValueError(
                f"raw=True with superwords={self.superwords}, numbers={self.numbers!r}, barriers={self.barriers}: raw bytes have "
                "neither words nor numbers nor lines; give superwords=0, numbers='free', barriers=('none',)"
            )
        if len(set(self.special)) < len(self.special) or "" in self.special:
            raise ValueError(f"special={self.special}: each must be a text of its own")

    def json(self) -> dict[str, Any]:
        """The recipe as plain values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
