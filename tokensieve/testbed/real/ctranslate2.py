"""Weights in the binary format of CTranslate2."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

VERSION = 6
TYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def read(path: Path) -> dict[str, Tensor]:
    """The variables of a ``model.bin`` by name; one that has an alias stands under both names.

    The format, from ctranslate2's ``specs/model_spec.py``, little-endian: version (u32), the specification's name and revision,
    a count and the variables (name, rank as u8, dimensions as u32, type as u8, bytes as u32, the bytes), a count and the aliases
    (name, name). A string is its length with the closing zero (u16), and that many bytes.

    Raises:
        ValueError: another version, a type that is not known, or something left over.
    """
    file = BytesIO(path.read_bytes())
    version = _number(file, "I")
    if version != VERSION:
        raise ValueError(f"{path} is of version {version} of the format; only {VERSION} is read")
    _string(file)
    _number(file, "I")
    out = dict(_variable(file, path) for _ in range(_number(file, "I")))
    for _ in range(_number(file, "I")):
        alias, name = _string(file), _string(file)
        out[alias] = out[name]
    if file.read(1):
        raise ValueError(f"{path} goes on behind its last variable")
    return out


def _variable(file: BytesIO, path: Path) -> tuple[str, Tensor]:
    name = _string(file)
    shape = [_number(file, "I") for _ in range(_number(file, "B"))]
    kind = _number(file, "B")
    if kind not in TYPES:
        raise ValueError(f"{path}: {name} is of type {kind}; known are {', '.join(map(str, TYPES))}")
    values = np.frombuffer(file.read(_number(file, "I")), TYPES[kind])
    return name, torch.from_numpy(values.reshape(shape).copy())


def _number(file: BytesIO, form: str) -> Any:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(form)))[0]


def _string(file: BytesIO) -> str:
    return file.read(_number(file, "H"))[:-1].decode()
