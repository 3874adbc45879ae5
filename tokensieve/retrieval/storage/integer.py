"""Int8, int4, and bits: rounded vectors with a scale each, scored in integer arithmetic."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tokensieve.retrieval.storage.product import IntegerQuery, integer_query, product
from tokensieve.retrieval.storage.vector_format import Fields, VectorFormat, register_format

TRIES = 8
FINE = 1e-6


@register_format("int8")
class Int8(VectorFormat):
    """One byte a dimension and a float16 scale: 255 levels up to the vector's largest value."""

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        scale = half_up(x.float().abs().amax(1) / 127)
        codes = (x.float() / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        return {"codes": codes, "scale": scale}

    def decode(self, fields: Fields) -> Tensor:
        return fields["codes"].float() * fields["scale"].float()[:, None]

    def prepare(self, query: Tensor) -> IntegerQuery:
        return integer_query(query)

    def score(self, fields: Fields, prepared: IntegerQuery) -> Tensor:
        out = product(fields["codes"], prepared).float()
        return out.mul_(fields["scale"].float()[:, None]).mul_(prepared.scale)


class PackedFormat(VectorFormat):
    """``bits`` a dimension: codes c stand for the odd values 2 c - (2^bits - 1), times a float16 scale per vector.

    The scale with the least squared error of a few is taken, then fitted to the codes. Dimension j lies in byte
    j mod (dim / per byte), so that unpacking writes long runs.
    """

    bits: ClassVar[int]

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        codes, scale = quantize(x.float(), self.bits)
        return {"codes": pack(codes, self.bits), "scale": scale}

    def decode(self, fields: Fields) -> Tensor:
        return levels(unpack(fields["codes"], self.bits, self.dim), self.bits) * fields["scale"].float()[:, None]

    def prepare(self, query: Tensor) -> IntegerQuery:
        return integer_query(query)

    def score(self, fields: Fields, prepared: IntegerQuery) -> Tensor:
        out = packed_product(fields["codes"], self.bits, self.dim, prepared)
        return out.mul_(fields["scale"].float()[:, None]).mul_(prepared.scale)


@register_format("int4")
class Int4(PackedFormat):
    """Half a byte a dimension and a float16 scale."""

    bits: ClassVar[int] = 4


@register_format("binary")
class Binary(PackedFormat):
    """One bit a dimension, its sign; vectors come back with unit length."""

    bits: ClassVar[int] = 1

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        return {"codes": pack((x >= 0).to(torch.uint8), 1)}

    def decode(self, fields: Fields) -> Tensor:
        return levels(unpack(fields["codes"], 1, self.dim), 1) * self.dim**-0.5

    def score(self, fields: Fields, prepared: IntegerQuery) -> Tensor:
        return packed_product(fields["codes"], 1, self.dim, prepared).mul_(prepared.scale * self.dim**-0.5)


def quantize(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes ``(n, d)`` uint8 and float16 scales ``(n,)`` of least squared error among a few."""
    top = 2**bits - 1
    largest = x.abs().amax(1)
    best = torch.full_like(largest, torch.inf)
    codes, scale = x.new_zeros(x.shape, dtype=torch.uint8), best.half()
    for share in torch.linspace(1.0, 0.4, TRIES).tolist():
        step = (largest * (share / top)).clamp(min=FINE)
        tried = ((x / step[:, None] + top) / 2).round().clamp(0, top).to(torch.uint8)
        value = levels(tried, bits)
        fitted = ((x * value).sum(1) / value.square().sum(1)).clamp(min=FINE).half()
        error = (x - value * fitted.float()[:, None]).square().sum(1)
        better = error < best
        best = torch.where(better, error, best)
        codes = torch.where(better[:, None], tried, codes)
        scale = torch.where(better, fitted, scale)
    return codes, scale


def levels(codes: Tensor, bits: int) -> Tensor:
    """Values of codes, float32."""
    return codes.float().mul_(2).sub_(2**bits - 1)


def pack(codes: Tensor, bits: int) -> Tensor:
    """``(n, ceil(d / per))`` uint8 from codes ``(n, d)``, ``per = 8 / bits`` to a byte; zeros fill the last ones."""
    per = 8 // bits
    width = -(-codes.shape[1] // per)
    full = torch.nn.functional.pad(codes, (0, width * per - codes.shape[1])).view(len(codes), per, width)
    out = full[:, 0].clone()
    for i in range(1, per):
        out |= full[:, i] << (i * bits)
    return out


def unpack(packed: Tensor, bits: int, dim: int) -> Tensor:
    """Codes ``(n, d)`` uint8."""
    per, width = 8 // bits, packed.shape[1]
    out = packed.new_empty(len(packed), per * width)
    for i in range(per):
        part = out[:, i * width : (i + 1) * width]
        torch.bitwise_right_shift(packed, i * bits, out=part)
        if i < per - 1:
            part &= 2**bits - 1
    return out[:, :dim]


def packed_product(packed: Tensor, bits: int, dim: int, query: IntegerQuery) -> Tensor:
    """``(n, Q)`` float32: values of packed codes times integer query values, both without their scales."""
    codes = unpack(packed, bits, dim).contiguous().view(torch.int8)
    return product(codes, query).float().mul_(2).sub_(query.sums * (2**bits - 1))


def half_up(x: Tensor) -> Tensor:
    """Float16, never zero."""
    return x.clamp(min=FINE).half()
