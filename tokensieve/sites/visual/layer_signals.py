"""Readings: the signals about visual tokens that a language-model layer can give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.core.needs import Need
from tokensieve.core.stage import Stage
from tokensieve.parts.attention import rows
from tokensieve.sites.encoder.watch import ENCODER_SIGNALS
from tokensieve.sites.model import checkpointing
from tokensieve.sites.model.blocks import Stack, neurons
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.masks import gather
from tokensieve.sites.model.taps import Call, attach
from tokensieve.sites.visual.token_stream import Stream

ATTENTION_SIGNALS = ("text_attention", "last_attention", "received_attention", "pagerank", "keys", "values")
TEXTUAL = {"text", "paired", "text_neurons", "last_attention", "text_attention"}
LAYER_SIGNALS = (*ATTENTION_SIGNALS, "neurons", "text_neurons", "text", "features")
AVAILABLE: dict[str, tuple[str, ...]] = {
    "handoff": (*ENCODER_SIGNALS, "entropy", "paired", "text", "features"),
    "prefill": LAYER_SIGNALS,
    "focus": ("text_attention", "text_text", "neurons", "text_neurons", "features"),
}
SHARPER, STEPS = 0.1, 5
"""The temperature of PageRank's attention and its iterations."""


def available(site: str, encoder: bool, ranked: bool) -> tuple[str, ...]:
    """The names that a site supplies, with or without an encoder, and behind a stage that ranked the tokens or not."""
    names = AVAILABLE[site] if encoder else tuple(n for n in AVAILABLE[site] if n not in ENCODER_SIGNALS)
    return (*names, "ranking") if site == "prefill" and ranked else names


def own(needs: Sequence[Need], names: Sequence[str]) -> list[str]:
    """Those of the names, as :func:`supplied` gives them, that are read at the stage's own layer."""
    return [name for need, name in zip(needs, names, strict=True) if need.own and name in ATTENTION_SIGNALS]


def check(language: Stack, layer: int | float, names: Sequence[str], own: Sequence[str]) -> None:
    """Raises ValueError where a layer that a prefill stage reads has no attention; ``own`` names what it reads at its own."""
    at = language.layer(layer)
    if own and language.attentions[at] is None:
        raise ValueError(f"layers={layer}: that layer has no attention to read; choose one that has")
    if (set(names) & set(ATTENTION_SIGNALS)) - set(own) and language.attentions[at - 1] is None:
        raise ValueError(
            f"layers={layer}: the layer before has no attention to read; choose one behind a layer that has"
        )


def listen(
    calls: Callable[[], dict[int, Call] | None], index: int, language: Stack, stages: Sequence[Stage]
) -> list[Detach]:
    """Record at ``index`` of ``calls()``, where it is not None, what the layer in front of it does that these stages read."""

    def attend(call: Call) -> None:
        noted = calls()
        if noted is not None:
            noted[index] = call

    def fire(module: nn.Module, args: Any) -> None:
        noted = None if checkpointing.again() else calls()
        if noted is not None and index in noted:
            noted[index] = replace(noted[index], neurons=args[0])

    attention = language.attentions[index - 1]
    out = [] if attention is None else [attach(attention, observe=attend)]
    if {n.name for s in stages for n in s.needs} & {"neurons", "text_neurons"}:
        inner = neurons(language.layers[index - 1], language.config.intermediate_size)
        out.append(inner.register_forward_pre_hook(fire).remove)
    return out


def read(names: list[str], stream: Stream, hidden: Tensor, call: Call | None) -> dict[str, Tensor]:
    """The named signals, one row per image.

    Args:
        hidden: ``(B, l, D)`` states in front of the stage's layer.
        call: the attention call of the layer that is read, over the same ``l`` tokens (and any cached ones before them).
    """
    place, mask = stream.slots()
    row = stream.images.row
    out: dict[str, Tensor] = {}
    # Finding the text waits for the device.
    text, text_mask = stream.text() if TEXTUAL & set(names) else (place, mask)
    mine = stream.mine(text, text_mask) if TEXTUAL & set(names) else mask
    if "text" in names:
        out["text"] = gather(hidden, text, 1)[row]
        out["text_mask"] = mine
    if "paired" in names:
        out["paired"] = _paired(row, place, mask, text) & (mine | (stream.sequence is None))
    if "ranking" in names and stream.ranking is not None:
        out["ranking"] = stream.reduction.take(stream.ranking)
    if call is None:
        return out
    past = call.key.shape[2] - call.query.shape[2]
    for name, x in (("keys", call.key), ("values", call.value)):
        if name in names:
            out[name] = x.transpose(1, 2)[row[:, None], past + place].flatten(2)
    if call.neurons is not None:
        if "neurons" in names:
            out["neurons"] = call.neurons[row[:, None], place]
        if "text_neurons" in names:
            out["text_neurons"], out["text_mask"] = gather(call.neurons, text, 1)[row], mine
    if "last_attention" in names:
        out["last_attention"] = _from_last(call, text, text_mask, past, stream, place, mask)
    if "text_attention" in names:
        out["text_attention"] = _rows(call, text, past, row, place, mask) * mine[:, None, :, None]
        out["text_mask"] = mine
    if "received_attention" in names:
        out["received_attention"] = _received(call, past, row, place, mask)
    if "pagerank" in names:
        here = stream.real_here() & (stream.index < stream.asked)
        columns = place[:, None].expand(-1, call.query.shape[1], -1)
        held = _pagerank(call, past, here)[row].gather(2, columns) * mask[:, None]
        if stream.sequence is not None:  # each of several prompts has a share of the row
            own = (stream.sequence_here()[row] == stream.numbers()[:, None]) & here[row]
            held = held * (here[row].sum(1) / own.sum(1))[:, None, None]
        out["pagerank"] = held
    return out


