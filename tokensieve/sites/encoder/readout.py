"""Readout: what reads an encoder's states behind its blocks, and whether it finds all tokens or those that are left.

Restored (the default), every token has the state of the one that it was merged into, and one that left the state in which it did:
means, heads and feature maps count what they always did. Merged, what attends to the states attends to those that are left, each
with the weight of as many as it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.sites.encoder.state import EncoderReduction
from tokensieve.sites.model import calls, taps
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.calls import Detach


def around(model: nn.Module, stack: Stack) -> list[nn.Module]:
    """The modules around the blocks, from the inside: their outputs may hold the states of each block."""
    first = stack.layers[0]
    found = [m for m in model.modules() if not isinstance(m, nn.ModuleList) and any(x is first for x in m.modules())]
    return [
        m
        for m in reversed(found)
        if m is not first and not any(m is x for layer in stack.layers for x in layer.modules())
    ]


def widened(now: EncoderReduction, output: Any, last: bool) -> Any:
    """An output with the states of all blocks at their full length; ``last``: those behind the last one too."""
    if hasattr(output, "keys"):
        for name in list(output.keys()):
            value = output[name]
            if isinstance(value, (tuple, list)) or (name == "last_hidden_state" and last):
                wide = _wide(now, value)
                if wide is not value:
                    output[name] = wide
        return output
    if isinstance(output, tuple):
        return tuple(_wide(now, v) if isinstance(v, (tuple, list)) else v for v in output)
    return output


def _wide(now: EncoderReduction, value: Any) -> Any:
    if isinstance(value, Tensor):
        return now.restore(value) if value.dim() == 3 else value
    if isinstance(value, (tuple, list)):
        made = [_wide(now, v) for v in value]
        return value if all(a is b for a, b in zip(made, value, strict=True)) else type(value)(made)
    return value


class Readers:
    """What attends to the states behind an encoder's blocks: a decoder's cross-attention, or an attention pooling.

    Raises:
        ValueError: nothing does.
    """

    def __init__(self, stack: Stack, model: nn.Module):
        inside = {id(m) for layer in stack.layers for m in layer.modules()}
        behind = [m for m in stack.root.modules() if id(m) not in inside]
        self.pools = [m for m in behind if isinstance(m, nn.MultiheadAttention)]
        self.crosses = list(_crossing(model, stack))
        if not self.pools and not self.crosses:
            raise ValueError(
                f"readout='merged': behind the blocks of {type(stack.root).__name__} nothing attends to the tokens; what takes "
                "means or single tokens would count a merged one once. Use readout='restored'"
            )

    def attach(self, state: Callable[[], EncoderReduction | None]) -> list[Detach]:
        """Have them weigh tokens; ``state`` says what became of those of the last pass."""
        self._state = state
        out = [calls.before(pool, self._pooled) for pool in self.pools]
        return out + [taps.attach(attention, limit=self._crossed) for attention in self.crosses]

    def _bias(self, keys: int) -> Tensor | None:
        now = self._state()
        short = now is not None and now.shape is not None and now.by_length.get(keys) is now.shape
        return now.sizes() if short and now is not None else None

    def _pooled(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        bias = self._bias(kwargs["key"].shape[1])
        if bias is None:
            return None
        given = kwargs.get("key_padding_mask")
        if given is not None:
            raise ValueError("readout='merged': the pooling hides tokens by a mask of its own; use readout='restored'")
        return (), {**kwargs, "key_padding_mask": bias.to(kwargs["query"].dtype)}

    def _crossed(self, call: taps.Call) -> tuple[Tensor | None, Tensor | None]:
        bias = self._bias(call.key.shape[2])
        if bias is None:
            return call.mask, None
        bias = bias.repeat_interleave(len(call.key) // len(bias), 0)[:, None, None].to(call.query.dtype)
        if call.mask is None:
            return bias, None
        if call.mask.shape[-1] != call.key.shape[2]:
            raise ValueError(
                "readout='merged': the decoder hides tokens of the encoder by a mask of their full number; use readout='restored'"
            )
        least = torch.finfo(bias.dtype).min
        return (torch.where(call.mask, bias, least) if call.mask.dtype == torch.bool else call.mask + bias), None


def _crossing(model: nn.Module, stack: Stack) -> Iterator[nn.Module]:
    """The attention modules of a decoder's layers that attend to the encoder."""
    encoder = {id(m) for m in stack.root.modules()}
    for name, module in model.named_modules():
        cross = name.rsplit(".", 1)[-1] in ("encoder_attn", "EncDecAttention", "crossattention")
        if id(module) not in encoder and cross:
            found = [m for m in module.modules() if hasattr(m, "config") and hasattr(m, "scaling")]
            yield from found[:1]
