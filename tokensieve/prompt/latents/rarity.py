"""Rarity: frequent tokens left out of what latents of rendered text are drawn towards.

Source: Xing et al., Vision-centric Token Compression in Large Language Model (arXiv 2502.00791), its probability-informed visual
enhancement.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tokensieve.prompt.latents.module import TextLatents


def rarity(counts: Tensor) -> Tensor:
    """How telling tokens are: ``log(S / (1 + count))``, of counts ``(V,)`` in a text of S tokens."""
    counts = counts.double()
    return (counts.sum() / (1 + counts)).log()


def rare(ids: Tensor, counts: Tensor, attention_mask: Tensor | None = None, share: float = 0.5) -> Tensor:
    """Which tokens stay when the most frequent ones of every row are masked.

    Args:
        ids: ``(B, N)``; attention_mask: ``(B, N)``, 0 at padding, which never stays.
        counts: ``(V,)``, how often each token comes in the texts that are trained on.
        share: of a row's tokens, those to be masked; of equally frequent ones, the first stay.

    Returns:
        ``(B, N)`` bool.

    Raises:
        ValueError: a share outside 0 to 1, 1 excluded, or an id that there is no count of.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share={share}; it must lie between 0 and 1, and below 1, for some tokens to stay")
    if int(ids.max()) >= len(counts):
        raise ValueError(f"counts has {len(counts)} tokens, and ids holds {int(ids.max())}; count the whole vocabulary")
    real = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    worth = rarity(counts).to(ids.device)[ids].masked_fill(~real, -torch.inf)
    order = worth.argsort(dim=1, descending=True, stable=True)
    stay = real.sum(1) - (share * real.sum(1)).floor().long()
    rank = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return torch.zeros_like(real).scatter(1, order, rank < stay[:, None])


def enhancement(latents: TextLatents, tokens: Tensor, stay: Tensor, temperature: float = 0.07) -> Tensor:
    """A contrastive loss: the mean of a row's latents lies nearer to the mean of its own tokens than to those of other rows.

    Args:
        latents: of B texts, at least 2.
        tokens: ``(B, N, D)``, their tokens' embeddings in the language model.
        stay: ``(B, N)`` bool, those that count (:func:`rare`).
        temperature: of the similarities.

    Returns:
        A scalar.

    Raises:
        ValueError: one text alone.
    """
    if len(tokens) < 2:
        raise ValueError("one text alone has no others to be told from; give a batch of at least 2")
    a = _mean(latents.embeds, latents.real)
    b = _mean(tokens.detach(), stay)
    like = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / temperature
    own = torch.arange(len(like), device=like.device)
    return (F.cross_entropy(like, own) + F.cross_entropy(like.T, own)) / 2


def _mean(x: Tensor, real: Tensor) -> Tensor:
    return (x * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
