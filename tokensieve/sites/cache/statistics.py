"""Noted: what a layer of the cache remembers of a pass, for methods that will read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.core.needs import Need
from tokensieve.parts import select
from tokensieve.parts.attention import rows
from tokensieve.sites.cache.entries import Entries
from tokensieve.sites.model.position_ids import apply_rope, uses_rope

OUTLIERS = 4
"""Queries of the first tokens are unlike all others and tell nothing of those to come."""


LASTING = {"token_ids": "token_ids", "visual_share": "shares"}
"""Needs that ask what each entry was as it came, and where a layer remembers it: no later pass can tell."""


def lasting(layer: Any, needs: Sequence[Need]) -> list[Need]:
    """Those of the needs that ask for what a layer remembers of each entry, and so has to remember of the next one too."""
    return [need for need in needs if getattr(layer, LASTING.get(need.name, ""), None) is not None]


def probes(real: Tensor, share: float) -> Tensor:
    """``(B, q)`` bool, which of a pass's queries are read: half of the share the last ones, half spread over all, by age."""
    held = real.sum(1, keepdim=True)
    age = held - real.long().cumsum(1)
    # Multiples of the golden ratio fall evenly, and a query's own age decides.
    spread = torch.frac(age.double() * 0.6180339887498949) < share / 2
    return real & ((age < torch.ceil(held * (share / 2))) | spread)


def note(
    entries: Entries,
    need: Need,
    columns: Tensor,
    real: Tensor | None,
    table: Any,
    ids: Tensor,
    words: Tensor | None,
    module: nn.Module,
) -> None:
    """Remember of a pass what a need asks for.

    Args:
        columns: ``(B, q)``, the pass's own; real: ``(B, L)`` bool, False at the prompt's padding; None for none.
        table: the rotary tables of the pass; ids: ``(B, q)``, its positions; words: ``(B, q)``, its token ids.

    Raises:
        ValueError: token ids are asked for, and the model was given embeddings, now or before.
    """
    layer, query = entries.layer, entries.call.query
    if need.name == "window_attention":
        layer.queries.append((query[:, :, -need.window :].clone(), columns[:, -need.window :].clone()))
        while sum(q.shape[2] for q, _ in layer.queries[1:]) >= need.window:
            layer.queries.pop(0)
        return
    if need.name == "token_ids":
        named = words if words is None else words.to(torch.int32)[:, None]
        if named is not None and layer.token_ids is not None:
            named = torch.cat([layer.token_ids, named.expand(-1, layer.token_ids.shape[1], -1)], 2)
        if named is None or named.shape[2] != entries.keys.shape[2]:
            raise ValueError(
                "the method reads token ids, which are not known of every cached token; call the model with input_ids, from the "
                "beginning of the prompt on"
            )
        layer.token_ids = named
        return
    if need.name == "visual_share":
        shown = entries.is_visual().repeat_interleave(query.shape[1] // entries.keys.shape[1], 1).float()
        step = max(1, rows.HELD // shown.numel())
        parts = [
            torch.einsum("bhtn,bhn->bht", entries.attention(query[:, :, part], columns[:, part]), shown)
            for part in (slice(start, start + step) for start in range(0, query.shape[2], step))
        ]
        share = _grouped(torch.cat(parts, 2), entries)
        layer.shares = share if layer.shares is None else torch.cat([layer.shares, share], 2)
        return
    here = torch.ones_like(columns, dtype=torch.float32)
    if real is not None:
        here = real.gather(1, columns.clamp(min=0)).float()
    here = here * (columns >= 0)
    if need.name == "probe_attention":
        at, held = select.compact(probes(here > 0, need.rate))
        layer.probes.append((_some(query, at), columns.gather(1, at).masked_fill(~held, -1)))
        return
    if need.name == "accumulated_attention":
        age = torch.arange(query.shape[2] - 1, -1, -1, device=query.device)
        at, weight = rows.sampled(here * need.rate**age, need.window)
        # The pass's own entries are the last, in order; of what stands before them, it sees all that is real.
        total = entries.gathered(_some(query, at), (at + entries.keys.shape[2] - query.shape[2])[:, None], weight)
        total = _grouped(total, entries)
        if layer.accumulated_attention is not None:
            known = layer.accumulated_attention.shape[2]
            total[..., :known] += layer.accumulated_attention * need.rate ** (total.shape[2] - known)
        layer.accumulated_attention = total
    elif need.name == "expected_logits":
        plain = apply_rope(module, query.float(), table, back=True) if uses_rope(module, table) else query.float()
        first = columns if real is None else real.long().cumsum(1).gather(1, columns.clamp(min=0)) - 1
        weight = here * (first >= OUTLIERS)
        plain = plain * weight[:, None, :, None]
        row, column = torch.triu_indices(query.shape[3], query.shape[3], device=query.device)
        square = (plain.transpose(2, 3) @ plain)[..., row, column]
        new: tuple[Tensor, ...] = (weight.sum(1), plain.sum(2), square)
        old = layer.moments
        new = new if old is None else tuple(a + b for a, b in zip(old[:3], new, strict=True))
        layer.moments = (*new, ids.amax(1))


def _grouped(x: Tensor, entries: Entries) -> Tensor:
    """``(B, G, N)``: the mean of ``(B, H, N)`` over the query heads of each key-value head."""
    return x.unflatten(1, (entries.keys.shape[1], -1)).mean(2)


def _some(query: Tensor, at: Tensor) -> Tensor:
    """``(B, H, m, d)``: the queries ``(B, H, q, d)`` at ``(B, m)``."""
    heads = query.shape[1]
    return select.take(query.flatten(0, 1), at.repeat_interleave(heads, 0)).unflatten(0, (-1, heads))
