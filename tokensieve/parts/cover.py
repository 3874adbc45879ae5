"""Cover: choosing tokens that stand for all others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.parts.select import compact, take

ROWS = 512


@torch.no_grad()
def facility(metric: Tensor, bonus: Tensor, count: Tensor, among: Tensor) -> Tensor:
    """Greedy facility location with a bonus: each pick adds the most to ``sum over tokens of the similarity to the nearest
    chosen one + sum over chosen ones of the bonus``, similarity being the cosine brought to [0, 1].

    After a pick, gains change only through tokens that it stands nearer to than all before it: each token is looked at
    anew about log(count) times. Time about N^2 D log(count); memory B x 512 x N.

    Args:
        metric: ``(B, N, D)``; bonus: ``(B, N)``; count: ``(B,)``, picks; among: ``(B, N)`` bool, the candidates.

    Returns:
        ``(B, N)`` bool.
    """
    unit = normalize(metric, dim=-1) * among[..., None]
    alone = (unit @ unit.sum(1)[..., None])[..., 0]
    # Nothing is covered yet, so that the first gains have a closed form.
    gain = ((among.sum(1, keepdim=True) + alone) / 2 + bonus).double()
    cover = torch.zeros_like(bonus)
    chosen = torch.zeros_like(among)
    left = count.minimum(among.sum(1))
    while int(left.max()) > 0:
        pick = gain.masked_fill(~among | chosen, -torch.inf).argmax(1, keepdim=True)
        chosen = chosen.scatter(1, pick, chosen.gather(1, pick) | (left > 0)[:, None])
        like = _alike(unit, pick)[:, 0]
        nearer = (like > cover) & among & (left > 0)[:, None]
        place, real = compact(nearer)
        for part, ok in zip(place.split(ROWS, 1), real.split(ROWS, 1), strict=True):
            own = _alike(unit, part)
            lost = (own - cover.gather(1, part)[..., None]).clamp(min=0)
            lost -= (own - like.gather(1, part)[..., None]).clamp_(min=0)
            gain -= (lost * ok[..., None]).sum(1)
        cover = torch.where(nearer, like, cover)
        left = left - 1
    return chosen


def _alike(unit: Tensor, place: Tensor) -> Tensor:
    return (1 + take(unit, place) @ unit.transpose(1, 2)) / 2
