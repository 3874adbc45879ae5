"""Cover: choosing tokens that stand for all others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.parts.select import take

LOOKAHEAD = 64


@torch.no_grad()
def facility(metric: Tensor, bonus: Tensor, count: Tensor, among: Tensor) -> Tensor:
    """Greedy facility location with a bonus: each pick adds the most to ``sum over tokens of the similarity to the nearest
    chosen one + sum over chosen ones of the bonus``, similarity being the cosine brought to [0, 1].

    A gain never grows as more is chosen, so that old gains are bounds: only the ``LOOKAHEAD`` candidates of highest bound
    are looked at anew, and the best of them is picked once it reaches every other bound. Time about count x LOOKAHEAD x N
    D; memory B x LOOKAHEAD x N.

    Args:
        metric: ``(B, N, D)``; bonus: ``(B, N)``; count: ``(B,)``, picks; among: ``(B, N)`` bool, the candidates.

    Returns:
        ``(B, N)`` bool.
    """
    unit = normalize(metric, dim=-1) * among[..., None]
    width = min(LOOKAHEAD, metric.shape[1])
    alone = (unit @ unit.sum(1)[..., None])[..., 0]
    # The first gains have a closed form: nothing is covered yet.
    bound = ((among.sum(1, keepdim=True) + alone) / 2 + bonus).masked_fill(~among, -torch.inf)
    cover = torch.zeros_like(bound)
    chosen = torch.zeros_like(among)
    left = count.minimum(among.sum(1))
    while int(left.max()) > 0:
        high, order = bound.sort(dim=1, descending=True, stable=True)
        near, places = high[:, :width], order[:, :width].sort(1).values
        like = ((1 + take(unit, places) @ unit.transpose(1, 2)) / 2) * among[:, None]
        gain = (like - cover[:, None]).clamp(min=0).sum(2) + bonus.gather(1, places)
        gain = gain.masked_fill(bound.gather(1, places).isinf(), -torch.inf)
        bound = bound.scatter(1, places, gain)
        best, pick = gain.max(1, keepdim=True)
        limit = high[:, width, None] if width < high.shape[1] else torch.full_like(near[:, :1], -torch.inf)
        taken = (best >= limit) & (left > 0)[:, None]
        place = places.gather(1, pick)
        chosen = chosen.scatter(1, place, chosen.gather(1, place) | taken)
        fresh = like.gather(1, pick[..., None].expand(-1, -1, like.shape[2]))[:, 0]
        cover = torch.where(taken, cover.maximum(fresh), cover)
        bound = bound.masked_fill(chosen, -torch.inf)
        left = left - taken[:, 0].long()
    return chosen
