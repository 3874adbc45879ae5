"""Meta-tokens: one learned token strewn over a text, and attention of their own between these."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.reference.decoder import Attend, Decoder, full, rotate


def inject(ids: Tensor, share: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids (B, T) with ``round(share * T)`` meta-tokens at random places of each row, never at its end, and where they are."""
    rows, length = ids.shape
    count = round(share * length)
    order = torch.rand(rows, length + count - 1, generator=draw).argsort(1)[:, :count]
    where = torch.zeros(rows, length + count, dtype=torch.bool).scatter(1, order, True)
    out = torch.zeros(rows, length + count, dtype=ids.dtype)
    out[~where] = ids.flatten()
    return out, where


class MetaAttention(nn.Module):
    """Causal attention of meta-tokens to meta-tokens alone; other tokens get nothing. It begins as no change at all.

    Args:
        width: of the states; heads: they are split into.
        theta: of the rotary positions, which are those of the whole text.
    """

    def __init__(self, width: int, heads: int, theta: float):
        super().__init__()
        self.heads, self.theta = heads, theta
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.qkv, self.o = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.o.weight)

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        """What is added to states (B, T, D); every row of `where` (B, T) has as many meta-tokens."""
        at = where.nonzero()[:, 1].view(len(x), int(where[0].sum()))
        own = x[where].view(*at.shape, x.shape[-1])
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm(own)).chunk(3, -1))
        speed = self.theta ** (-torch.arange(0, q.shape[-1], 2, device=x.device) / q.shape[-1])
        angle = (at[:, None, :, None] * speed).repeat(1, 1, 1, 2)
        turn = (angle.cos(), angle.sin())
        mixed = F.scaled_dot_product_attention(rotate(q, turn), rotate(k, turn), v, is_causal=True)
        out = torch.zeros_like(x)
        out[where] = self.o(mixed.transpose(1, 2).flatten(2)).flatten(0, 1).to(x.dtype)
        return out


class MetaTokens(nn.Module):
    """A decoder with a learned embedding at meta-tokens, and in every layer, behind causal attention, meta-attention.

    Source: Shah et al., Language Modeling with Learned Meta-Tokens (arXiv 2509.16278). Deviation: a Llama's layer, where the
    paper's is GPT-2's; without an extension of positions by YaRN.

    Args:
        model: the decoder, which is trained along.
        attend_meta: without it, the meta-tokens are tokens like others.
    """

    def __init__(self, model: Decoder, attend_meta: bool = True):
        super().__init__()
        shape = model.stack.shape
        self.model = model
        table = model.embed.weight.detach()
        self.meta = nn.Parameter(table.mean(0) + table.std(0) * torch.randn(shape.width))  # as long as that of a token
        made = (MetaAttention(shape.width, shape.heads, shape.theta) for _ in range(shape.layers if attend_meta else 0))
        self.between = nn.ModuleList(made)

    def forward(self, ids: Tensor, where: Tensor, attend: Attend = full) -> Tensor:
        """States (B, T, D) in front of ``model.head``, of ids (B, T) in which the places `where` (B, T) are meta-tokens."""
        stack = self.model.stack
        x = torch.where(where[..., None], self.meta, self.model.embed(ids))
        speed = stack.shape.theta ** (-torch.arange(0, stack.shape.head, 2, device=x.device) / stack.shape.head)
        angle = (torch.arange(x.shape[1], device=x.device)[:, None] * speed).repeat(1, 2)
        turn = (angle.cos(), angle.sin())
        for i, layer in enumerate(stack.layers):
            y = layer.before(x)
            q, k, v = (m(y).unflatten(-1, (-1, stack.shape.head)).transpose(1, 2) for m in (layer.q, layer.k, layer.v))
            mixed = attend(i, y, rotate(q, turn), rotate(k, turn), v, None)
            x = x + layer.o(mixed.transpose(1, 2).flatten(2))
            if len(self.between):
                x = x + self.between[i](x, where)
            y = layer.between(x)
            x = x + layer.down(F.silu(layer.gate(y)) * layer.up(y))
        return stack.norm(x)
