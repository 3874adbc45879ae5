"""Readings: the signals about visual tokens that a language-model layer can give."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokensieve.needs import Need
from tokensieve.parts import rows
from tokensieve.sites.masks import gather
from tokensieve.sites.stream import Stream
from tokensieve.sites.taps import Call

ATTENTION_SIGNALS = ("text_attention", "last_attention", "keys", "values")
LAYER_SIGNALS = (*ATTENTION_SIGNALS, "text", "features")


def wanted(needs: Sequence[Need], available: tuple[str, ...], where: str, method: str) -> list[str]:
    """For each need, the name that a site can supply: the signal itself or its first stand-in.

    Raises:
        ValueError: a need that the site cannot supply.
    """
    out = []
    for need in needs:
        name = next((n for n in (need.name, *need.instead) if n in available), None)
        if name is None:
            raise ValueError(
                f"{method} needs {need.name}, which the {where} site cannot give; it gives {', '.join(available)} (methods "
                "that read features only, such as 'divprune', run everywhere)"
            )
        out.append(name)
    return out


def read(names: list[str], stream: Stream, hidden: Tensor, call: Call | None) -> dict[str, Tensor]:
    """The named signals, one row per image.

    Args:
        hidden: ``(B, l, D)`` states in front of the stage's layer.
        call: the attention call of the layer before, over the same ``l`` tokens (and any cached ones before them).
    """
    place, mask = stream.slots()
    row = stream.images.row
    out: dict[str, Tensor] = {}
    text, text_mask = stream.text()
    if "text" in names:
        out["text"] = gather(hidden, text, 1)[row]
        out["text_mask"] = text_mask[row]
    if call is None:
        return out
    past = call.key.shape[2] - call.query.shape[2]
    for name, x in (("keys", call.key), ("values", call.value)):
        if name in names:
            out[name] = x.transpose(1, 2)[row[:, None], past + place].flatten(2)
    if "last_attention" in names:
        last = text.gather(1, _last(text_mask))
        out["last_attention"] = _rows(call, last, past, row, place, mask)[:, :, 0]
    if "text_attention" in names:
        out["text_attention"] = _rows(call, text, past, row, place, mask) * text_mask[row][:, None, :, None]
        out["text_mask"] = text_mask[row]
    return out


def _last(mask: Tensor) -> Tensor:
    """``(B, 1)``: the index of the last True of each row."""
    steps = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, steps, -1).amax(1, keepdim=True).clamp(min=0)


def _rows(call: Call, positions: Tensor, past: int, row: Tensor, place: Tensor, mask: Tensor) -> Tensor:
    """Attention of the queries at ``positions`` (``(B, T)``) to each image's tokens: ``(I, H, T, m)``."""
    query = call.query.gather(2, positions[:, None, :, None].expand(-1, call.query.shape[1], -1, call.query.shape[3]))
    keys = torch.arange(call.key.shape[2], device=positions.device)
    allowed = (keys <= past + positions[..., None])[:, None]
    if call.mask is not None and call.mask.dim() == 2:
        allowed = allowed & call.mask[:, None, None].bool()
    elif call.mask is not None:
        allowed = gather(call.mask, positions, 2)
    attention = rows.attend(query, call.key, call.scale, allowed)[row]
    columns = (past + place)[:, None, None].expand(-1, attention.shape[1], attention.shape[2], -1)
    return attention.gather(3, columns) * mask[:, None, None]
