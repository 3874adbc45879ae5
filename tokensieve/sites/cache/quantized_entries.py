"""What a layer from which entries have left does where those that stay are quantized by the cache itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokensieve.sites.model.compatibility import DynamicLayer


class QuantizedEntries(DynamicLayer):
    """What an ``EvictedLayer`` does otherwise where entries are quantized; their storage is the other base class's."""

    def late(self) -> tuple[Tensor, Tensor]:
        made: Any = self
        keys, values = (made._dequantize(x) for x in (made._quantized_keys, made._quantized_values))
        if getattr(self, "_pending_beam_idx", None) is not None:
            keys, values = made._apply_pending_reorder(keys, values)
        rest = [x for x in (self.keys, self.values) if x is not None and x.dim() == 4]
        return (torch.cat([keys, rest[0]], 2), torch.cat([values, rest[1]], 2)) if rest else (keys, values)

    def pack(self, *args: object) -> None:
        raise ValueError("the method packs entries by itself; it takes a cache that is not quantized: DynamicCache()")

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        made: Any = self
        if made.pages is not None:
            raise ValueError(
                "heads that keep different numbers of entries need a cache that is not quantized; take a method that keeps "
                "equally many in each, such as 'snapkv'"
            )
        axes = [{"axis": a} for a in (made.axis_key, made.axis_value)] if hasattr(self, "axis_key") else [{}, {}]
        made._quantized_keys = made._quantize(keys.contiguous(), **axes[0])
        made._quantized_values = made._quantize(values.contiguous(), **axes[1])
        made._pending_beam_idx = None
        self.keys, self.values = (x.new_empty(0) for x in (keys, values))

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise ValueError("cannot crop a quantized cache from which tokens have left")
