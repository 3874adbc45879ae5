"""Run every check, or those of the systems named by id, write the record after each, print the table.

`--bed NAME` runs checks on another testbed of `benchmarks.beds`, beside what the record says: the record is left as it is, and
what was found goes to `out/systems-NAME.json`. Only checks of visual tokens that ask the testbed through its context belong
there.
"""

from __future__ import annotations

import argparse
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
from benchmarks.beds import BEDS
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


def checked(system: int, bed: CheckContext) -> dict[str, Any]:
    """What a check found, as the record holds it."""
    shown, numbers = CHECKS[system](bed)
    told = " ".join((CHECKS[system].__doc__ or "").split())
    return {"status": "shown" if shown else "runs", "check": told, "numbers": numbers}


def elsewhere(name: str, asked: Sequence[int], folder: Path = Path("out")) -> dict[str, dict[str, Any]]:
    """Checks on another testbed; what was found before is kept, and the record left alone."""
    file = folder / f"systems-{name}.json"
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    bed, record = CheckContext(BEDS[name]), json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    for system in track(asked, description=f"checks, {name}", console=Console(stderr=True)):
        rows[str(system)] = checked(system, bed) | {"record": record.get(str(system), {}).get("status", "missing")}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, rows)
    return rows


def main(asked: Sequence[int] = (), name: str = "packaged") -> int:
    """All checks, or those of some systems, beside what the record says of the others; how many could not be made."""
    if name != "packaged":
        show(elsewhere(name, sorted(asked)), f"status, {name}")
        return 0
    bed = CheckContext()
    rows = {k: row for k, row in json.loads(RECORD.read_text(encoding="utf-8"))["rows"].items() if int(k) in CHECKS}
    left: list[str] = []
    for system in track(sorted(asked or CHECKS), description="checks", console=Console(stderr=True)):
        try:
            rows[str(system)] = checked(system, bed)
        except OSError as error:
            left.append(f"{system}: {error}; what is recorded stays")
            continue
        write(rows, len(bed.items))
    show(rows, "status")
    for line in left:
        Console(stderr=True).print(line, markup=False)
    return len(left)


def show(rows: dict[str, dict[str, Any]], status: str) -> None:
    """The table, on the terminal; beside a status elsewhere the record's."""
    beside = any("record" in row for row in rows.values())
    table = Table("id", "system", status, *(["record"] if beside else []), "numbers")
    names = {s.id: s.name for s in catalog.systems()}
    for system, row in sorted(rows.items(), key=lambda kv: int(kv[0])):
        numbers = ", ".join(f"{k} {v}" for k, v in row["numbers"].items())
        table.add_row(system, names[int(system)], row["status"], *([row["record"]] if beside else []), numbers)
    Console().print(table)


if __name__ == "__main__":
    reads = argparse.ArgumentParser(prog="python -m benchmarks.systems")
    reads.add_argument("ids", nargs="*", type=int, help="of systems; all by default")
    reads.add_argument("--bed", choices=list(BEDS), default="packaged", help="a testbed of benchmarks.beds")
    given = reads.parse_args()
    if given.bed != "packaged" and not given.ids:
        reads.error(f"--bed {given.bed}: say which systems; most checks are of other models than a testbed's")
    sys.exit(main(given.ids, given.bed))
