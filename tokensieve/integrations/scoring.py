"""The likelihood of a continuation, read from a cache from which entries have left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokensieve.core.plan import Plan
from tokensieve.integrations.planned import Planned
from tokensieve.sites.cache.prefix import prefill
from tokensieve.sites.model.compatibility import cache_argument
from tokensieve.sites.sieve import sieve


@torch.no_grad()
def behind(planned: Planned, prompts: Sequence[Sequence[int]], tails: Sequence[Sequence[int]]) -> Tensor:
    """``(B, t, V)`` logits of tails, each read behind its prompt, whose entries have left under the plan by then.

    Args:
        prompts: token ids, at least one each; tails: likewise. Rows of different lengths are padded outwards.
    """
    model = planned.model
    before, at = _padded(prompts, left=True)
    after, there = _padded(tails, left=False)
    before, at, after, there = (x.to(model.device) for x in (before, at, after, there))
    with planned.sieve:
        cache = prefill(model, {"input_ids": before, "attention_mask": at})
        planned.note(len(prompts), float(at.sum(1).float().mean()))
    places = at.sum(1, keepdim=True) + torch.arange(after.shape[1], device=after.device)
    with sieve(model, Plan([])):
        out = model(
            input_ids=after,
            attention_mask=torch.cat([at, there], 1),
            position_ids=places,
            **cache_argument(model, cache),
            use_cache=True,
        )
    return out.logits


def _padded(rows: Sequence[Sequence[int]], left: bool) -> tuple[Tensor, Tensor]:
    """``(B, L)`` ids and mask."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(len(row))
        ids[i, place] = torch.as_tensor(row)
        mask[i, place] = 1
    return ids, mask
