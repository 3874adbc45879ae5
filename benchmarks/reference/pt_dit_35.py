"""PT-DiT: a few proxy tokens attend to each other and are looked at by all; what lies near is attended to in windows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.reference.dit import Attention, Shape

WINDOW = 2


class Windows(nn.Module):
    """Attention within windows, then within windows that are shifted by half of one (around the edges)."""

    def __init__(self, shape: Shape, window: int = WINDOW):
        super().__init__()
        self.side, self.window = shape.side, window
        self.plain, self.shifted = Attention(shape), Attention(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._within(self.plain, x, 0)
        return self._within(self.shifted, x, self.window // 2)

    def _within(self, attend: nn.Module, x: Tensor, shift: int) -> Tensor:
        b, _, d = x.shape
        n, w = self.side // self.window, self.window
        grid = x.view(b, self.side, self.side, d).roll((-shift, -shift), (1, 2))
        cells = grid.view(b, n, w, n, w, d).transpose(2, 3).reshape(b * n * n, w * w, d)
        back = attend(cells).view(b, n, n, w, w, d).transpose(2, 3).reshape(b, self.side, self.side, d)
        return back.roll((shift, shift), (1, 2)).reshape(x.shape)


class Proxies(nn.Module):
    """One token of each window, drawn anew in each pass, attends to the others' of its kind; every token looks at all of them,
    and attends in windows besides.

    Source: arXiv 2409.04005 (Qihoo-T2X). Deviations: pictures alone, no frames; outside of training the draw is always the same.
    """

    def __init__(self, shape: Shape, window: int = WINDOW):
        super().__init__()
        if shape.side % window:
            raise ValueError(f"window={window} must divide the side of the grid, {shape.side}")
        self.side, self.window = shape.side, window
        self.between, self.look, self.near = Attention(shape), Attention(shape), Windows(shape, window)

    def forward(self, x: Tensor) -> Tensor:
        proxies = x[:, self._drawn()]
        proxies = proxies + self.between(proxies)
        x = x + self.look(x, proxies)
        return x + self.near(x)

    def _drawn(self) -> Tensor:
        """``(windows,)``: the place of one token of each."""
        n = self.side // self.window
        g = None if self.training else torch.Generator().manual_seed(0)
        row, column = torch.randint(self.window, (2, n, n), generator=g) + self.window * torch.stack(
            torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
        )
        return (row * self.side + column).flatten()
