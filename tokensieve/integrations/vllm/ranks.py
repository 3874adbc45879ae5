"""Ranks of tensor parallelism: each holds some of an encoder's heads, and all must keep the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def all_heads(x: Tensor, dim: int, group: Any) -> Tensor:
    """The heads of all ranks along ``dim``, in the order of the ranks; ``group`` None: there is one rank."""
    if group is None:
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, dim)


def of_first(make: Callable[[], list[Tensor]], like: list[Tensor], group: Any) -> list[Tensor]:
    """What the first rank makes, on all of them.

    Args:
        make: called on the first rank alone.
        like: tensors of the shapes and types that it makes, which the others receive into.
    """
    if group is None:
        return make()
    out = make() if dist.get_rank(group) == 0 else like
    for x in out:
        dist.broadcast(x, dist.get_global_rank(group, 0), group=group)
    return out
