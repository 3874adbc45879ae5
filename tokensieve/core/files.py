"""Files: written whole or not at all, on disk once they have their name, with the modes that the umask gives."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def write(path: str | Path, fill: Callable[[Path], object]) -> None:
    """All or nothing: ``fill`` writes a file of another name, which takes this one once its bytes are on disk.

    Raises:
        OSError: it could not be written (no room, no permission); what was committed before is intact.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        part.touch()
        mode = part.stat().st_mode
        fill(part)
        # What writes it may make a file of its own, that other accounts cannot read whatever the umask says.
        part.chmod(mode)
        flush(part)
        os.replace(part, path)
    except BaseException as problem:
        part.unlink(missing_ok=True)
        if isinstance(problem, (OSError, SafetensorError)):
            raise OSError(f"could not write {path}: {problem}; what was committed before is intact") from problem
        raise
    flush(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """As :func:`write`, a text in UTF-8."""
    write(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """As :func:`write`, a value as indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def flush(path: Path) -> None:
    """To disk; also the entries of a folder."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
