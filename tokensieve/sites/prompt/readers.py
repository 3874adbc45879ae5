"""Readers: copies of a language model's layers that turn a text into fewer states, by pooled queries or by slots.

Both take token ids ``(B, N)`` and which of them are real, on whichever side the padding stands, and give states ``(B, K, W)`` and
which of those are real. The model they are made of stays as it is.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.sites.model.decoder import decoder
from tokensieve.sites.model.position_ids import rotary

NEEDED = ("layers", "norm", "rotary_emb")
"""What a decoder calls its layers, its last norm and its rotary tables, in the Llama family and those made like it."""


def places(real: Tensor) -> Tensor:
    """``(B, N)``: the place of each token among the real ones of its row; 0 at padding in front of them."""
    return (real.long().cumsum(1) - 1).clamp(min=0)


def _copied(model: nn.Module, depth: int | None) -> Any:
    """A copy of the decoder inside a model, with its first ``depth`` layers, trainable."""
    root: Any = decoder(model).root
    missing = [name for name in NEEDED if not hasattr(root, name)]
    if missing:
        raise ValueError(
            f"encoder={type(model).__name__}: it has no {' and no '.join(missing)}; a reader of tokens is made of decoders like "
            "Llama, Mistral, Qwen or SmolLM"
        )
    count = len(root.layers)
    if depth is not None and not 1 <= depth <= count:
        raise ValueError(
            f"depth={depth}; {type(root).__name__} has {count} layers, so it must lie between 1 and {count}"
        )
    root = copy.deepcopy(root)
    _cut(root, count if depth is None else depth)
    if root.config._attn_implementation not in ("sdpa", "eager"):
        root.config._attn_implementation = "sdpa"  # masks have four dimensions here, which flash kernels do not read
    return root.requires_grad_(True)


def _cut(root: Any, depth: int) -> None:
    root.layers = root.layers[:depth]
    root.config.num_hidden_layers = depth


class PooledReader(nn.Module):
    """A bidirectional reader whose last layer asks for fewer states: its queries are the means of consecutive states.

    The last norm is left out. A row of n tokens gives ``ceil(n / ratio)`` states.

    Source: Pilchen, Grave and Pérez, ARC-Encoder (arXiv 2510.20535). Deviations: states are averaged in front of the last layer's
    norm and projection of queries, and a query stands at the place in the middle of its states.

    Args:
        model: a causal language model of transformers, which is copied.
        ratio: tokens for a state, at least 1.
        depth: its first layers alone; all of them by default.

    Raises:
        ValueError: no such model, ratio or depth.
    """

    def __init__(self, model: nn.Module, ratio: int = 4, depth: int | None = None):
        super().__init__()
        if ratio < 1:
            raise ValueError(f"ratio={ratio}; it must be at least 1 token for a latent")
        self.root = _copied(model, depth)
        self.last = self.root.layers[-1]
        kinds = getattr(self.root.config, "layer_types", None)
        self._kind = kinds[len(self.root.layers) - 1] if kinds else None
        _cut(self.root, len(self.root.layers) - 1)
        self.root.norm = nn.Identity()
        self.ratio, self.width = ratio, int(self.root.config.hidden_size)

    def forward(self, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        at = places(real)
        hidden = self.root(
            input_ids=ids, attention_mask=_seen(real, ids.shape[1], self.root.dtype), position_ids=at, use_cache=False
        ).last_hidden_state
        counts = -(-real.sum(1) // self.ratio)
        slots = torch.arange(int(counts.max()), device=ids.device)
        asked = slots < counts[:, None]
        pooled = self._means(hidden, real, at, len(slots))
        ends = torch.minimum((slots + 1) * self.ratio, real.sum(1, keepdim=True)) - 1
        middle = ((slots * self.ratio + ends) // 2).clamp(min=0)
        # One call of the layer for both: the pooled states ask, and only the plain ones are seen.
        both, at = torch.cat([pooled, hidden], 1), torch.cat([middle, at], 1)
        shown = torch.cat([torch.zeros_like(asked), real], 1)
        out = self.last(
            both,
            attention_mask=_seen(shown, both.shape[1], both.dtype),
            position_ids=at,
            position_embeddings=rotary(self.root, both, at, self._kind),
        )
        out = out[0] if isinstance(out, tuple) else out
        return out[:, : len(slots)], asked

    def _means(self, hidden: Tensor, real: Tensor, at: Tensor, count: int) -> Tensor:
        group = torch.where(real, at // self.ratio, count)  # padding falls into a group that is cut off
        sums = hidden.new_zeros(len(hidden), count + 1, hidden.shape[2])
        sums = sums.scatter_add(1, group[..., None].expand_as(hidden), hidden)
        sizes = hidden.new_zeros(len(hidden), count + 1).scatter_add(1, group, torch.ones_like(hidden[..., 0]))
        return (sums / sizes.clamp(min=1)[..., None])[:, :count]


def _seen(real: Tensor, queries: int, dtype: torch.dtype) -> Tensor:
    """``(B, 1, queries, N)``, a view: what is added to scores so that every query sees what is real."""
    bias = torch.zeros(real.shape, dtype=dtype, device=real.device).masked_fill(~real, torch.finfo(dtype).min)
    return bias[:, None, None].expand(-1, 1, queries, -1)


class SlotReader(nn.Module):
    """A causal reader that learned queries stand behind the text of; what it makes of them are the states.

    Source: Liu and Qiu, Context Cascade Compression (arXiv 2511.15244).

    Args:
        model: a causal language model of transformers, which is copied.
        slots: queries, so many states for every row, at least 1.
        depth: its first layers alone; all of them by default.

    Raises:
        ValueError: no such model, slots or depth.
    """

    def __init__(self, model: nn.Module, slots: int = 32, depth: int | None = None):
        super().__init__()
        if slots < 1:
            raise ValueError(f"slots={slots}; there must be at least 1")
        self.root = _copied(model, depth)
        table = self.root.get_input_embeddings().weight.detach()
        self.slots = nn.Parameter(
            torch.randn(slots, table.shape[1], dtype=table.dtype, device=table.device) * table.std()
        )
        self.width = int(self.root.config.hidden_size)

    def forward(self, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        asked = real.new_ones(len(ids), len(self.slots))
        seen = torch.cat([real, asked], 1)
        x = torch.cat([self.root.get_input_embeddings()(ids), self.slots.expand(len(ids), -1, -1)], 1)
        out = self.root(inputs_embeds=x, attention_mask=seen.long(), position_ids=places(seen), use_cache=False)
        return out.last_hidden_state[:, -len(self.slots) :], asked
