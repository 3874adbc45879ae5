"""results.json: a versioned file that is complete after every cell, and that a second run goes on from."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tokensieve.bench.paired import Difference
from tokensieve.core.files import write_json

FORMAT = "tokensieve.results.1"


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run; a run can only be resumed with the same."""

    model: str
    data: str
    question: str
    samples: int
    seed: int
    batch: int
    new_tokens: int
    dtype: str
    device: str


@dataclass(frozen=True)
class OwnSettings(Settings):
    """Those of a run over people's own data.

    Attributes:
        score: what answers are scored by; equal: what is made equal.
    """

    score: str = ""
    equal: str = ""


class Results:
    """The rows of a run, kept on disk.

    Attributes:
        data: what the file holds: format, settings, environment, skipped images, samples, rows.
    """

    def __init__(self, file: Path, data: dict[str, Any]):
        self.file, self.data = file, data

    @classmethod
    def open(cls, folder: Path, settings: Settings, skipped: list[str], samples: list[dict[str, Any]]) -> Results:
        """A new file, or one to go on with.

        Raises:
            ValueError: the folder holds the results of other settings or samples, or something that is no results file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "results.json"
        fresh: dict[str, Any] = {
            "format": FORMAT,
            "settings": asdict(settings),
            "environment": environment(),
            "skipped": skipped,
            "samples": samples,
            "rows": {},
        }
        if not file.exists():
            return cls(file, fresh)
        old = load(file)
        if old["settings"] != fresh["settings"]:
            changed = [k for k in fresh["settings"] if old["settings"].get(k) != fresh["settings"][k]]
            raise ValueError(
                f"{file} holds a run with other settings ({', '.join(changed)}); choose another --out, or delete it"
            )
        if old["samples"] != samples:
            raise ValueError(
                f"{file} holds a run on other samples (questions, answers or images differ); choose another --out, or delete it"
            )
        return cls(file, old)

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return self.data["rows"]

    def add(self, key: str, row: dict[str, Any]) -> None:
        """Add a finished cell and write the file (whole or not at all)."""
        self.rows[key] = row
        self.write()

    def write(self) -> None:
        """Write the file as it is now (whole or not at all)."""
        write_json(self.file, self.data)


def load(file: Path) -> dict[str, Any]:
    """Read a results file.

    Raises:
        ValueError: not one.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not a results file: {error}") from error
    if data.get("format") != FORMAT:
        raise ValueError(
            f"{file} is not a results file of this version: format is {data.get('format')!r}, expected {FORMAT!r}"
        )
    return data


def environment() -> dict[str, Any]:
    """Machine, threads and versions."""

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "machine": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in ("tokensieve", "torch", "transformers")},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def quality(row: dict[str, Any]) -> float:
    """The one number a row is ranked by: accuracy over the kinds where there are labels, otherwise agreement; of
    texts the likelihood of what comes next."""
    if "quality" in row:
        return row["quality"]
    return row["accuracy_mean"] if row["accuracy_mean"] is not None else row.get("agreement", 1.0)


def difference(row: dict[str, Any], score: str, against: str) -> Difference | None:
    """A row's paired difference, as it was written to disk; None where there is none."""
    found = row.get("paired", {}).get(score, {}).get(against)
    return None if found is None else Difference.from_json(found)


def beats_random(rows: dict[str, dict[str, Any]], row: dict[str, Any]) -> bool | None:
    """Whether a row is above random at its own budget; None for random itself and the full model, and where paired differences
    were measured and cannot tell."""
    if "paired" in row:
        known = difference(row, next(iter(row["paired"])), "random")
        return known.mean > 0 if known is not None and known.distinguishable else None
    other = rows.get(f"random@{row['keep']}")
    return None if other is None or row["method"] in ("random", "full") else quality(row) > quality(other)
