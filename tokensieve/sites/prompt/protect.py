"""Protect: the stretches of a text that must stay, by name, by pattern, by their words or by their place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tokensieve.core.errors import near

Span = tuple[int, int]
Protected = str | re.Pattern[str] | Span
"""A name of ``PATTERNS``, words of the text, a pattern, or the place of a stretch: (start, end) in characters."""

PATTERNS = {
    "numbers": re.compile(r"[^\W_]*\d+(?:[.,:/_\-]?\w*\d\w*)*%?"),
    "code": re.compile(r"^(```|~~~).*?^\1[^\n]*$|(?<!`)`[^`\n]+`(?!`)", re.DOTALL | re.MULTILINE),
    "quotes": re.compile(
        r'"[^"\n]{1,400}"|“[^”\n]{1,400}”|„[^“”\n]{1,400}[“”]|«[^»\n]{1,400}»|「[^」\n]{1,400}」|『[^』\n]{1,400}』'
    ),
    "urls": re.compile(r"\b(?:https?|ftp)://[^\s<>\"]+|\b[\w.+-]+@[\w-]+\.[\w.]+"),
}
"""Numbers with what is written together with them (versions, ids, dates); fenced and inline code; quoted text; addresses."""

MARKERS = re.compile(r"<\|[^|<>\n]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>")
"""What chat templates mark turns with."""


def protected(text: str, starts: Sequence[int], what: Iterable[Protected]) -> list[Span]:
    """The protected stretches of a text in their order, overlapping ones joined; chat markers are always among them.

    Args:
        starts: where its passages begin; names and patterns are looked for in each by itself.

    Raises:
        ValueError: a name that is none and does not stand in the text, or a place outside it.
    """
    spans = _found(text, starts, MARKERS)
    for one in what:
        spans += _spans(text, starts, one)
    out: list[Span] = []
    for a, b in sorted(s for s in spans if s[0] < s[1]):
        if out and a < out[-1][1]:
            out[-1] = (out[-1][0], max(b, out[-1][1]))
        else:
            out.append((a, b))
    return out


def _spans(text: str, starts: Sequence[int], one: Protected) -> Sequence[Span]:
    if isinstance(one, tuple):
        if not 0 <= one[0] <= one[1] <= len(text):
            raise ValueError(f"protect holds the place {one}; the text has characters 0 to {len(text)}")
        return [one]
    if isinstance(one, re.Pattern):
        return _found(text, starts, one)
    if one in PATTERNS:
        return _found(text, starts, PATTERNS[one])
    found = [m.span() for m in re.finditer(re.escape(one), text)] if one else []
    if not found:
        raise ValueError(
            f"protect={one!r} is neither one of {', '.join(PATTERNS)} nor does it stand in the text; near names: "
            f"{near(one, PATTERNS)}"
        )
    return found


def _found(text: str, starts: Sequence[int], pattern: re.Pattern[str]) -> list[Span]:
    ends = [*starts[1:], len(text)]
    return [m.span() for a, b in zip(starts, ends, strict=True) for m in pattern.finditer(text, a, b)]
