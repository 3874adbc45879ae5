"""Manifest: the file that says what an index holds, checked before anything is believed; and the lock of its folder."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from tokensieve.retrieval.errors import Forbidden, Gone, Incompatible, Locked
from tokensieve.retrieval.storage.files import read_json, write_json, write_small

MANIFEST = "manifest.json"
FORMAT = "tokensieve-index"
VERSION = 2
"""1: without an id, and without the number of documents that are not of files; read, and brought to this by the first commit."""
LOCK = "lock"
OWN = re.compile(r"(\d{6,}\.(safetensors|dead|codec)(\.part)?|" + LOCK + ")")
"""Files of an index besides its manifest."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """What an index holds.

    Raises:
        FileNotFoundError: there is none.
        Incompatible: it is of a newer format, or says what no index of ours can say.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no index in {folder}; Index.create makes one") from None
    except PermissionError as problem:
        raise Forbidden(f"{path} may not be read by this account: {problem.strerror}; see its mode") from problem
    version = manifest.get("version")
    if manifest.get("format") != FORMAT or version not in range(1, VERSION + 1):
        raise Incompatible(
            f"{folder} holds {manifest.get('format')!r} of version {version}; this release reads versions 1 to "
            f"{VERSION}: build it anew, or use the release that wrote it"
        )
    _check(manifest, path)
    return {"id": None, **manifest}


def stamp(folder: Path, name: str = MANIFEST) -> tuple[int, int, bytes] | None:
    """What changes with every commit, whatever the clock says: the checksum that a manifest begins with; None where it is not."""
    with suppress(OSError), open(folder / name, "rb") as held:
        about = os.fstat(held.fileno())
        return about.st_ino, about.st_size, held.read(24)
    return None


def fresh_id() -> str:
    """What tells an index from another that stood in its folder."""
    return secrets.token_hex(8)


def start(folder: Path, fitted: Mapping[str, Tensor] | None, **made: Any) -> None:
    """Commit the state of an index that holds nothing."""
    state = write_small(folder / "000000.codec", fitted) if fitted else None
    empty: dict[str, Any] = {"segments": [], "plan": None, "next_file": 0, "next_id": 0}
    head = {"format": FORMAT, "version": VERSION, "id": fresh_id(), "generation": 0, "codec_state": state}
    write_json(folder / MANIFEST, {**head, **made, **empty})


def locked(folder: Path) -> FileLock:
    """The lock of a folder, held until it is released.

    Raises:
        Locked: another writer has it.
    """
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as problem:
        raise Locked(f"{folder} is being written by another process or Index; close that one first") from problem
    return lock


@contextmanager
def creating(folder: Path, allowed: Collection[str] = ()) -> Iterator[None]:
    """A folder for a new index, made where there is none, and its lock while this lasts; what another process was killed in
    the middle of making may be in it.

    Raises:
        FileExistsError: there is an index, or something else.
        Locked: another process makes one there.
    """
    refuse_taken(folder, allowed)
    folder.mkdir(parents=True, exist_ok=True)
    lock = locked(folder)
    try:
        refuse_taken(folder, allowed)
        yield
    finally:
        lock.release()


def refuse_taken(folder: Path, allowed: Collection[str] = ()) -> None:
    """Refuse a folder that holds an index or anything that is not of one."""
    if (folder / MANIFEST).exists():
        raise FileExistsError(f"there is an index in {folder} already; open it, or choose another folder")
    names = {p.name for p in folder.iterdir()} if folder.exists() else set()
    other = sorted(n for n in names if n.removesuffix(".part") not in {MANIFEST, *allowed} and not OWN.fullmatch(n))
    if other:
        raise FileExistsError(f"{folder} holds other things ({other[0]}); choose a folder that is new or empty")


def refuse_replaced(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse to write where another index stands by now, or none.

    Raises:
        Gone: what was read is not what is there.
    """
    try:
        now = read_manifest(folder)
    except FileNotFoundError:
        now = {}
    if [now.get(k) for k in ("id", "generation")] != [manifest.get(k) for k in ("id", "generation")]:
        raise Gone(f"{folder} was removed or made anew while it was being written; open it again")


def refuse_other(folder: Path, opened: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on reading an index that was made anew for other vectors.

    Raises:
        Incompatible: they are of another model, or of another width.
    """
    for name in ("model", "dim"):
        if opened[name] != now[name]:
            raise Incompatible(
                f"{folder} was made anew for {name} {now[name]!r}, and was opened for {opened[name]!r}; open it again"
            )


def next_file(manifest: Mapping[str, Any]) -> int:
    """The number of the last file that was named, so that the next one is new whatever the count says."""
    named = [s["file"] for s in _files(manifest)]
    return max([manifest["next_file"], *(int(name.partition(".")[0]) for name in named)])


def _files(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if manifest["codec_state"]:
        yield manifest["codec_state"]
    for entry in manifest["segments"]:
        yield entry
        if entry["dead"]:
            yield entry["dead"]


def _check(manifest: Mapping[str, Any], path: Path) -> None:
    """An index may come from a stranger: its files stand in its folder, its counts count."""
    try:
        for name in ("generation", "dim", "next_file", "next_id"):
            _count(name, manifest[name])
        for entry in _files(manifest):
            if not isinstance(entry["file"], str) or not OWN.fullmatch(entry["file"]) or entry["file"] == LOCK:
                raise ValueError(f"it names the file {entry['file']!r}, which is none of an index")
        for entry in manifest["segments"]:
            for name in ("size", "docs", "tokens", "deleted"):
                _count(f"{name} of {entry['file']}", entry[name])
            if not isinstance(entry["crc"], dict):
                raise ValueError(f"{entry['file']} has no checksums")
        files = [entry["file"] for entry in manifest["segments"]]
        if len(set(files)) < len(files):
            raise ValueError("it names a segment twice")
        plan = manifest["plan"]
        for name, value in (plan.get("depths", {}) if plan else {}).items():
            _count("k of a plan", int(name))
            _count("depth of a plan", value)
        for name in ("documents", "share") if plan and plan.get("depths") else ():
            if not isinstance(plan[name], (int, float)):
                raise ValueError(f"{name} of its plan is {plan[name]!r}")
        for name in ("codec", "sketch", "model"):
            if not isinstance(manifest[name], str) and not (manifest[name] is None and name != "codec"):
                raise ValueError(f"{name} is {manifest[name]!r}")
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        why = f"it says nothing of {problem}" if isinstance(problem, KeyError) else problem
        raise Incompatible(f"{path} is not a manifest that this library writes: {why}") from problem


def _count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise ValueError(f"{name} is {value!r}, no count")
