"""Served: `tokensieve serve` as a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

ROOT = Path(__file__).parent.parent
PATIENCE = 300
"""Seconds in which an answer comes, and in which what was asked to end has ended."""


@contextmanager
def serving(at: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process that serves an index, once it answers, and its port; ended behind it."""
    run = [sys.executable, "-c", "from tokensieve.cli.main import main; main()", "serve", str(at), "--port", "0", *more]
    process = subprocess.Popen(run, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        found = re.search(r":(\d+)  ", process.stdout.readline())
        assert found, "it ended before it said where it listens"
        listening(process, int(found[1]))
        yield process, int(found[1])
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE)


def listening(process: subprocess.Popen[str], port: int) -> None:
    """Come back once it answers, which is a little after it has said where."""
    while process.poll() is None:
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET", "/health")
            connection.getresponse().read()
            return
        except ConnectionRefusedError:
            continue
        finally:
            connection.close()
    raise AssertionError(f"it ended with {process.returncode} before it answered")
