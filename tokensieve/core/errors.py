"""What errors say: the names near a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def close(wrong: str, known: Iterable[str]) -> str:
    """The known names that a wrong one resembles: "a, b"; "" where it resembles none."""
    return ", ".join(difflib.get_close_matches(wrong, sorted(known), n=3))


def near(wrong: str, known: Iterable[str]) -> str:
    """The known names nearest to a wrong one: "a, b"; all of them where none is near, "none" if there are none."""
    known = sorted(known)
    return close(wrong, known) or ", ".join(known) or "none"
