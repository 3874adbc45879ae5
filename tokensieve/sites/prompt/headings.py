"""Headings: lines that say what the sentences below them are about, and that enter a prompt with these."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokensieve.sites.prompt.cutting import ALONE, FENCE, ITEM, Cut
from tokensieve.sites.prompt.protect import MARKERS

MARKED = re.compile(r"\s*#{1,6}\s")
"""A heading of Markdown."""
ENDED = re.compile(r"[.!?;,…。！？；，、।؟]['\"’”»」』)\]]*$")
"""The end of a sentence, or of a part of one."""
UNDER = re.compile(r"\s*([-=~^*])\1{2,}\s*")
"""The line below a heading that is underlined."""
LONGEST = 120
"""Characters of a heading."""


def headings(cut: Cut) -> list[int]:
    """For every sentence of a text its heading, the nearest above it in its passage; -1 where there is none, and for headings.

    A heading is marked as one (``#``), or is a short line that stands alone, or underlined, and ends no sentence (a title, the
    signature of a function): not an item, a row of a table, code or a chat marker, nor what nothing stands below.
    """
    units, passages = cut.units(), cut.passages
    titles = [_title(cut, units, passages, i) for i in range(len(units))]
    out, last, fenced = [-1] * len(units), -1, False
    for i, passage in enumerate(passages):
        if i == 0 or passages[i - 1] != passage:
            last, fenced = -1, False
        if FENCE.match(units[i]):
            fenced ^= units[i].count("\n") == 0
        elif titles[i] and not fenced:
            last = i
            continue
        out[i] = last
    return out


def _title(cut: Cut, units: Sequence[str], passages: Sequence[int], i: int) -> bool:
    unit = units[i]
    if "\n" in unit or len(unit) > LONGEST or not any(c.isalpha() for c in unit):
        return False
    if MARKED.match(unit):
        return True
    if ALONE.match(unit) or ITEM.match(unit) or MARKERS.match(unit) or ENDED.search(unit):
        return False
    first = i == 0 or passages[i - 1] != passages[i]
    last = i + 1 == len(units) or passages[i + 1] != passages[i]
    return (first or _apart(cut, i - 1)) and not last and (_apart(cut, i) or UNDER.fullmatch(units[i + 1]) is not None)


def _apart(cut: Cut, i: int) -> bool:
    """Whether there is a blank line between a unit and the next."""
    return cut.text.count("\n", cut.spans[i][1], cut.spans[i + 1][0]) > 1


def headed(order: Sequence[int], above: Sequence[int]) -> list[int]:
    """Units in order, with each heading behind the first of its sentences that is among them, wherever it stood itself.

    Args:
        above: of :func:`headings`.
    """
    belongs = {above[unit] for unit in order} & set(order)
    out, entered = list[int](), set[int]()
    for unit in order:
        if unit in belongs:
            continue
        out.append(unit)
        heading = above[unit]
        if heading in belongs and heading not in entered:
            entered.add(heading)
            out.append(heading)
    return out
