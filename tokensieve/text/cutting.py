"""How text is cut before tokens are made: what no token goes across."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tokensieve.text.config import TokenizerConfig

LETTERS = r"[\p{L}\p{M}]"
OTHERS = r"[^\s\p{L}\p{M}\p{N}]"
WORDS = (
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{M}}\p{{N}}]?{LETTERS}+|\p{{N}}+| ?{OTHERS}+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Words with the space before them, runs of punctuation, of digits and of spaces: GPT-4's, with marks among letters."""
CUTS = {
    "newline": r"[^\r\n]*[\r\n]+|[^\r\n]+",
    "punctuation": rf" ?{OTHERS}+",
    "words": WORDS,
}
NUMBERS = {
    # What looks ahead without end takes time quadratic in the digits; beyond 60 of them triples count from the left.
    "r2l": r"\p{N}{1,3}(?=(?:\p{N}{3}){0,20}(?!\p{N}))|\p{N}{1,3}",
    "l2r": r"\p{N}{1,3}",
    "single": r"\p{N}",
    "comma": r"\p{N}{1,3}",
}
COMMAS = r"(?<=\p{N})(?=(?:\p{N}{3}){1,20}(?!\p{N}))"


def cut(numbers: str, barriers: Sequence[str]) -> Any:
    """The pre-tokenizer over bytes that cuts numbers first, then at barriers."""
    parts: list[Any] = [pre_tokenizers.Split(Regex(NUMBERS[numbers]), "isolated")] if numbers in NUMBERS else []
    parts += [
        pre_tokenizers.Split(Regex(CUTS[name]), "isolated")
        for name in ("newline", "punctuation", "words")
        if name in barriers
    ]
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def untrained(config: TokenizerConfig, final: bool = False) -> Tokenizer:
    """A tokenizer of this recipe that has learned nothing.

    Args:
        final: cut as the finished tokenizer cuts, where superwords go across words; or as for what is learned before them.
    """
    if config.algorithm == "wordpiece":
        return _wordpiece(config)
    tokenizer = Tokenizer(models.BPE() if config.algorithm == "bpe" else models.Unigram())
    if config.raw:
        tokenizer.decoder = decoders.Fuse()
        return tokenizer
    across = final and config.superwords > 0
    barriers = [b for b in config.barriers if not (across and b == "words")]
    tokenizer.pre_tokenizer = cut(config.numbers, barriers)
    tokenizer.decoder = decoders.ByteLevel()
    if config.numbers == "comma":
        tokenizer.normalizer = normalizers.Replace(Regex(COMMAS), ",")
    return tokenizer


def _wordpiece(config: TokenizerConfig) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    numbers = [pre_tokenizers.Split(Regex(NUMBERS[config.numbers]), "isolated")] if config.numbers in NUMBERS else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*numbers, pre_tokenizers.BertPreTokenizer()])
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer
