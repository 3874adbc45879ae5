"""More tokens behind those of a byte-pair tokenizer: every old id and merge stays."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

from tokensieve.text.cutting import CUTS, NUMBERS
from tokensieve.text.merges import grown, merges_of, parts_of, with_model
from tokensieve.text.superwords import learn
from tokensieve.text.vocabulary import flatten

PROBE = "1234567"
CUT_AS = {
    ("123", "456", "7"): NUMBERS["l2r"],
    ("1", "234", "567"): NUMBERS["r2l"],
    tuple(PROBE): NUMBERS["single"],
}
"""How a tokenizer cuts digits, by what it makes of some."""


@dataclass(frozen=True)
class Extended:
    """A tokenizer with more tokens.

    Attributes:
        tokenizer: it; added: ids of its new tokens; parts: for each, the old ids that its text was.
    """

    tokenizer: Tokenizer
    added: tuple[int, ...]
    parts: tuple[tuple[int, ...], ...]


def extend(
    tokenizer: Tokenizer, texts: Iterable[str], add: int, words_only: bool = False, show: bool = False
) -> Extended:
    """Learn further merges from texts, over what a tokenizer makes of them.

    Args:
        add: how many tokens.
        words_only: cut texts as the tokenizer does, so that no new token goes across words; otherwise they go across words
            within a line, and the tokenizer cuts only lines, and digits as before.

    Raises:
        ValueError: the tokenizer is no BPE, ``add`` is below 1, or the texts have no so many pairs that occur twice; it says
            how many there were.
    """
    state = json.loads(tokenizer.to_str())
    kind = state["model"]["type"]
    if kind != "BPE":
        raise ValueError(
            f"the tokenizer is {kind}: its tokens are not made of one another by merges, so that none can follow; extend takes "
            "BPE (for others, train one on your text and transplant the model to it)"
        )
    if state["model"].get("dropout"):
        raise ValueError(
            f"the tokenizer drops merges at random (dropout={state['model']['dropout']}); set it to null first"
        )
    if add < 1:
        raise ValueError(f"add={add}; it must be at least 1")
    skip = frozenset(t["id"] for t in state["added_tokens"])
    old = tokenizer.get_vocab(with_added_tokens=True)
    cut = within_words(tokenizer) if words_only else across_words(tokenizer)
    base = with_model(tokenizer, parts_of(tokenizer), merges_of(tokenizer), cut)
    found = learn(base, texts, add, skip, show)
    first = max(old.values()) + 1
    vocabulary, taken = grown(old, found, len(old) + add, first)
    count = len(vocabulary) - len(old)
    if count < add:
        raise ValueError(
            f"add={add:,}, but the texts hold only {count:,} pairs of tokens that occur twice; give add={count}, or more text"
        )
    made = with_model(base, vocabulary, [*merges_of(tokenizer), *taken])
    spelled: dict[str, tuple[int, ...]] = {s: (i,) for s, i in old.items()}
    for left, right in taken:
        spelled.setdefault(left + right, spelled[left] + spelled[right])
    added = tuple(range(first, first + count))
    strings = {i: s for s, i in vocabulary.items()}
    return Extended(made, added, tuple(spelled[strings[i]] for i in added))


def across_words(tokenizer: Tokenizer) -> Any:
    """A pre-tokenizer that cuts lines, and digits as this tokenizer does."""
    out = [*_digits(tokenizer), pre_tokenizers.Split(Regex(CUTS["newline"]), "isolated")]
    for part in flatten(json.loads(tokenizer.to_str())["pre_tokenizer"]):
        if part["type"] == "ByteLevel":
            out.append(pre_tokenizers.ByteLevel(add_prefix_space=part["add_prefix_space"], use_regex=False))
        if part["type"] == "Metaspace":
            out.append(pre_tokenizers.Metaspace(part["replacement"], part["prepend_scheme"], split=False))
    return pre_tokenizers.Sequence(out)


def within_words(tokenizer: Tokenizer) -> Any:
    """The tokenizer's own pre-tokenizer; where it has none (Llama 2), one that cuts before the spaces of words, and digits."""
    if tokenizer.pre_tokenizer is not None:
        return tokenizer.pre_tokenizer
    return pre_tokenizers.Sequence([*_digits(tokenizer), pre_tokenizers.Split(Regex("[▁ ]+[^▁ ]*|[^▁ ]+"), "isolated")])


def _digits(tokenizer: Tokenizer) -> list[Any]:
    """What cuts digits as this tokenizer does, by its rules or by having no token of several."""
    before = tokenizer.pre_tokenizer
    pieces = tuple(p for p, _ in before.pre_tokenize_str(PROBE)) if before is not None else ()
    digits = CUT_AS.get(pieces)
    if digits is None and before is not None and len(before.pre_tokenize_str(f"a{PROBE}")) > 1:
        digits = r"\p{N}+"
    if digits is None and sum(any(c.isdigit() for c in t) for t in tokenizer.encode(PROBE).tokens) == len(PROBE):
        digits = NUMBERS["single"]
    return [pre_tokenizers.Split(Regex(digits), "isolated")] if digits else []
