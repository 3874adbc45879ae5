"""A byte-pair vocabulary as rows of merges, and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer

Merge = tuple[str, str]


def merges_of(tokenizer: Tokenizer) -> list[Merge]:
    """The merges of a BPE in their order."""
    return [_pair(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]]


def parts_of(tokenizer: Tokenizer) -> dict[str, int]:
    """The vocabulary of a model, without added tokens that it does not hold."""
    vocabulary: dict[str, int] = json.loads(tokenizer.to_str())["model"]["vocab"]
    return vocabulary


def _pair(merge: Any) -> Merge:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def grown(
    vocabulary: dict[str, int], merges: Iterable[Merge], size: int, first: int | None = None
) -> tuple[dict[str, int], list[Merge]]:
    """A vocabulary with the tokens of further merges behind it, until it has so many; and the merges that were taken.

    A merge whose token is there already, made of other parts, stays a merge and takes no id.

    Args:
        first: the id of the first new token; one behind the largest by default.
    """
    out, taken = dict(vocabulary), []
    following = max(vocabulary.values(), default=-1) + 1 if first is None else first
    for left, right in merges:
        if left + right not in out:
            if len(out) >= size:
                break
            out[left + right] = following
            following += 1
        taken.append((left, right))
    return out, taken


def with_model(tokenizer: Tokenizer, vocabulary: dict[str, int], merges: Sequence[Merge], cut: Any = None) -> Tokenizer:
    """A tokenizer with another BPE vocabulary, and another pre-tokenizer where one is given.

    Added tokens that are not in the vocabulary are written into it under their ids: ``tokenizers`` would number them anew
    behind a vocabulary that has grown.
    """
    state = json.loads(tokenizer.to_str())
    own = {t["content"]: t["id"] for t in state["added_tokens"]}
    clash = {i for i in own.values() if i in vocabulary.values()} - {vocabulary[s] for s in own if s in vocabulary}
    if clash:
        raise ValueError(f"ids {sorted(clash)[:5]} are those of added tokens, and cannot be given to others")
    state["model"]["vocab"] = vocabulary | own
    state["model"]["merges"] = [list(m) for m in merges]
    made = Tokenizer.from_str(json.dumps(state))
    if cut is not None:
        made.pre_tokenizer = cut
    return made
