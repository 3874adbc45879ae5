"""Files: safetensors files written durably and read through memory maps, with a checksum for each tensor."""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tokensieve.retrieval.index.errors import Damaged

TYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}


def crc(x: Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(x.contiguous().flatten().view(torch.uint8).numpy().data) if x.numel() else 0


def sum_of(tensors: Mapping[str, Tensor]) -> int:
    """One checksum of several tensors."""
    return zlib.crc32(repr([(k, crc(v)) for k, v in sorted(tensors.items())]).encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """All or nothing: the file has its name only once its bytes are on disk."""
    part = path.with_name(path.name + ".part")
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, part)
        _flush(part)
        os.replace(part, path)
    except (OSError, SafetensorError) as problem:
        part.unlink(missing_ok=True)
        raise OSError(f"could not write {path}: {problem}; what was committed before is intact") from problem
    _flush(path.parent)


def write_small(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """A file of tensors, and what a manifest says of it."""
    write_tensors(path, tensors)
    return {"file": path.name, "crc": sum_of(tensors)}


def write_json(path: Path, value: object) -> None:
    """All or nothing; a checksum of the value goes with it."""
    body = json.dumps(value, separators=(",", ":"), sort_keys=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(f'{{"crc":{zlib.crc32(body.encode())},"body":{body}}}')
        _flush(part)
        os.replace(part, path)
    except OSError as problem:
        part.unlink(missing_ok=True)
        raise OSError(f"could not write {path}: {problem}; what was committed before is intact") from problem
    _flush(path.parent)


def read_json(path: Path) -> dict:
    """What :func:`write_json` wrote."""
    text = path.read_text(errors="replace")
    head, _, body = text.partition(',"body":')
    if head != f'{{"crc":{zlib.crc32(body[:-1].encode())}':
        raise Damaged(f"{path} is damaged: its checksum does not fit; restore it from a copy")
    return json.loads(body[:-1])


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
            a, b = about["data_offsets"]
            kind = np.dtype(TYPES[about["dtype"]])
            flat = np.frombuffer(data, kind, (b - a) // kind.itemsize, start + a)
            out[name] = torch.from_numpy(flat.reshape(about["shape"]))
        return out
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise Damaged(f"{path} cannot be read: {problem}") from problem


def _flush(path: Path) -> None:
    """To disk; also the entries of a folder."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
