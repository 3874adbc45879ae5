"""Cross-attention to a tree over the context, of which each query sees about log N nodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Walk:
    """What a descent led to: outputs (B, M, D); those of attention to all leaves, the sum of the log probabilities of
    the branches taken, and the mean entropy of the choices (B, M), in training only; and nodes seen by a query."""

    output: Tensor
    leaves: Tensor | None
    log_chance: Tensor | None
    entropy: Tensor | None
    nodes: int


class TreeCrossAttention(nn.Module):
    """Queries (B, M, D) look into a context (B, N, D), whose order is the order of the leaves.

    An inner node is the mean of its children after one transformer layer among them, learned without gradients into
    the children. From the root, attention to the children of a node picks the one to open (drawn in training, the
    likeliest otherwise); the others join what is attended to, at the last step all do. The same attention serves both.

    Source: Tree Cross Attention (ReTreever), arXiv 2309.17388. Deviation: a context is padded to a full tree with masked
    leaves, the public code repeats tokens there and may open nodes that hold no others.
    """

    def __init__(self, width: int, heads: int = 4, branch: int = 2):
        super().__init__()
        if branch < 2 or width % heads:
            raise ValueError(
                f"branch={branch} must be at least 2, and heads={heads} must divide width={width}; "
                "take 2 branches and a power of two of heads"
            )
        self.heads, self.branch = heads, branch
        self.aggregate = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.norm_query, self.norm_node = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.after = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def tree(self, context: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Levels (B, branch ** i, D) from the root down, and which of their nodes hold tokens (branch ** i)."""
        length, depth = context.shape[1], 1
        while self.branch**depth < length:
            depth += 1
        room = self.branch**depth - length
        levels, real = [F.pad(context, (0, 0, 0, room))], [torch.arange(length + room, device=context.device) < length]
        for _ in range(depth):
            below, there = levels[0].unflatten(1, (-1, self.branch)), real[0].unflatten(0, (-1, self.branch))
            # A node without tokens must attend to something; nobody attends to it.
            hidden = (~there & there.any(-1, keepdim=True)).expand(below.shape[:3]).flatten(0, 1)
            told = self.aggregate(below.detach().flatten(0, 1), src_key_padding_mask=hidden)
            weight = there.to(told) / there.sum(-1, keepdim=True).clamp(min=1)
            levels.insert(0, (told.unflatten(0, below.shape[:2]) * weight[..., None]).sum(2))
            real.insert(0, there.any(-1))
        return levels, real

    def forward(self, queries: Tensor, context: Tensor) -> Walk:
        levels, real = self.tree(context)
        q = self._split(self.q(self.norm_query(queries)))
        keys, values = zip(*((self.k(n), self.v(n)) for n in map(self.norm_node, levels)), strict=True)
        node = queries.new_zeros(queries.shape[:2], dtype=torch.long)
        seen_k: list[Tensor] = []
        seen_v: list[Tensor] = []
        seen: list[Tensor] = []
        chances: list[Tensor] = []
        entropies: list[Tensor] = []
        for depth in range(1, len(levels)):
            children = node[..., None] * self.branch + torch.arange(self.branch, device=node.device)  # (B, M, b)
            k, v = self._take(keys[depth], children), self._take(values[depth], children)
            open_ = real[depth][children]
            seen_k, seen_v = [*seen_k, k], [*seen_v, v]
            if depth == len(levels) - 1:
                seen.append(open_)
                break
            weights = self._weights(q, k, open_)  # (B, M, heads, b)
            chance = weights.mean(2)
            if self.training:
                pick = torch.multinomial(chance.flatten(0, 1), 1).view(node.shape)
                chances.append(chance.gather(-1, pick[..., None])[..., 0].clamp(min=1e-9).log())
                entropies.append(-torch.special.xlogy(weights, weights).sum(-1).mean(-1))
            else:
                pick = chance.argmax(-1)
            seen.append(open_ & (torch.arange(self.branch, device=node.device) != pick[..., None]))
            node = children.gather(-1, pick[..., None])[..., 0]
        output = self._attend(queries, q, torch.cat(seen_k, 2), torch.cat(seen_v, 2), torch.cat(seen, 2))
        nodes = (self.branch - 1) * (len(levels) - 2) + self.branch
        if not self.training:
            return Walk(output, None, None, None, nodes)
        none = torch.zeros_like(queries[..., 0])
        return Walk(
            output,
            self.attend_all(queries, context),
            torch.stack(chances).sum(0) if chances else none,
            torch.stack(entropies).mean(0) if entropies else none,
            nodes,
        )

    def attend_all(self, queries: Tensor, context: Tensor) -> Tensor:
        """Plain cross-attention to the whole context with the same weights, (B, M, D)."""
        q, nodes = self._split(self.q(self.norm_query(queries))), self.norm_node(context)
        k, v = (self._split(m(nodes)).transpose(1, 2) for m in (self.k, self.v))
        return self._finish(queries, F.scaled_dot_product_attention(q.transpose(1, 2), k, v).transpose(1, 2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def _take(self, nodes: Tensor, places: Tensor) -> Tensor:
        """(B, n, D) at (B, M, b): (B, M, b, heads, d)."""
        return self._split(nodes[torch.arange(len(nodes), device=nodes.device)[:, None, None], places])

    def _weights(self, q: Tensor, k: Tensor, seen: Tensor) -> Tensor:
        """q (B, M, heads, d), k (B, M, n, heads, d), seen (B, M, n): (B, M, heads, n)."""
        scores = torch.einsum("bmhd,bmnhd->bmhn", q, k).float() * q.shape[-1] ** -0.5
        return scores.masked_fill(~seen[:, :, None], -torch.inf).softmax(-1)

    def _attend(self, queries: Tensor, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        return self._finish(queries, torch.einsum("bmhn,bmnhd->bmhd", self._weights(q, k, seen).to(v.dtype), v))

    def _finish(self, queries: Tensor, mixed: Tensor) -> Tensor:
        y = queries + self.o(mixed.flatten(-2))
        return y + self.after(y)


def retreever_loss(logits: Tensor, leaf_logits: Tensor, gold: Tensor, walk: Walk, entropy: float = 0.01) -> Tensor:
    """Cross entropies of the descent and of all leaves, and REINFORCE on whether the descent was right, with a bonus for
    undecided choices: logits (B, M, C), gold (B, M)."""
    assert walk.log_chance is not None
    assert walk.entropy is not None
    right = (logits.argmax(-1) == gold).float()
    told = sum(F.cross_entropy(x.float().flatten(0, 1), gold.flatten()) for x in (logits, leaf_logits))
    return told - (walk.log_chance * right).mean() - entropy * walk.entropy.mean()
