"""Pages: Markdown tables, and parts of a page that a benchmark writes between two marks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokensieve.bench.compat.matrix import Verdict


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def fill(page: Path, mark: str, text: str) -> None:
    """Put ``text`` between ``<!-- mark -->`` and ``<!-- /mark -->``."""
    held = page.read_text(encoding="utf-8")
    new, found = re.subn(
        rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", lambda m: m[1] + text + "\n" + m[2], held, flags=re.S
    )
    if not found:
        raise ValueError(f"{page} has no part <!-- {mark} --> ... <!-- /{mark} -->")
    page.write_text(new, encoding="utf-8")


def verdicts(rows: Sequence[Verdict], versions: str) -> str:
    """A matrix of architectures, behind how many of them there are of each status."""
    count = Counter(row.status for row in rows)
    lines = [f"{n} {status}" for status, n in count.most_common()]
    out = [f"{', '.join(lines)}; {versions}.", "", '<div class="roomy" markdown>', ""]
    out += ["| architecture | | checked | note |", "|---|---|---|---|"]
    out += [f"| {r.name} | {r.status} | {', '.join(r.checked)} | {r.why.replace('|', '/')} |" for r in rows]
    return "\n".join([*out, "", "</div>"]) + "\n"
