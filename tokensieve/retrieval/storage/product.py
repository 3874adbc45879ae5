"""Product: float queries times small integers, in integer arithmetic, on CPUs four times as fast as in float32."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

HALF = 63
"""Query values take 7 bits: products of two fit 16 bits, where CPUs without VNNI add them."""
BASE = 2 * HALF + 1


class IntegerQuery(NamedTuple):
    """Query values as ``(high BASE + low) scale``: 14 bits relative to the largest of the vector."""

    parts: Tensor
    """``(d, 2 Q)`` int8: the high parts of all query vectors, then the low parts."""
    sums: Tensor
    """``(Q,)`` int32: sums of the values."""
    scale: Tensor
    """``(Q,)`` float32."""


def integer_query(query: Tensor) -> IntegerQuery:
    """From ``(Q, d)``."""
    query = query.float()
    limit = HALF * BASE + HALF
    scale = query.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny * limit) / limit
    whole = (query / scale[:, None]).round().int()
    high = ((whole + HALF).div(BASE, rounding_mode="floor")).clamp(-HALF, HALF)
    parts = torch.cat([high, whole - high * BASE]).to(torch.int8)
    return IntegerQuery(parts.T.contiguous(), whole.sum(1).int(), scale)


def product(codes: Tensor, query: IntegerQuery) -> Tensor:
    """``(n, Q)``: codes ``(n, d)``, int8, times the integer query values; exact, int32."""
    count = len(query.scale)
    if codes.device.type == "cpu" and codes.shape[1] > 1:
        both = torch._int_mm(codes, query.parts)
        return torch.add(both[:, count:], both[:, :count], alpha=BASE)
    # Elsewhere the integer product asks for shapes that a few query tokens do not have; on CPUs it is wrong for d = 1.
    both = codes.double() @ query.parts.double()
    return (both[:, :count] * BASE + both[:, count:]).int()
