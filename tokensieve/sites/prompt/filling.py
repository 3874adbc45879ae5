"""Filling: units enter a prompt in their order for as long as the text they make stays within a budget of tokens.

A tokenizer may make more or fewer tokens of a text than of its parts, so that what decides is the text as it leaves.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokensieve.sites.prompt.clusters import WORD, Clusters
from tokensieve.sites.prompt.counting import TokenCounter
from tokensieve.sites.prompt.cutting import Cut
from tokensieve.sites.prompt.protect import Span

AROUND = 100
"""Characters on both sides of a unit that may change how many tokens it takes."""
SAVED = 4
"""Tokens that a unit may take less among others than by itself."""


@dataclass(frozen=True)
class Filled:
    """What stays of a text.

    Attributes:
        spans: its stretches, in order.
        notes: what had to be done otherwise than asked, a sentence each.
    """

    spans: list[Span]
    notes: list[str]


def costs_of(cut: Cut, count: TokenCounter) -> list[int]:
    """About what each unit takes: its tokens with the blanks behind it."""
    ends = [a for a, _ in cut.spans[1:]] + [b for _, b in cut.spans[-1:]]
    return count.each([cut.text[a:end] for (a, _), end in zip(cut.spans, ends, strict=True)])


def fill(
    cut: Cut, order: Sequence[int], must: Sequence[int], costs: Sequence[int], room: int, count: TokenCounter
) -> Filled:
    """Units of a text within a budget: ``must``, then others in ``order`` as long as they fit; one that does not is passed over.

    Where not even one fits, the first in order is cut to the words that do.

    Args:
        must: units in the order of the text; costs: of :func:`costs_of`; room: the budget.

    Raises:
        ValueError: the budget is below what must stay, or below the smallest piece; it says what is needed.
    """
    held = count(cut.join(must)) if must else 0
    if held > room:
        raise ValueError(
            f"keep={room} tokens; what is protected takes {held}: allow at least that many, or protect less"
        )
    picks, left = list[int](), room - held
    for unit in order:
        if costs[unit] <= left:
            picks.append(unit)
            left -= costs[unit]
    while (over := count(cut.join(sorted({*must, *picks}))) - room) > 0:
        while over > 0 and picks:
            over -= max(1, costs[picks.pop()])
    kept = _completed(cut, order, sorted({*must, *picks}), costs, room, count)
    notes, stay = list[str](), set(kept)
    first = next((unit for unit in order if unit not in stay), None)
    if not kept and first is not None:
        span, size = _begun(cut.text, cut.spans[first], room, count)
        return Filled(
            [span], [f"no unit fits into {room} tokens: the first choice, of {size}, is cut to its first words"]
        )
    if first is not None and costs[first] > room - held:
        notes.append(
            f"a unit of {costs[first]} tokens would come first and does not fit into {room}: it is passed over"
        )
    return Filled(cut.left(kept), notes)


def _completed(
    cut: Cut, order: Sequence[int], kept: list[int], costs: Sequence[int], room: int, count: TokenCounter
) -> list[int]:
    """Units that stay, with all those besides, in order, that still fit.

    Each round takes what fits by the text around it, and the text that this makes decides: what proves too much leaves again,
    last ones first, and one that is too much by itself stays out.
    """
    total, inside, refused = count(cut.join(kept)) if kept else 0, set(kept), set[int]()
    while True:
        out = [u for u in order if u not in inside and u not in refused and costs[u] <= room - total + SAVED]
        tried, held = list[int](), total
        for unit, more in zip(out, _further(cut, kept, out, count), strict=True):
            if held + more <= room:
                tried.append(unit)
                held += max(more, 0)
        if not tried:
            return kept
        while (size := count(cut.join(sorted({*inside, *tried})))) > room and len(tried) > 1:
            del tried[-max(1, len(tried) // 4) :]
        if size > room:
            refused.add(tried[0])
        else:
            # Neighbours' costs are other ones now: they are asked again, and what was refused as well.
            inside |= set(tried)
            kept, total, refused = sorted(inside), size, set()


def _further(cut: Cut, kept: Sequence[int], out: Sequence[int], count: TokenCounter) -> list[int]:
    """How many tokens each of some units adds to those that stay, by the text around its place."""
    before, after = [], []
    for unit in out:
        i = bisect_left(kept, unit)
        a, b = (
            _near(cut, (kept[j] for j in range(i - 1, -1, -1)))[::-1],
            _near(cut, (kept[j] for j in range(i, len(kept)))),
        )
        before.append(cut.join([*a, *b]) if a or b else "")
        after.append(cut.join([*a, unit, *b]))
    return [new - old for new, old in zip(count.each(after), count.each(before), strict=True)]


def _near(cut: Cut, units: Iterable[int]) -> list[int]:
    """The first of some units that hold ``AROUND`` characters."""
    out, held = list[int](), 0
    for unit in units:
        if held >= AROUND:
            break
        out.append(unit)
        held += cut.spans[unit][1] - cut.spans[unit][0]
    return out


def _begun(text: str, span: Span, room: int, count: TokenCounter) -> tuple[Span, int]:
    """As many first words of a stretch as fit, of its first word as many clusters; and the tokens of it all."""
    a, b = span
    ends = [m.end() for m in WORD.finditer(text, a, b)] or [b]
    fits = _most(text, a, ends, room, count)
    if fits is None:
        clusters = Clusters(text)
        inner = sorted({clusters.after(i) for i in range(a + 1, ends[0] + 1)})
        fits = _most(text, a, inner, room, count)
        if fits is None:
            raise ValueError(f"keep={room} tokens; the first character takes {count(text[a : inner[0]])}")
    return (a, fits), count(text[a:b])


def _most(text: str, a: int, ends: Sequence[int], room: int, count: TokenCounter) -> int | None:
    """The last of some ends up to which a text fits."""
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high) // 2
        if count(text[a : ends[middle]]) <= room:
            low = middle + 1
        else:
            high = middle
    # More text may take fewer tokens: what is returned is asked once more.
    return next((ends[i] for i in range(low - 1, -1, -1) if count(text[a : ends[i]]) <= room), None)
