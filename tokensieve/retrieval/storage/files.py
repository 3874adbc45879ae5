"""Files: safetensors files written durably and read through memory maps, with a checksum for each tensor."""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensieve.core.files import write, write_text
from tokensieve.retrieval.errors import Damaged, Forbidden

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Every dtype that is stored, by its name in a safetensors file."""
NAMES = {dtype: name for name, dtype in TYPES.items()}


Pieces = Tensor | Sequence[Tensor]
"""A tensor, or those that lie behind each other in it."""


def crc(x: Pieces) -> int:
    """CRC-32 of a tensor's bytes."""
    out = 0
    for piece in _pieces(x):
        out = zlib.crc32(_bytes(piece), out)
    return out


def _pieces(x: Pieces) -> Sequence[Tensor]:
    return [x] if isinstance(x, Tensor) else x


def _bytes(x: Tensor) -> memoryview:
    return x.contiguous().flatten().view(torch.uint8).numpy().data if x.numel() else memoryview(b"")


def sum_of(tensors: Mapping[str, Tensor]) -> int:
    """One checksum of several tensors."""
    return zlib.crc32(repr([(k, crc(v)) for k, v in sorted(tensors.items())]).encode())


def write_tensors(path: Path, tensors: Mapping[str, Pieces]) -> None:
    """All or nothing: the file has its name only once its bytes are on disk. They are written from where they lie, which the
    library of the format does not: it copies them first.

    Raises:
        ValueError: a tensor's dtype is none that :func:`map_tensors` reads.
        OSError: the file could not be written; what was committed before is intact.
    """
    pieces = {k: _pieces(v) for k, v in tensors.items()}
    odd = sorted(f"{k} ({v[0].dtype})" for k, v in pieces.items() if v[0].dtype not in NAMES)
    if odd:
        raise ValueError(
            f"{path.name}: {', '.join(odd)} cannot be stored; take one of {', '.join(map(str, TYPES.values()))}"
        )
    # The widest first, so that each begins at a multiple of its width.
    names = sorted(pieces, key=lambda k: (-pieces[k][0].element_size(), k))
    header, end = {}, 0
    for name in names:
        start, end = end, end + sum(piece.nbytes for piece in pieces[name])
        header[name] = {
            "dtype": NAMES[pieces[name][0].dtype],
            "shape": _shape(pieces[name]),
            "data_offsets": [start, end],
        }
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)

    def fill(part: Path) -> None:
        with open(part, "wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            file.writelines(_bytes(piece) for name in names for piece in pieces[name])

    write(path, fill)


def _shape(pieces: Sequence[Tensor]) -> list[int]:
    first = pieces[0]
    return [sum(len(piece) for piece in pieces), *first.shape[1:]] if first.dim() else []


def write_small(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """A file of tensors, and what a manifest says of it."""
    write_tensors(path, tensors)
    return {"file": path.name, "crc": sum_of(tensors)}


def write_json(path: Path, value: object) -> None:
    """All or nothing; a checksum of the value goes with it."""
    body = json.dumps(value, separators=(",", ":"), sort_keys=True)
    write_text(path, f'{{"crc":{zlib.crc32(body.encode())},"body":{body}}}')


def read_json(path: Path) -> dict:
    """What :func:`write_json` wrote."""
    text = path.read_text(errors="replace")
    head, _, body = text.partition(',"body":')
    if head != f'{{"crc":{zlib.crc32(body[:-1].encode())}':
        raise Damaged(f"{path} is damaged: its checksum does not fit; restore it from a copy")
    held = json.loads(body[:-1])
    if not isinstance(held, dict):
        raise Damaged(f"{path} holds no JSON object; restore it from a copy")
    return held


def map_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file as views of a private memory map: nothing is read before it is used."""
    try:
        with open(path, "rb") as file:
            # Copy on write: torch takes writable memory only, and the file stays what it is.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        out = {}
        for name, about in header.items():
            if name == "__metadata__":
                continue
            a, b = map(_count, about["data_offsets"])
            kind = TYPES[about["dtype"]]
            count = (b - a) // kind.itemsize
            flat = (
                torch.frombuffer(data, dtype=kind, count=count, offset=start + a)
                if count
                else torch.empty(0, dtype=kind)
            )
            out[name] = flat.view([_count(n) for n in about["shape"]])
        return out
    except PermissionError as problem:
        raise Forbidden(f"{path} may not be read by this account: {problem.strerror}; see its mode") from problem
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as problem:
        raise Damaged(f"{path} cannot be read: {problem}") from problem


def _count(value: Any) -> int:
    """A negative one would count from the end."""
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
