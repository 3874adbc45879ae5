"""Learned roles of tokens that say how long their keys and values live."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.reference.decoder import Shape, causal

GLOBAL, LOCAL, SLIDING = range(3)


class NAtS(nn.Module):
    """Every layer and key-value head gives each token a role, by a linear map of what the layer reads: *global* is
    seen by all later tokens, *local* up to and with the next global one, *sliding* by the next `window`.

    An :data:`~benchmarks.reference.decoder.Attend`: without `memory` the masked form over (B, T) tokens; with one,
    `memory[layer]` is a :class:`Ragged` that drops what nobody will see again. In training roles are drawn (Gumbel
    softmax, hard, gradients straight through) and the mask is differentiable; otherwise the likeliest role holds. The
    first token is global. `visible` is the share of the causal pairs that the last call saw, layer by layer.

    Source: Neural Attention Search, arXiv 2502.13251; the language model stays frozen as in the paper's fine-tuning.
    Deviations: sparsity is a loss on `visible` instead of a constant added to the mask's gradient; the gradient of a
    cut goes to all tokens between that and the local token; the public code updates its cache in chunks, here it is
    exact after every token.
    """

    def __init__(self, shape: Shape, window: int = 64):
        super().__init__()
        if window < 1:
            raise ValueError(
                f"window={window} must be at least 1 token; without one, sliding tokens would never be seen"
            )
        self.window, self.groups = window, shape.groups
        self.roles = nn.ModuleList(nn.Linear(shape.width, 3 * shape.groups, bias=False) for _ in range(shape.layers))
        self.visible: dict[int, Tensor] = {}

    def role(self, layer: int, x: Tensor, first: bool) -> Tensor:
        """One-hot roles (B, G, T, 3) of what layer reads, x (B, T, D); `first` says that x begins the sequence."""
        logits = self.roles[layer](x.detach()).float().unflatten(-1, (self.groups, 3)).transpose(1, 2)
        likeliest = F.one_hot(logits.argmax(-1), 3).to(logits)
        roles = F.gumbel_softmax(logits, hard=True) if self.training else likeliest
        if first:
            head = torch.zeros_like(roles[:, :, :1])
            head[..., GLOBAL] = 1
            roles = torch.cat([head, roles[:, :, 1:]], dim=2)
        return roles

    def forward(self, layer: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor, memory: dict | None = None) -> Tensor:
        first = memory is None or layer not in memory
        roles = self.role(layer, x, first)
        if first:
            mask = mask_of(roles, self.window)
            self.visible[layer] = mask.sum() / (mask.shape[0] * mask.shape[1] * causal(*mask.shape[2:]).sum())
            if memory is not None:
                memory[layer] = Ragged(k, v, roles, self.window)
            return masked(q, k, v, mask)
        if q.shape[2] != 1:
            raise ValueError(f"a cache that drops entries takes 1 token at a time, not {q.shape[2]}; pass them singly")
        return memory[layer].step(q, k, v, roles)  # type: ignore[index]


def mask_of(roles: Tensor, window: int) -> Tensor:
    """One-hot roles (B, G, T, 3) to (B, G, T, T): 1 where query i sees key j, differentiable in the roles."""
    length = roles.shape[2]
    age = torch.arange(length, device=roles.device)[:, None] - torch.arange(length, device=roles.device)
    so_far = roles[..., GLOBAL].cumsum(-1)
    between = (so_far - roles[..., GLOBAL])[..., None] - so_far[..., None, :]  # globals after j and before i
    until = (1 - between).clamp(min=0, max=1)
    parts = roles[..., None, :, :]
    near = ((age >= 0) & (age <= window)).to(roles)
    mask = parts[..., GLOBAL] + parts[..., LOCAL] * until + parts[..., SLIDING] * near
    # A token sees itself whatever its role: on the diagonal the role weighs nothing.
    return torch.where(age == 0, torch.ones_like(mask), mask) * (age >= 0)


def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention whose weights before normalising are multiplied by `mask` (B, G, T, T), so that it has gradients."""
    share = q.shape[1] // k.shape[1]
    logits = q.float().unflatten(1, (-1, share)) @ k.float().transpose(-1, -2)[:, :, None] * q.shape[-1] ** -0.5
    mask = mask[:, :, None]
    top = logits.detach().masked_fill(mask == 0, -torch.inf).amax(-1, keepdim=True)
    # A hidden key may outweigh every visible one: bounded, so that it stays finite until the mask removes it.
    weights = (logits - top).clamp(max=20).exp() * mask
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights.to(v.dtype) @ v[:, :, None]).flatten(1, 2)


class Ragged:
    """Keys and values of all rows and heads in one flat tensor (N, d), each row and head with as many as still live."""

    def __init__(self, k: Tensor, v: Tensor, roles: Tensor, window: int):
        rows, groups, length, _ = k.shape
        self.rows, self.window, self.length = rows * groups, window, length
        self.keys, self.values = k.flatten(0, 2), v.flatten(0, 2)
        self.owner = torch.arange(self.rows, device=k.device).repeat_interleave(length)
        self.place = torch.arange(length, device=k.device).repeat(self.rows)
        self.role = roles.argmax(-1).flatten()
        places = torch.arange(length, device=k.device)
        self.last = torch.where(roles[..., GLOBAL] > 0, places, -1).amax(-1).flatten()  # (B G,) latest global token
        self._drop()

    def step(self, q: Tensor, k: Tensor, v: Tensor, roles: Tensor) -> Tensor:
        """Attention of one new token, (B, H, 1, d), which then may end the life of others."""
        role = roles.argmax(-1).flatten()
        order = torch.cat([self.owner, torch.arange(self.rows, device=k.device)]).argsort(stable=True)
        new = (k.flatten(0, 2), v.flatten(0, 2), torch.full_like(role, self.length), role)
        old = (self.keys, self.values, self.place, self.role)
        self.keys, self.values, self.place, self.role = (
            torch.cat([a, b])[order] for a, b in zip(old, new, strict=True)
        )
        self.owner = torch.cat([self.owner, torch.arange(self.rows, device=k.device)])[order]
        keys, values, alive = self.padded()
        mixed = F.scaled_dot_product_attention(
            q.reshape(self.rows, -1, q.shape[-1]), keys, values, attn_mask=alive[:, None]
        )
        self.last = torch.where(role == GLOBAL, self.length, self.last)
        self.length += 1
        self._drop()
        return mixed.reshape(q.shape)

    def padded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (B G, C, d), and which of them are there (B G, C)."""
        counts = self.counts()
        slot = torch.arange(len(self.owner), device=self.owner.device) - (counts.cumsum(0) - counts)[self.owner]
        size = (self.rows, int(counts.max()))
        alive = torch.zeros(size, dtype=torch.bool, device=self.owner.device)
        alive[self.owner, slot] = True
        keys, values = (t.new_zeros(*size, t.shape[-1]) for t in (self.keys, self.values))
        keys[self.owner, slot], values[self.owner, slot] = self.keys, self.values
        return keys, values, alive

    def counts(self) -> Tensor:
        """How many entries live, (B G,)."""
        return torch.bincount(self.owner, minlength=self.rows)

    def bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()

    def _drop(self) -> None:
        """Let go of what the token at place `length` and later ones do not see."""
        keep = self.role == GLOBAL
        keep |= (self.role == LOCAL) & (self.place >= self.last[self.owner])
        keep |= (self.role == SLIDING) & (self.length - self.place <= self.window)
        self.keys, self.values = self.keys[keep], self.values[keep]
        self.owner, self.place, self.role = self.owner[keep], self.place[keep], self.role[keep]
