"""Layers that share what they make of distant tokens, so that most of them keep no keys of those."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.reference.decoder import Held, full

BLOCK = 256  # queries scored at once: never all pairs


class PoD(nn.Module):
    """Within a block of layers the lowest one decides how distant tokens are attended to; every layer sees the first
    `sinks` and the last `recent` tokens (the query's own included) with its own keys.

    An :data:`~benchmarks.reference.decoder.Attend`. A layer's softmax runs over its own scores of near tokens and the lowest
    layer's of distant ones, with its own values: the same as weighing the two outputs by their sums of exponentials.
    With `memory`, `memory[layer]` is a :class:`~benchmarks.reference.decoder.Held` in lowest layers and a :class:`Shared`
    in the others, which keeps all values and the keys of near tokens only. `blocks` are consecutive layers, all of them.

    Source: PoD, arXiv 2412.02252. Deviations: blocks are of whole layers, the paper groups each head apart; distant
    attention is never skipped (the paper may, where near tokens weigh more than 0.7).
    """

    def __init__(self, blocks: Sequence[Sequence[int]], sinks: int = 16, recent: int = 4080):
        super().__init__()
        order = [layer for block in blocks for layer in block]
        if order != list(range(len(order))):
            raise ValueError(f"blocks={blocks} must name every layer once and in order, as [[0], [1, 2, 3]] does")
        if sinks < 0 or recent < 1:
            raise ValueError(f"sinks={sinks} must be at least 0 and recent={recent} at least 1: a token sees itself")
        self.lowest = {layer: block[0] for block in blocks for layer in block}
        self.sinks, self.recent = sinks, recent
        self._queries: dict[int, Tensor] = {}  # of the lowest layers, while a call goes up the layers
        self._keys: dict[int, Tensor] = {}

    def forward(self, layer: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor, memory: dict | None = None) -> Tensor:
        if self.lowest[layer] == layer:
            mixed = full(layer, x, q, k, v, memory)
            self._queries[layer] = q
            self._keys[layer] = k if memory is None else memory[layer].keys[:, :, : memory[layer].length]
        else:
            if memory is None:
                near, first = k, 0
            else:
                near, v, first = memory.setdefault(layer, Shared(self.sinks, self.recent)).add(k, v)
            low = self.lowest[layer]
            mixed = shared(q, near, v, self._queries[low], self._keys[low], self.sinks, self.recent, first)
        if layer == len(self.lowest) - 1:
            self._queries.clear()
            self._keys.clear()
        return mixed


def shared(
    q: Tensor, k: Tensor, v: Tensor, low_q: Tensor, low_k: Tensor, sinks: int, recent: int, first: int = 0
) -> Tensor:
    """Attention of the last queries, q and low_q (B, H, T, d), to v (B, G, N, d): near tokens scored by `k`, distant
    ones by `low_k` (B, G, N, d). Where `first` > 0, `k` holds only the sinks and the tokens from place `first` on."""
    share, length, new = q.shape[1] // v.shape[1], v.shape[2], q.shape[2]
    places = torch.arange(length, device=q.device)
    own = torch.cat([places[:sinks], places[max(first, sinks) :]]) if first else places
    out = []
    for start in range(0, new, BLOCK):
        stop = min(start + BLOCK, new)
        age = torch.arange(length - new + start, length - new + stop, device=q.device)[:, None] - places
        scores = _scores(low_q[:, :, start:stop], low_k, share)
        mine = _scores(q[:, :, start:stop], k, share)
        if first:
            mine = torch.zeros_like(scores).index_copy(-1, own, mine)
        near = (places < sinks) | (age < recent)
        weights = torch.where(near, mine, scores).masked_fill(age < 0, -torch.inf).softmax(-1)
        out.append((weights.to(v.dtype) @ v[:, :, None]).flatten(1, 2))
    return torch.cat(out, dim=2)


def _scores(q: Tensor, k: Tensor, share: int) -> Tensor:
    """(B, G, H / G, T, N) in single precision."""
    grouped = q.unflatten(1, (-1, share)) * q.shape[-1] ** -0.5
    return (grouped @ k[:, :, None].transpose(-1, -2).to(q.dtype)).float()


class Shared:
    """All values of a layer, and the keys of its first `sinks` and last `recent` tokens."""

    def __init__(self, sinks: int, recent: int):
        self.sinks, self.recent, self.length = sinks, recent, 0
        self.held = Held()  # values; its keys are empty
        self.keys = torch.empty(0)

    def add(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """The keys that queries among these tokens may want, all values, and the place the recent keys begin at."""
        known = k if self.length == 0 else torch.cat([self.keys, k], 2)
        first = max(self.length - self.recent, 0) if self.length > self.sinks + self.recent else 0
        _, values = self.held.add(k[..., :0], v)
        self.length += k.shape[2]
        self.keys = known
        if self.length > self.sinks + self.recent:
            self.keys = torch.cat([known[:, :, : self.sinks], known[:, :, -self.recent :]], 2)
        return known, values, first

    def bytes(self) -> int:
        return (self.keys.numel() + self.held.values[:, :, : self.length].numel()) * self.keys.element_size()


def similarity(attention: Tensor) -> Tensor:
    """(L, L): 1 less the mean Jensen-Shannon divergence (in bits) of the layers' attention, (L, ..., N) weights."""
    rows = attention.flatten(1, -2)

    def entropy(p: Tensor) -> Tensor:
        return -torch.special.xlogy(p, p).sum(-1)

    pairs = [[entropy((a + b) / 2) - (entropy(a) + entropy(b)) / 2 for b in rows] for a in rows]
    divergence = torch.stack([torch.stack([d.mean() for d in line]) for line in pairs])
    return 1 - divergence / torch.log(torch.tensor(2.0))


def blocks(alike: Tensor, least: float = 0.5) -> list[list[int]]:
    """From below, a layer joins the block under it where it is at least `least` like each of that block's layers."""
    found: list[list[int]] = []
    for layer in range(len(alike)):
        if found and all(alike[layer, other] >= least for other in found[-1]):
            found[-1].append(layer)
        else:
            found.append([layer])
    return found