def _last(mask: Tensor) -> Tensor:
    """``(B, 1)``: the index of the last True of each row."""
    steps = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, steps, -1).amax(1, keepdim=True).clamp(min=0)


def _from_last(
    call: Call, text: Tensor, text_mask: Tensor, past: int, stream: Stream, place: Tensor, mask: Tensor
) -> Tensor:
    """Attention of the last text token of each image's prompt to its tokens: ``(I, H, m)``."""
    row = stream.images.row
    if stream.sequence is None:
        return _rows(call, text.gather(1, _last(text_mask)), past, row, place, mask)[:, :, 0]
    own, numbers = stream.sequence_here().gather(1, text), stream.numbers()
    each = torch.arange(int(numbers.max()) + 1, device=row.device)
    lasts = torch.cat([text.gather(1, _last(text_mask & (own == n))) for n in each], 1)
    rows = _rows(call, lasts, past, row, place, mask)
    return rows[torch.arange(len(row), device=row.device), :, numbers]


def _rows(call: Call, positions: Tensor, past: int, row: Tensor, place: Tensor, mask: Tensor) -> Tensor:
    """Attention of the queries at ``positions`` (``(B, T)``) to each image's tokens: ``(I, H, T, m)``."""
    attention = looking(call, positions, past, call.scale)[row]
    columns = (past + place)[:, None, None].expand(-1, attention.shape[1], attention.shape[2], -1)
    return attention.gather(3, columns) * mask[:, None, None]


def looking(call: Call, positions: Tensor, past: int, scale: float) -> Tensor:
    """Attention of the queries at ``positions`` (``(B, T)``) to all keys: ``(B, H, T, kv)``."""
    query = call.query.gather(2, positions[:, None, :, None].expand(-1, call.query.shape[1], -1, call.query.shape[3]))
    keys = torch.arange(call.key.shape[2], device=positions.device)
    allowed = (keys <= past + positions[..., None])[:, None]
    if call.mask is not None and call.mask.dim() == 2:
        allowed = allowed & call.mask[:, None, None].bool()
    elif call.mask is not None:
        allowed = gather(call.mask, positions, 2)
    return rows.attend(query, call.key, scale, allowed)


def _paired(row: Tensor, place: Tensor, mask: Tensor, text: Tensor) -> Tensor:
    """``(I, T)`` bool: text tokens behind an image and in front of the next one of its row."""
    ends = torch.where(mask, place, -1).amax(1)
    behind = (row[:, None] == row) & (ends[:, None] < ends)
    starts = torch.where(mask, place, place.max() + 1).amin(1)
    upcoming = torch.where(behind, starts, text.max() + 1).amin(1)
    return (text[row] > ends[:, None]) & (text[row] < upcoming[:, None])


def _received(call: Call, past: int, row: Tensor, place: Tensor, mask: Tensor) -> Tensor:
    """Mean attention that each of an image's tokens receives from all of them, ``(I, H, m)``, in blocks."""
    own = call.mask if call.mask is None or call.mask.shape[0] == 1 else call.mask[row]
    alone = replace(call, query=call.query[row], key=call.key[row], mask=own)
    every = torch.arange(len(row), device=row.device)
    total = torch.zeros(len(row), call.query.shape[1], place.shape[1], device=place.device)
    for some, real in zip(place.split(rows.BLOCK, 1), mask.split(rows.BLOCK, 1), strict=True):
        total += (_rows(alone, some, past, every, place, mask) * real[:, None, :, None]).sum(2)
    return total / mask.sum(1)[:, None, None]


def _pagerank(call: Call, past: int, real: Tensor) -> Tensor:
    """PageRank over sharpened attention among all tokens of this pass, ``(B, H, l)`` (AIM, arXiv 2412.03248)."""
    place = torch.arange(real.shape[1], device=real.device).expand_as(real)

    def attend(first: int, last: int) -> Tensor:
        return looking(call, place[:, first:last], past, call.scale / SHARPER)[..., past:]

    start = real / real.sum(1, keepdim=True)
    return rows.spread(attend, start, STEPS)
