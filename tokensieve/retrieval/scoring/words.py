"""Words: the terms of a text that are found by letters, and phrases that must stand in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from unicodedata import normalize

UNSPACED = (
    "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese: no blanks between words."""
TOKEN = re.compile(rf"[{UNSPACED}]+|(?:(?![{UNSPACED}])\w)+(?:[.:]{{1,2}}(?:(?![{UNSPACED}])\w)+)*")
PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\dA-Z_]+|\d+|[A-Z]")
PHRASE = re.compile(r'"([^"]*)"')
BLANKS = re.compile(r"\s+")


def terms(text: str, query: bool = False) -> Iterator[str]:
    """The terms of a text in their order: words as they are, without case; identifiers whole and by their parts (snake, camel,
    dots); what is written without blanks by pairs of characters.

    Args:
        query: of a query; a text has its single characters besides its pairs, a query only where it has no pair.
    """
    for found in TOKEN.finditer(normalize("NFKC", text)):
        token = found.group()
        if re.match(rf"[{UNSPACED}]", token):
            yield from (token[i : i + 2] for i in range(len(token) - 1))
            if not query or len(token) == 1:
                yield from token
            continue
        whole = token.casefold()
        yield whole
        parts = [part.casefold() for part in PART.findall(token)]
        if len(parts) > 1:
            yield from parts
            # What is between dots is an identifier of its own.
            yield from (
                name.casefold() for name in re.split(r"[.:]+", token) if name != token and len(PART.findall(name)) > 1
            )


def phrases(query: str) -> list[str]:
    """What stands in double quotes, and must stand in a passage."""
    return [said for said in (folded(m) for m in PHRASE.findall(query)) if said]


def unquoted(query: str) -> str:
    """A query without the quotes of its phrases; its characters stay where they are."""
    return PHRASE.sub(r" \1 ", query)


def folded(text: str) -> str:
    """A text as phrases are compared: without case, blanks as one."""
    return BLANKS.sub(" ", normalize("NFKC", text).casefold()).strip()
