"""Float32 and float16: vectors as they are."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tokensieve.retrieval.storage.vector_format import Codec, Fields


class Float32(Codec):
    """Lossless: 4 bytes a dimension."""

    name: ClassVar[str] = "float32"

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        return {"codes": x.float()}

    def decode(self, fields: Fields) -> Tensor:
        return fields["codes"]


class Float16(Codec):
    """2 bytes a dimension, 11 bits of each value; values beyond 65,504 are refused."""

    name: ClassVar[str] = "float16"

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        codes = x.half()
        if not bool(codes.isfinite().all()):
            raise ValueError("float16 holds values up to 65,504; scale the vectors down or use codec='float32'")
        return {"codes": codes}

    def decode(self, fields: Fields) -> Tensor:
        return fields["codes"].to(torch.float32)
