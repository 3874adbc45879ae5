"""What errors say: the names near a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near(wrong: str, known: Iterable[str]) -> str:
    """The known names nearest to a wrong one: "a, b"; all of them where none is near, "none" if there are none."""
    known = sorted(known)
    return ", ".join(difflib.get_close_matches(wrong, known, n=3) or known) or "none"
