"""Real folders: is the right file first, are the best found, do passages break where a reader would.

`python -m benchmarks.folders prepare` lays out corpora from what is at hand (the pages of the Rust book where rustup is
installed, part of Python's library, CMake's manual in reStructuredText, manual pages in other scripts where Debian's are
installed), and takes one sentence out of many passages: those sentences are queries that no text of the index holds. `python
-m benchmarks.folders` then indexes all vectors of each in int8, measures it, and writes `out/folders/results.json`; with
`default` in front of the corpora's names by the recipe of a new index, into `out/folders/default.json`.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks import manuals
from tokensieve.bench.paired import interval
from tokensieve.core.files import write_json
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.index.sync import mirror

OUT = Path("out/folders")
RUST = Path.home() / ".rustup/toolchains"
CMAKE = Path("/usr/share")
RECIPE = Recipe(None, "agglomerative", 1.0, "int8", "pooled")
"""All vectors: what is asked here is how files are read and cut."""
KS, HELD, SEED = (1, 10, 50, 100), 240, 0
MODULES = (
    "argparse asyncio/queues asyncio/locks base64 bisect calendar cmd collections/__init__ "
    "concurrent/futures/thread configparser contextlib copy csv dataclasses difflib email/message fileinput fnmatch "
    "fractions functools glob gzip hashlib heapq html/parser http/server imaplib json/decoder logging/handlers "
    "mailbox pathlib pprint queue random sched secrets shelve shlex shutil smtplib socketserver sqlite3/dump "
    "statistics string tarfile tempfile textwrap threading timeit tokenize uuid wave zipfile"
)
QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "html": {
        "how do I write a unit test": ("ch11-01-writing-tests", "ch11-03-test-organization"),
        "what is ownership": ("ch04-01-what-is-ownership",),
        "read command line arguments in a program": ("ch12-01-accepting-command-line-arguments",),
        "share data between threads with a mutex": ("ch16-03-shared-state",),
        "send messages from one thread to another": ("ch16-02-message-passing",),
        "store a list of values of the same type": ("ch08-01-vectors",),
        "why can't I index into a string": ("ch08-02-strings",),
        "count words with a hash map": ("ch08-03-hash-maps",),
        "when should a program panic": ("ch09-03-to-panic-or-not-to-panic", "ch09-01-unrecoverable-errors-with-panic"),
        "return an error to the caller with the question mark operator": ("ch09-02-recoverable-errors-with-result",),
        "functions that capture their environment": ("ch13-01-closures",),
        "publish a crate so that others can use it": ("ch14-02-publishing-to-crates-io",),
        "install a binary from crates.io": ("ch14-04-installing-binaries",),
        "environment variables for case insensitive search": ("ch12-05-working-with-environment-variables",),
        "print to standard error instead of standard output": ("ch12-06-writing-to-stderr-instead-of-stdout",),
        "run code when a value goes out of scope": ("ch15-03-drop",),
        "memory leaks from reference cycles": ("ch15-06-reference-cycles",),
        "split modules into several files": ("ch07-05-separating-modules-into-different-files",),
        "how do I run only some of the tests": ("ch11-02-running-tests",),
        "integer overflow and number types": ("ch03-02-data-types",),
    },
    "code": {
        "parse command line options": ("argparse.py",), "copy a directory tree recursively": ("shutil.py",),
        "make a temporary file that is deleted": ("tempfile.py",), "compare two texts and show the differences": ("difflib.py",),
        "extract files from a tar archive": ("tarfile.py",), "read a configuration file with sections": ("configparser.py",),
        "rotate log files by size": ("logging/handlers.py",), "median and standard deviation of data": ("statistics.py",),
        "insert into a sorted list": ("bisect.py",), "priority queue from a heap": ("heapq.py",),
        "split a string like the shell does": ("shlex.py",), "wrap a paragraph to a given width": ("textwrap.py",),
        "measure how long a small statement takes": ("timeit.py",), "send mail over smtp": ("smtplib.py",),
        "cache the results of a function": ("functools.py",), "generate a secure token": ("secrets.py",),
        "print a calendar of a month": ("calendar.py",), "serve files over http": ("http/server.py",),
        "write rows to a csv file": ("csv.py",), "run calls in a pool of threads": ("concurrent/futures/thread.py",),
    },
    "rst": {
        "copy a file and substitute variables in it": ("configure_file.rst",),
        "build a shared library from sources": ("add_library.rst",), "run a program while configuring": ("execute_process.rst",),
        "find where a header file is": ("find_path.rst",),
        "add a directory to the include path of a target": ("target_include_directories.rst",),
        "declare a test to be run": ("add_test.rst",), "repeat commands while a condition holds": ("while.rst",),
        "loop over the items of a list": ("foreach.rst",), "sort a list and remove its duplicates": ("list.rst",),
        "replace text by a regular expression": ("string.rst",), "evaluate an arithmetic expression": ("math.rst",),
        "print a warning or a fatal error": ("message.rst",), "set the name and version of the project": ("project.rst",),
        "require a minimum version of cmake": ("cmake_minimum_required.rst",), "install files and targets": ("install.rst",),
        "generate a file by a custom command": ("add_custom_command.rst",),
        "check whether source code compiles": ("try_compile.rst",),
        "use precompiled headers": ("target_precompile_headers.rst",), "include a file only once": ("include_guard.rst",),
        "a switch that the user can turn on or off": ("option.rst",),
    },
    "man": manuals.QUESTIONS,
}  # fmt: skip
"""Natural questions, and the files that answer them."""
ANSWERS = {file for files in QUESTIONS["code"].values() for file in files}
PART = 4
"""Of the pages of the book that answer nothing, one of so many is taken."""
LARGE = 10_000
"""Bytes of a module from which on it is left out, unless it answers a question."""


def prepare(out: Path = OUT) -> dict[str, str]:
    """Lay out the corpora that can be had; what cannot is said."""
    from tokensieve.retrieval.sources.folder import Folder

    missing: dict[str, str] = {}
    for name, lay in CORPORA.items():
        at = out / "corpora" / name
        shutil.rmtree(at, ignore_errors=True)
        files = list(lay())
        if not files:
            missing[name] = "not at hand, not measured"
            continue
        for target, data in files:
            (at / target).parent.mkdir(parents=True, exist_ok=True)
            (at / target).write_bytes(data)
        if name not in QUESTIONS:
            continue
        draw, queries = random.Random(SEED), []
        folder = Folder(at)
        for text in folder.texts(folder.files()):
            source = text.source
            found = [m for m in SENTENCE.finditer(text.layout.text) if 5 <= len(re.findall(r"\b[a-z]+\b", m[1])) <= 14]
            for m in draw.sample(found, min(len(found), 12)):
                a, b = text.layout.source(m.span(1))
                if b - a == len(m[1]) and "<" not in source[a:b]:
                    source = source[:a] + re.sub(r"[^\n]", " ", source[a:b]) + source[b:]
                    queries.append((m[1], text.name))
            (at / text.name).write_text(source)
        write_json(out / f"{name}.json", draw.sample(queries, min(len(queries), HELD)))
    write_json(out / "missing.json", missing)
    return missing


SENTENCE = re.compile(r"(?m)(?:^[ \t#*\"]*|[.!?] )([A-Z][\w' ,()-]{24,90})(?=[.:?!]|$)")


def _html() -> Iterator[tuple[str, bytes]]:
    book = next(iter(sorted(RUST.glob("stable*/share/doc/rust/html/book"))), None)
    answers = {f"{file}.html" for files in QUESTIONS["html"].values() for file in files}
    # Smaller ones say that they have moved.
    pages = [p for p in sorted(book.glob("ch*.html")) if p.stat().st_size > 10_000] if book else []
    yield from ((p.name, p.read_bytes()) for i, p in enumerate(pages) if p.name in answers or i % PART == 0)


def _code() -> Iterator[tuple[str, bytes]]:
    library = Path(sysconfig.get_path("stdlib"))
    files = ((f"{m}.py", library / f"{m}.py") for m in MODULES.split())
    yield from (
        (name, file.read_bytes()) for name, file in files if file.stat().st_size < LARGE or f"{name}" in ANSWERS
    )


def _rst() -> Iterator[tuple[str, bytes]]:
    manual = next(iter(sorted(CMAKE.glob("cmake-*/Help/command"))), None)
    yield from ((p.name, p.read_bytes()) for p in sorted(manual.glob("*.rst")) if manual) if manual else ()


CORPORA: dict[str, Callable[[], Iterator[tuple[str, bytes]]]] = {
    "html": _html, "code": _code, "rst": _rst, "man": manuals.english,
    **{f"man-{script}": partial(manuals.foreign, script) for script in manuals.SCRIPTS},
}  # fmt: skip


def measure(name: str, out: Path = OUT, index: Path | None = None, recipe: Recipe = RECIPE) -> dict[str, Any]:
    """One corpus: index it, and ask it."""
    at = index or out / "index" / name
    shutil.rmtree(at, ignore_errors=True)
    at.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    library = Library.create(at, recipe)
    report = mirror(library, out / "corpora" / name)
    passages = [m for id in library.index.ids() if (m := library.index.metadata([id])[0])]
    row: dict[str, Any] = {
        "files": report.files, "passages": len(library), "characters": sum(len(p["text"]) for p in passages),
        "seconds": round(time.perf_counter() - start, 1), "plan": library.index.plan,
        "broken": broken([p["text"] for p in passages]),
        "unread": getattr(report, "unread", {}),
    }  # fmt: skip
    if name not in QUESTIONS:
        return row | manuals.measure(library, out / "corpora" / name, SEED)
    asked = [(q, files) for q, files in QUESTIONS[name].items()]
    held = [(q, (file,)) for q, file in json.loads((out / f"{name}.json").read_text())]
    for kind, queries in (("questions", asked), ("held out", held)):
        first, worded, reciprocal, recalls = [], [], [], {k: [] for k in KS}
        vectors = library.encoder.queries([q for q, _ in queries])
        for i, (query, files) in enumerate(queries):
            fused = library.index.search(vectors[i], 1, words=query.replace('"', " "), fuse="rrf")
            worded.append(
                fused[0].metadata["document"].removesuffix(".html") in {f.removesuffix(".html") for f in files}
            )
            exact = library.index.search(vectors[i], max(KS), rerank=0)
            order = list(dict.fromkeys(hit.metadata["document"].removesuffix(".html") for hit in exact))
            places = [order.index(f) + 1 for f in (f.removesuffix(".html") for f in files) if f in order]
            first.append(min(places, default=0) == 1)
            reciprocal.append(1 / min(places) if places else 0.0)
            for k in KS:
                best = {hit.id for hit in exact[:k]}
                found = {hit.id for hit in library.index.search(vectors[i], k)}
                recalls[k].append(len(best & found) / max(len(best), 1))
        row[kind] = {
            "queries": len(queries), "right file first": told(first), "right file first, rrf": told(worded),
            "mrr of files": told(reciprocal),
            **{f"recall of exact's top {k}": told(r) for k, r in recalls.items()},
        }  # fmt: skip
    return row


def told(values: list[Any]) -> list[float]:
    """The mean, and its 95% bootstrap interval; the mean alone of very few."""
    return [round(float(v), 4) for v in (mean(values), *(interval(values, SEED) or ()))]


def broken(texts: list[str]) -> dict[str, float]:
    """Shares of passages that break where no reader would."""
    under = re.compile(r"\n([=\-~^\"'*+#.])\1{2,}\s*$")
    marks: dict[str, Callable[[str], bool]] = {
        "ends with a heading": lambda t: (
            bool(under.search(t)) or t.rstrip().rsplit("\n", 1)[-1].startswith(("# ", "## ", "### "))
        ),
        "ends with a colon": lambda t: t.rstrip().endswith(":"),
        "holds half a fence": lambda t: t.count("```") % 2 == 1,
        "is a crumb (under 100 characters)": lambda t: len(t) < 100,
        "begins in the middle of a sentence": lambda t: bool(re.match(r"[a-z]+ [a-z]+ [a-z]", t)),
    }
    out = {what: round(sum(map(test, texts)) / len(texts), 4) for what, test in marks.items()}
    return out | {"any of these": round(sum(any(test(t) for test in marks.values()) for t in texts) / len(texts), 4)}


def main() -> None:
    """Measure what has been prepared."""
    if sys.argv[1:] == ["prepare"]:
        print(json.dumps(prepare(), indent=2))
        return
    torch.manual_seed(SEED)
    new = sys.argv[1:2] == ["default"]
    names = sys.argv[1 + new :] or sorted(p.name for p in (OUT / "corpora").iterdir())
    file, recipe = (OUT / "default.json", Recipe()) if new else (OUT / "results.json", RECIPE)
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in names:
        results[name] = measure(name, recipe=recipe)
        write_json(file, results)
        print(name, json.dumps(results[name]), flush=True)


if __name__ == "__main__":
    main()
