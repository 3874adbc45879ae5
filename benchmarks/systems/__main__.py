"""Run every check, or those of the systems named by id, write the record after each, print the table."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

import tokensieve as ts
from benchmarks import systems
from benchmarks.systems.bed import CHECKS, SEED, CheckContext
from tokensieve import catalog
from tokensieve.core.files import write_json

for found in pkgutil.iter_modules(systems.__path__, systems.__name__ + "."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)  # its checks register themselves

RECORD = Path(ts.__file__).parent / "catalog" / "record.json"


def write(rows: dict[str, dict[str, Any]], questions: int) -> None:
    """The record."""
    record = {
        "format": "tokensieve.record.1",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "transformers")} | {"tokensieve": ts.__version__},
        "seed": SEED,
        "questions": questions,
        "rows": dict(sorted(rows.items(), key=lambda row: int(row[0]))),
    }
    write_json(RECORD, record)


def main(asked: Sequence[int] = ()) -> int:
    """All checks, or those of some systems, beside what the record says of the others; how many could not be made."""
    bed = CheckContext()
    rows = {k: row for k, row in json.loads(RECORD.read_text(encoding="utf-8"))["rows"].items() if int(k) in CHECKS}
    left: list[str] = []
    for system in track(sorted(asked or CHECKS), description="checks", console=Console(stderr=True)):
        try:
            shown, numbers = CHECKS[system](bed)
        except OSError as error:
            left.append(f"{system}: {error}; what is recorded stays")
            continue
        rows[str(system)] = {
            "status": "shown" if shown else "runs",
            "check": " ".join((CHECKS[system].__doc__ or "").split()),
            "numbers": numbers,
        }
        write(rows, len(bed.items))
    table = Table("id", "system", "status", "numbers")
    names = {s.id: s.name for s in catalog.systems()}
    for system, row in sorted(rows.items(), key=lambda kv: int(kv[0])):
        numbers = ", ".join(f"{k} {v}" for k, v in row["numbers"].items())
        table.add_row(system, names[int(system)], row["status"], numbers)
    Console().print(table)
    for line in left:
        Console(stderr=True).print(line, markup=False)
    return len(left)


if __name__ == "__main__":
    sys.exit(main([int(system) for system in sys.argv[1:]]))
