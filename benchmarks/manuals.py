"""Manual pages as Debian installs them, as plain text: a corpus in English, and others whose scripts MiniLM does not read."""

from __future__ import annotations

import gzip
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from tokensieve.retrieval.index.library import Library

ROOT = Path("/usr/share/man")
SCRIPTS = ("ja", "ru", "zh_CN")
LARGE = 6_000
"""Bytes of a packed page from which on it is left out, unless it answers a question."""
QUESTIONS: dict[str, tuple[str, ...]] = {
    "print the first lines of a file": ("head.txt",), "show the end of a growing file": ("tail.txt",),
    "count words and lines": ("wc.txt",), "remove an empty directory": ("rmdir.txt",),
    "change the owner of a file": ("chown.txt",), "make a symbolic link": ("ln.txt",),
    "sort lines of text": ("sort.txt",), "drop repeated lines": ("uniq.txt",),
    "how much disk space is free": ("df.txt",), "estimate the space that a directory uses": ("du.txt",),
    "replace characters of the input": ("tr.txt",), "join lines of two files on a common field": ("join.txt",),
    "wait for some seconds": ("sleep.txt",), "run a command with a time limit": ("timeout.txt",),
    "print the current working directory": ("pwd.txt",), "split a file into pieces": ("split.txt",),
    "overwrite a file so that it cannot be recovered": ("shred.txt",), "who is logged in": ("who.txt", "users.txt", "w.txt"),
    "print the numbers of a sequence": ("seq.txt",), "copy standard input to files and to standard output": ("tee.txt",),
}  # fmt: skip
"""Natural questions, and the pages that answer them."""
ANSWERS = {file.removesuffix(".txt") for files in QUESTIONS.values() for file in files}
PART = 12
"""Of pages that answer nothing, one of so many is taken."""


def english() -> Iterator[tuple[str, bytes]]:
    """Names and texts of pages in English."""
    pages = [p for p in sorted((ROOT / "man1").glob("*.1.gz")) if "_" not in p.name and not p.is_symlink()]
    for i, page in enumerate(pages):
        name = page.name.removesuffix(".1.gz")
        if name in ANSWERS or (i % PART == 0 and page.stat().st_size < LARGE):
            yield from _plain(page, name)


def foreign(script: str) -> Iterator[tuple[str, bytes]]:
    """Names and texts of the first pages in another script."""
    for page in sorted((ROOT / script / "man1").glob("*.gz"))[:20]:
        yield from _plain(page, page.name.removesuffix(".gz"))


def _plain(page: Path, name: str) -> Iterator[tuple[str, bytes]]:
    if shutil.which("groff") is None:
        return
    source = gzip.decompress(page.read_bytes())
    made = subprocess.run(["groff", "-mandoc", "-Tutf8", "-Kutf8", "-P-cbou"], input=source, capture_output=True)
    text = re.sub(r".\x08", "", made.stdout.decode("utf-8", errors="ignore"))
    if len(text) > 200:  # others say where the page is
        yield f"{name}.txt", text.encode()


def measure(library: Library, folder: Path, seed: int) -> dict[str, Any]:
    """Of a script that the encoder does not read: whether spans are exact, and whether words alone find the file that a line was
    taken from (one line of each that no other file has; lines are in the index)."""
    draw, asked, exact = random.Random(seed), [], []
    sources = {name: (folder / name).read_text() for name in sorted(library.names())}
    held = Counter(line.strip() for source in sources.values() for line in set(source.splitlines()))
    for name, source in sources.items():
        exact += [source[slice(*p["span"])] == p["text"] for p in library.get(name)]
        lines = [line.strip() for line in source.splitlines() if 10 <= len(line.strip()) <= 60]
        lines = [line for line in lines if held[line] == 1]
        if lines:
            asked.append((draw.choice(lines).replace('"', " "), name))
    first = [library.search(q, 1, fuse=1.0)[0].document == name for q, name in asked]
    return {
        "spans exact": round(mean(exact), 4), "lines": len(asked), "right file first by words": round(mean(first), 4),
        "notes": sum(bool(library.notes(q)) for q, _ in asked),
    }  # fmt: skip
