"""NegToMe: the tokens of pictures that are drawn together are pushed away from those of a reference that they are like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tokensieve.sites.diffusion.modules import attending
from tokensieve.sites.diffusion.progress import Progress

BLOCK = 1024
"""Rows whose similarities are held at once."""


def pushed_tokens(x: Tensor, reference: Tensor, alpha: float, threshold: float) -> Tensor:
    """Tokens ``(B, N, D)`` extrapolated away from the most similar token of a reference ``(R, D)``: ``x + alpha (x - match)``,
    where their cosine is above ``threshold``; the others stay.

    Source: arXiv 2412.01339. Deviation from its public code, which matches the reference's tokens to those of the picture
    (the maximum runs over the axis of the picture's tokens): each token of a picture has its own match here, as in the paper.

    Raises:
        ValueError: alpha below 0, or a threshold that is no cosine.
    """
    if alpha < 0 or not -1 <= threshold <= 1:
        raise ValueError(f"alpha={alpha}, threshold={threshold}; alpha must be at least 0, threshold in [-1, 1]")
    goal = normalize(reference, dim=-1).T
    parts = []
    for part in x.split(BLOCK, 1):
        like, at = (normalize(part, dim=-1) @ goal).max(2)
        away = part + alpha * (part - reference[at])
        parts.append(away.where((like > threshold)[..., None], part))
    return torch.cat(parts, 1)


@contextmanager
def pushed(
    pipeline: Any, *, alpha: float = 0.9, threshold: float = 0.65, steps: tuple[float, float] = (0.0, 0.1),
    guided: bool = False,
) -> Iterator[None]:  # fmt: skip
    """Self-attention of a pipeline's denoiser under it: what comes out is pushed away from that of the batch's first picture,
    which itself stays what it is.

    It is no method of a sieve: no token leaves, and it is meant that a row changes the others.

    Args:
        steps: the progress in which it acts: 0 in the first step, 1 in the last; the paper's are noise levels 1000 to 900.
        guided: the batch is two halves for guidance, each with its own reference.
    """
    denoiser: nn.Module = getattr(pipeline, "transformer", None) or pipeline.unet
    progress = Progress(pipeline)

    def push(module: nn.Module, args: Any, out: Any) -> Any:
        if not steps[0] <= progress.now <= steps[1]:
            return out
        x = out if isinstance(out, Tensor) else out[0]
        halves = x.chunk(2) if guided else (x,)
        moved = [torch.cat([h[:1], pushed_tokens(h[1:], h[0], alpha, threshold)]) for h in halves]
        return torch.cat(moved) if isinstance(out, Tensor) else (torch.cat(moved), *out[1:])

    undo = progress.attach() + [m.register_forward_hook(push).remove for m in attending(denoiser).values()]
    try:
        yield
    finally:
        for back in undo:
            back()
