"""Sight: what reads pages of rendered text: patches, a small vision encoder, and a resampler to a few states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.prompt.latents.pages import PageStyle


class PatchEncoder(nn.Module):
    """A small encoder of pages: cells of characters to features, ``across`` of them to a patch, layers of attention over patches.

    Args:
        style: of the pages; ``columns`` must be a multiple of ``across``.
        width: of the states.
        across: characters of a patch.
        depth: layers.
        heads: of their attention.

    Raises:
        ValueError: columns that patches do not fill.
    """

    def __init__(self, style: PageStyle, width: int = 128, across: int = 4, depth: int = 2, heads: int = 4):
        super().__init__()
        if style.columns % across:
            raise ValueError(f"across={across} does not divide the {style.columns} columns of a page")
        self.cells = nn.Conv2d(1, width, (style.height, style.width), stride=(style.height, style.width))
        self.patches = nn.Conv2d(width, width, (1, across), stride=(1, across))
        self.place = nn.Parameter(torch.randn(style.lines * (style.columns // across), width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.width = width

    def forward(self, pixels: Tensor) -> Tensor:
        """``(P, 1, H, W)`` pages to ``(P, n, width)`` patches, line by line."""
        seen = self.patches(nn.functional.gelu(self.cells(pixels)))
        return self.layers(seen.flatten(2).transpose(1, 2) + self.place)


class Resampler(nn.Module):
    """A fixed number of learned queries that read any number of states, by layers of cross-attention.

    Source: Alayrac et al., Flamingo (arXiv 2204.14198), whose Perceiver Resampler VIST takes.
    """

    def __init__(self, slots: int, width: int, depth: int = 2, heads: int = 4):
        super().__init__()
        self.slots = nn.Parameter(torch.randn(slots, width) * width**-0.5)
        self.layers = nn.ModuleList(_Look(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, states: Tensor) -> Tensor:
        x = self.slots.expand(len(states), -1, -1)
        for layer in self.layers:
            x = layer(x, states)
        return self.norm(x)


class _Look(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_query, self.norm_states, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, states: Tensor) -> Tensor:
        q = self.norm_query(x)
        read = torch.cat([self.norm_states(states), q], 1)
        x = x + self.attention(q, read, read, need_weights=False)[0]
        return x + self.mlp(self.norm_mlp(x))


class PageReader(nn.Module):
    """Token ids, decoded and rendered to pages, each page seen by a vision encoder and resampled to ``slots`` states.

    Source: Xing et al., Vision-centric Token Compression in Large Language Model (arXiv 2502.00791).

    Args:
        tokenizer: of the ids, with ``decode``.
        slots: states for a page, at least 1.
        style: of the pages.
        vision: pages ``(P, 1, H, W)`` to a tensor of states ``(P, n, width)``, or to an output with ``last_hidden_state``, frozen
            as it is given; a :class:`PatchEncoder` that is trained by default.
        width: of the vision encoder's states.
        depth, heads: of the resampler.

    Raises:
        ValueError: no slots.
    """

    def __init__(
        self,
        tokenizer: Any,
        slots: int = 64,
        style: PageStyle | None = None,
        vision: nn.Module | None = None,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
    ):
        super().__init__()
        if slots < 1:
            raise ValueError(f"slots={slots}; there must be at least 1 for a page")
        self.tokenizer, self.style, self.width = tokenizer, style or PageStyle(), width
        self.frozen = vision is not None
        self.vision = PatchEncoder(self.style, width) if vision is None else vision.requires_grad_(False).eval()
        self.resampler = Resampler(slots, width, depth, heads)

    def train(self, mode: bool = True) -> PageReader:
        super().train(mode)
        if self.frozen:
            self.vision.eval()
        return self

    def forward(self, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        texts = (self.tokenizer.decode(row[own].tolist()) for row, own in zip(ids, real, strict=True))
        drawn = [torch.from_numpy(self.style.draw(text)) for text in texts]
        pixels = torch.cat(drawn)[:, None].to(self.resampler.slots)
        seen = self.vision(pixels)
        states = self.resampler(getattr(seen, "last_hidden_state", seen))
        counts = torch.tensor([len(pages) for pages in drawn], device=ids.device)
        asked = torch.arange(int(counts.max()), device=ids.device) < counts[:, None]
        out = states.new_zeros(*asked.shape, *states.shape[1:])
        out[asked] = states
        return out.flatten(1, 2), asked.repeat_interleave(states.shape[1], 1)
