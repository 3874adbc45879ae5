"""A small causal transformer whose attention can be swapped: the frame of the trainable parts around the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# attend(layer, x, q, k, v, memory): x (B, T, D) as the layer reads it, q (B, H, T, d), k and v (B, G, T, d) after rotary
# positions, and what is remembered of earlier calls, or None; gives (B, H, T, d).
Attend = Callable[[int, Tensor, Tensor, Tensor, Tensor, "dict[Any, Any] | None"], Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes: `heads` query heads share `groups` key-value heads, each `head` wide; `theta` is the rotary base."""

    width: int = 64
    layers: int = 2
    heads: int = 4
    groups: int = 4
    head: int = 16
    mlp: int = 192
    theta: float = 10000.0

    def __post_init__(self) -> None:
        if self.heads % self.groups:
            raise ValueError(
                f"groups={self.groups} must divide heads={self.heads}; take one of "
                f"{[g for g in range(1, self.heads + 1) if self.heads % g == 0]}"
            )
        if self.head % 2:
            raise ValueError(f"head={self.head} must be even, for rotary positions turn pairs of channels")


class Layer(nn.Module):
    """Attention and a gated MLP, each behind an RMS norm and beside a residual path."""

    def __init__(self, s: Shape):
        super().__init__()
        self.shape = s
        self.before, self.between = (nn.RMSNorm(s.width, eps=1e-6) for _ in range(2))
        self.q, self.k, self.v = (nn.Linear(s.width, n * s.head, bias=False) for n in (s.heads, s.groups, s.groups))
        self.o = nn.Linear(s.heads * s.head, s.width, bias=False)
        self.gate, self.up = (nn.Linear(s.width, s.mlp, bias=False) for _ in range(2))
        self.down = nn.Linear(s.mlp, s.width, bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], index: int, attend: Attend, memory: dict | None):
        y = self.before(x)
        q, k, v = (m(y).unflatten(-1, (-1, self.shape.head)).transpose(1, 2) for m in (self.q, self.k, self.v))
        mixed = attend(index, y, rotate(q, turn), rotate(k, turn), v, memory)
        x = x + self.o(mixed.transpose(1, 2).flatten(2).to(x.dtype))
        y = self.between(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Stack(nn.Module):
    """Layers and a last norm, (B, T, D) to (B, T, D); position `start` is that of the first token, or (B, T) of all."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=1e-6)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                last = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(p, std=0.5 * p.shape[1] ** -0.5 / ((2 * shape.layers) ** 0.5 if last else 1))

    def forward(
        self, x: Tensor, attend: Attend | None = None, memory: dict | None = None, start: int | Tensor = 0
    ) -> Tensor:
        places = start if isinstance(start, Tensor) else torch.arange(start, start + x.shape[1], device=x.device)[None]
        speed = self.shape.theta ** (-torch.arange(0, self.shape.head, 2, device=x.device) / self.shape.head)
        angle = (places[:, None, :, None] * speed).repeat(1, 1, 1, 2)
        for index, layer in enumerate(self.layers):
            x = layer(x, (angle.cos(), angle.sin()), index, attend or full, memory)
        return self.norm(x)


class Decoder(nn.Module):
    """Token ids (B, T) to logits (B, T, V)."""

    def __init__(self, vocabulary: int, shape: Shape):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, shape.width)
        self.stack = Stack(shape)
        self.head = nn.Linear(shape.width, vocabulary, bias=False)
        nn.init.normal_(self.embed.weight, std=0.5)
        nn.init.normal_(self.head.weight, std=0.5 * shape.width**-0.5)

    def forward(
        self, ids: Tensor, attend: Attend | None = None, memory: dict | None = None, start: int | Tensor = 0
    ) -> Tensor:
        return self.head(self.stack(self.embed(ids), attend, memory, start))

    @classmethod
    def of_llama(cls, model: Any) -> Decoder:
        """A copy of a `LlamaForCausalLM` (no biases, plain rotary positions) that computes the same logits."""
        c = model.config
        shape = Shape(
            c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
            c.intermediate_size, c.rope_parameters["rope_theta"],
        )  # fmt: skip
        made = cls(c.vocab_size, shape)
        names = {
            "before": "input_layernorm", "between": "post_attention_layernorm", "q": "self_attn.q_proj",
            "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj", "gate": "mlp.gate_proj",
            "up": "mlp.up_proj", "down": "mlp.down_proj",
        }  # fmt: skip
        weights = {"embed": "model.embed_tokens", "stack.norm": "model.norm", "head": "lm_head"}
        for i in range(shape.layers):
            weights |= {f"stack.layers.{i}.{own}": f"model.layers.{i}.{its}" for own, its in names.items()}
        theirs = model.state_dict()
        made.load_state_dict({f"{own}.weight": theirs[f"{its}.weight"].clone() for own, its in weights.items()})
        return made


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions, the halves of a head's channels forming the pairs."""
    a, b = x.chunk(2, dim=-1)
    return (x * turn[0] + torch.cat([-b, a], dim=-1) * turn[1]).to(x.dtype)


class Held:
    """A layer's keys and values (B, G, N, d) in buffers that double when they are full."""

    def __init__(self, room: int = 64):
        self.room, self.length = room, 0
        self.keys = self.values = torch.empty(0)

    def add(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values up to these."""
        end = self.length + k.shape[2]
        if self.length == 0 or end > self.keys.shape[2]:
            room = max(end, 2 * self.keys.shape[2] if self.length else self.room)
            grown = [t.new_empty(*t.shape[:2], room, t.shape[3]) for t in (k, v)]
            for new, old in zip(grown, (self.keys, self.values), strict=True):
                if self.length:
                    new[:, :, : self.length] = old[:, :, : self.length]
            self.keys, self.values = grown
        self.keys[:, :, self.length : end], self.values[:, :, self.length : end] = k, v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def bytes(self) -> int:
        """Of what is in use."""
        return 2 * self.keys[:, :, : self.length].numel() * self.keys.element_size()


def full(layer: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor, memory: dict | None = None) -> Tensor:
    """Causal attention to everything; `memory[layer]` is a :class:`Held`."""
    if memory is not None:
        k, v = memory.setdefault(layer, Held()).add(k, v)
    one, same = q.shape[2] == 1, q.shape[2] == k.shape[2]
    seen = None if one or same else causal(q.shape[2], k.shape[2], q.device)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=seen, is_causal=same and not one, enable_gqa=q.shape[1] != k.shape[1]
    )


def causal(queries: int, keys: int, device: torch.device | None = None) -> Tensor:
    """(queries, keys), True where a query sees a key; the queries are the last of the keys' places."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
