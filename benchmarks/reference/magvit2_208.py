"""MAGVIT-v2: one encoder for images and clips, causal in time, and tokens of many bits told in groups of bits."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tokensieve.codec import Codes, Quantizer

WIDTH = 32


class CausalConv(nn.Module):
    """A convolution over ``(B, C, T, H, W)`` whose output at a time sees that time and those before; what lies before the first
    is the first."""

    def __init__(self, into: int, out: int, size: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)):
        super().__init__()
        self.before, self.side = size[0] - 1, (size[1] - 1) // 2 if stride[1] == 1 else 0
        self.conv = nn.Conv3d(into, out, size, stride, padding=(0, self.side, self.side))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat([x[:, :, :1]] * self.before + [x], 2))


class CausalTokenizer(nn.Module):
    """Clips ``(B, C, 1 + 2 n, H, W)`` to ``1 + n`` grids of codes and back; an image is a clip of one frame.

    Source: arXiv 2310.05737. The first frame is encoded by itself, then two frames at a time, so that an image has exactly the
    codes of the first frame of any clip that begins with it. Deviation: two blocks a side, squared error alone.

    Args:
        channels, patch: of frames.
        quantizer: of each place.
    """

    def __init__(self, channels: int, patch: int, quantizer: Quantizer):
        super().__init__()
        self.quantizer, dim = quantizer, quantizer.dim
        self.encoder = nn.Sequential(
            CausalConv(channels, WIDTH, (1, patch, patch), (1, patch, patch)),
            nn.GELU(),
            CausalConv(WIDTH, WIDTH, (3, 3, 3), (2, 1, 1)),
            nn.GELU(),
            CausalConv(WIDTH, dim, (1, 1, 1)),
        )
        self.first, self.mixed = CausalConv(dim, WIDTH, (3, 3, 3)), CausalConv(WIDTH, WIDTH, (3, 3, 3))
        self.last = nn.ConvTranspose3d(WIDTH, channels, (1, patch, patch), (1, patch, patch))

    def encode(self, clips: Tensor, generator: Generator | None = None) -> tuple[Codes, tuple[int, ...]]:
        """Codes ``(B, (1 + n) h w, C)``, frames first, and the grid ``(1 + n, h, w)``.

        Raises:
            ValueError: an even number of frames.
        """
        if clips.shape[2] % 2 == 0:
            raise ValueError(
                f"{clips.shape[2]} frames; the first stands alone, and two by two the others: an odd number"
            )
        x = self.encoder(clips - 0.5)
        return self.quantizer(x.flatten(2).transpose(1, 2), generator=generator), tuple(x.shape[2:])

    def decode(self, values: Tensor, grid: tuple[int, ...]) -> Tensor:
        x = F.gelu(self.first(values.transpose(1, 2).unflatten(2, grid)))
        x = x.repeat_interleave(2, 2)[:, :, 1:]  # the first grid is one frame
        return self.last(F.gelu(self.mixed(x))) + 0.5

    def loss(self, clips: Tensor, generator: Generator | None = None) -> Tensor:
        codes, grid = self.encode(clips, generator)
        return (self.decode(codes.values, grid) - clips).square().mean() / (clips.var() + 1e-6) + codes.loss


class Factorised(nn.Module):
    """Tokens of many bits in a language model: an embedding and a prediction for each group of bits.

    2^18 codes as one softmax take a table of 2^18 rows; as two groups of nine bits two of 512. Groups are predicted at once,
    as in the paper.

    Args:
        bits: of a token; groups: they divide it evenly; width: of the model.
    """

    def __init__(self, bits: int, groups: int, width: int):
        super().__init__()
        if bits % groups:
            raise ValueError(f"groups={groups} do not divide bits={bits} evenly")
        each = 2 ** (bits // groups)
        self.groups, self.weights = groups, 2 ** torch.arange(bits // groups)
        self.tables = nn.ModuleList(nn.Embedding(each, width) for _ in range(groups))
        self.heads = nn.ModuleList(nn.Linear(width, each) for _ in range(groups))

    def words(self, bits: Tensor) -> Tensor:
        """``(..., groups)``: the word of each group, of bits ``(..., bits)`` of 0 and 1."""
        return (bits.unflatten(-1, (self.groups, -1)) * self.weights).sum(-1)

    def embed(self, bits: Tensor) -> Tensor:
        return torch.stack([t(w) for t, w in zip(self.tables, self.words(bits).unbind(-1), strict=True)]).sum(0)

    def loss(self, states: Tensor, bits: Tensor) -> Tensor:
        """Nats a token, of states ``(..., width)`` and the bits that follow them."""
        words = self.words(bits).unbind(-1)
        told = [F.cross_entropy(h(states).flatten(0, -2), w.flatten()) for h, w in zip(self.heads, words, strict=True)]
        return torch.stack(told).sum()
