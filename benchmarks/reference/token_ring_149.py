"""Ring: attention over a sequence that is spread over devices, simulated on one, with a ledger of what each link carries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ledger:
    """What a simulated pass took.

    Attributes:
        steps: rounds in which all devices compute at the same time.
        forward: bytes that the busiest device sends towards the next one, round by round: queries.
        backward: bytes that it sends the other way: partial outputs and the logarithms of their sums.
        passing: bytes that it would send in a round of ring attention, where keys and values travel, all one way.
        pairs: query-key pairs that each device computes.
    """

    steps: int
    forward: list[int]
    backward: list[int]
    passing: int
    pairs: list[int]


def token_ring(
    query: Tensor, key: Tensor, value: Tensor, devices: int, causal: bool = False, scale: float | None = None
) -> tuple[Tensor, Ledger]:
    """Exact attention where keys and values stay on their devices and queries travel (TokenRing).

    In each round a device computes the attention of the queries it has to its own keys, hands these queries on to the next
    device, and sends the output and its log-sum-exp back to the device they belong to, which merges it with what it has:
    both directions of the links are in use at once. Causal sequences are dealt out so that every device computes about
    as much: device i of P holds the i-th and the i-th last of 2 P pieces.

    Source: arXiv 2412.20501. Deviation: devices are simulated one after the other, and each partial output takes one hop, as
    where every pair of devices is linked.

    Args:
        query: ``(B, H, N, d)``; key, value: ``(B, G, N, d)`` with G dividing H.

    Returns:
        ``(B, H, N, d)`` and the ledger.

    Raises:
        ValueError: more devices than the sequence has pieces.
    """
    n, most = query.shape[2], query.shape[2] // (2 if causal else 1)
    if not 1 <= devices <= most:
        raise ValueError(
            f"devices={devices} for {n} tokens; it must be from 1 to {most}, so that every device holds some"
        )
    scale = query.shape[3] ** -0.5 if scale is None else scale
    groups = query.shape[1] // key.shape[1]
    held = _dealt(n, devices, causal, query.device)
    parts = [(key[:, :, p].repeat_interleave(groups, 1), value[:, :, p].repeat_interleave(groups, 1)) for p in held]
    out, total = torch.zeros_like(query, dtype=torch.float32), query.new_full(query.shape[:3], -torch.inf).float()
    forward, backward, pairs = [], [], [0] * devices
    row = query.shape[0] * query.shape[1] * query.element_size()
    for step in range(devices):
        sent = [0]
        for device in range(devices):
            owner = (device - step) % devices
            place, here = held[owner], held[device]
            seen = place[:, None] >= here if causal else None
            if seen is not None and not bool(seen.any()):
                continue
            pairs[device] += int(seen.sum()) if seen is not None else len(place) * len(here)
            found, weight = _partial(query[:, :, place], *parts[device], scale, seen)
            out[:, :, place], total[:, :, place] = _merged(out[:, :, place], total[:, :, place], found, weight)
            sent.append(len(place) * row * (query.shape[3] + 1) if step else 0)
        backward.append(max(sent))
        forward.append(max(map(len, held)) * row * query.shape[3] if step < devices - 1 else 0)
    width = key.shape[0] * key.shape[1] * key.shape[3] * key.element_size()
    return out.to(query.dtype), Ledger(devices, forward, backward, 2 * width * max(map(len, held)), pairs)


def _dealt(n: int, devices: int, causal: bool, device: torch.device) -> list[Tensor]:
    """The tokens of each device."""
    place = torch.arange(n, device=device)
    if not causal:
        return list(place.tensor_split(devices))
    pieces = place.tensor_split(2 * devices)
    return [torch.cat([pieces[i], pieces[-1 - i]]) for i in range(devices)]


def _partial(query: Tensor, key: Tensor, value: Tensor, scale: float, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention to some of the keys, and the logarithm of the sum it was divided by; zero and -inf for none."""
    score = query.float() @ key.float().transpose(2, 3) * scale
    score = score if seen is None else score.masked_fill(~seen, -torch.inf)
    total = score.logsumexp(3)
    share = (score - total.clamp(min=torch.finfo(score.dtype).min)[..., None]).exp()
    return share @ value.float(), total


def _merged(a: Tensor, first: Tensor, b: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    total = torch.logaddexp(first, second)
    safe = total.clamp(min=torch.finfo(total.dtype).min)
    return a * (first - safe).exp()[..., None] + b * (second - safe).exp()[..., None], total
