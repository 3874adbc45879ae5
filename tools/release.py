"""Build what an index would take, and check it: `make release` leaves an sdist and a wheel in dist/, and uploads nothing.

What is built is the last commit, unpacked elsewhere: the sdist from it, the wheel from the sdist, so that nothing of the
checkout that git does not know gets in. Refused are changes that are not committed, a version without an entry in the
changelog, metadata that are missing, a readme that does not render, and a wheel that holds more or less than the package.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
ASKED = ("Summary", "Author", "License-Expression", "License-File", "Requires-Python", "Keywords", "Classifier")
LARGEST = 100e6
"""Bytes of a file that an index takes."""


def check_clean(root: Path) -> None:
    """Raises ValueError, naming the files, where a checkout has changes that are not committed."""
    said = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True).stdout
    if said:
        raise ValueError(f"commit or remove what has changed, then release:\n{said.rstrip()}")


def check_changelog(text: str, version: str) -> None:
    """Raises ValueError where a changelog has no entry of a version, or an empty one."""
    found = re.search(rf"^## {re.escape(version)}(?![\w.])[^\n]*\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    if not found or not found[1].strip():
        raise ValueError(f"CHANGELOG.md says nothing of {version}: add '## {version}' and what has changed")


def check_metadata(metadata: Message, version: str) -> None:
    """Raises ValueError where the metadata of a wheel lack something, or are of another version."""
    missing = [key for key in ASKED if not metadata.get(key)]
    if metadata.get("Description-Content-Type") != "text/markdown" or not str(metadata.get_payload()).strip():
        missing.append("the readme")
    if missing:
        raise ValueError(f"pyproject.toml does not give {', '.join(missing)}")
    if metadata["Version"] != version:
        raise ValueError(f"the wheel is of {metadata['Version']}, tokensieve.__version__ is {version}")


def check_contents(held: set[str], package: set[str]) -> None:
    """Raises ValueError where a wheel holds other files than the package and its metadata.

    Args:
        held: the names in the wheel.
        package: the files of the package in the source, "tokensieve/...".
    """
    held = {name for name in held if ".dist-info" not in PurePosixPath(name).parts[0]}
    if package - held:
        raise ValueError(f"the wheel lacks {', '.join(sorted(package - held))}: see package-data in pyproject.toml")
    if held - package:
        raise ValueError(f"the wheel holds {', '.join(sorted(held - package))}, which is no part of the package")


def files(root: Path) -> set[str]:
    """The files of the package in a source tree."""
    found = (f.relative_to(root) for f in (root / "tokensieve").rglob("*") if f.is_file())
    return {f.as_posix() for f in found if "__pycache__" not in f.parts}


def read(wheel: Path) -> tuple[Message, set[str]]:
    """A wheel's metadata and the names of its files."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (home,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(home).decode()), set(names)


def run(*command: str | Path) -> None:
    """Raises ValueError, with what it said, where a command fails."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout.rstrip()}")


def main(python: str, out: Path = ROOT / "dist") -> None:
    """Build and check.

    Args:
        python: an interpreter whose environment has build, setuptools, twine and trove-classifiers.
        out: where the two files go once all holds; what is there of earlier releases goes away.
    """
    from tokensieve import __version__ as version

    check_clean(ROOT)
    check_changelog((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    with tempfile.TemporaryDirectory() as folder:
        tree, built = Path(folder) / "tokensieve", Path(folder) / "dist"
        packed = Path(folder) / "head.tar"
        run("git", "archive", "--output", packed, "HEAD")
        with tarfile.open(packed) as archive:
            archive.extractall(tree, filter="data")
        run(python, "-m", "build", "--no-isolation", "--outdir", built, tree)
        (wheel,) = built.glob("*.whl")
        metadata, held = read(wheel)
        check_metadata(metadata, version)
        check_contents(held, files(tree))
        made = sorted(built.iterdir())
        run(python, "-m", "twine", "check", "--strict", *made)
        for file in made:
            if file.stat().st_size > LARGEST:
                raise ValueError(f"{file.name}: {file.stat().st_size / 1e6:.0f} MB; an index takes {LARGEST / 1e6:.0f}")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(built, out)
    for file in made:
        print(f"{out / file.name}: {(out / file.name).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except ValueError as error:
        sys.exit(f"error: {error}")
