"""Marks: what the library says of a passage beside its metadata, under names that callers cannot give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

SIGN = "$"
"""Names that begin so are the library's own."""
FILE = "$file"
"""True where a passage is of a file, which goes when the file goes."""
CONTEXT = "$context"
"""What is encoded before a passage: headings above it, the head of its table."""
PLACE = "$place"
"""Where in its document a passage stands, in words."""
GAP = "$gap"
"""What stands between the passage before and this one, where the source is no text that could be read again."""
OWN = frozenset({"document", "digest", "of", "span", "text", "spans"})
"""Names without the sign that are the library's own."""


def own(name: str) -> bool:
    """Whether a field's name is the library's own."""
    return name in OWN or name.startswith(SIGN)


def claimed(metadata: Any) -> str | None:
    """A name in a caller's metadata that is the library's own, or of an operator; None where there is none."""
    names = [name for name in metadata if own(str(name))] if isinstance(metadata, Mapping) else []
    inner = metadata.values() if isinstance(metadata, Mapping) else metadata if isinstance(metadata, list) else ()
    return next((str(n) for n in names), None) or next((n for n in map(signed, inner) if n), None)


def signed(value: Any) -> str | None:
    """A name anywhere in a value that begins with the sign; None where there is none."""
    if isinstance(value, Mapping):
        found = next((str(k) for k in value if str(k).startswith(SIGN)), None)
        return found or next((n for n in map(signed, value.values()) if n), None)
    return next((n for n in map(signed, value) if n), None) if isinstance(value, (list, tuple)) else None


def free(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What callers have said of a passage."""
    return {k: v for k, v in metadata.items() if not own(k)}


def mirrored(metadata: Mapping[str, Any]) -> bool:
    """Whether a passage's metadata say that it is of a file."""
    if FILE in metadata or CONTEXT in metadata:
        return metadata.get(FILE) is True
    # The first format had no marks: what it wrote of files, to the letter, was this.
    said = {k: v for k, v in metadata.items() if k not in OWN}
    return said == {"kind": "file", "suffix": PurePosixPath(str(metadata.get("document"))).suffix.lower()}


def of_file(metadata: bytes) -> bool:
    """The same of metadata as they are stored, where they bear marks."""
    return f'"{FILE}":true'.encode() in metadata
