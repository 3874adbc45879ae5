"""Float32 and float16: vectors as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.retrieval.storage.vector_format import Fields, VectorFormat, register_format


@register_format("float32")
class Float32(VectorFormat):
    """Lossless: 4 bytes a dimension."""

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        return {"codes": x.float()}

    def decode(self, fields: Fields) -> Tensor:
        return fields["codes"]


@register_format("float16")
class Float16(VectorFormat):
    """2 bytes a dimension, 11 bits of each value; values beyond 65,504 are refused."""

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        codes = x.half()
        if not bool(codes.isfinite().all()):
            raise ValueError("float16 holds values up to 65,504; scale the vectors down or use codec='float32'")
        return {"codes": codes}

    def decode(self, fields: Fields) -> Tensor:
        return fields["codes"].to(torch.float32)
