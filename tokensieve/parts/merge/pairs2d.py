"""Pairs2d: byte-pair merges over grids of codes: frequent neighbours, side by side or one below the other, become one symbol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ACROSS, DOWN = 0, 1


@dataclass(frozen=True)
class PairMerges:
    """Merges in the order in which they were learnt (2-D byte-pair encoding, arXiv 2410.02155).

    Symbol ``codes + i`` is the i-th merge; every symbol covers a rectangle of cells.

    Attributes:
        codes: how many codes a cell may have.
        steps: of each merge its direction (``ACROSS``, ``DOWN``) and the two symbols.
    """

    codes: int
    steps: tuple[tuple[int, int, int], ...]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and columns that each merge covers."""
        out: list[tuple[int, int]] = []
        for way, first, second in self.steps:
            a, b = (out[s - self.codes] if s >= self.codes else (1, 1) for s in (first, second))
            out.append((a[0], a[1] + b[1]) if way == ACROSS else (a[0] + b[0], a[1]))
        return out

    def encode(self, grid: Tensor) -> Tensor:
        """Symbols ``(n,)`` int64 of a grid ``(h, w)`` int64, in the order of their upper left cells, row by row.

        Raises:
            ValueError: a code that the merges do not know.
        """
        _check(grid[None], self.codes)
        symbols, shapes = grid.tolist(), self.shapes
        for i, step in enumerate(self.steps):
            _apply(symbols, step, self.codes + i, self.codes, shapes)
        return torch.tensor([s for row in symbols for s in row if s >= 0], dtype=torch.int64)

    def decode(self, symbols: Tensor, height: int, width: int) -> Tensor:
        """The grid that :meth:`encode` was given, exactly.

        Raises:
            ValueError: the symbols do not fill a grid of this size.
        """
        grid, shapes = torch.full((height, width), -1), self.shapes
        for symbol in symbols.tolist():
            free = (grid.flatten() < 0).nonzero()
            if not len(free):
                raise ValueError(f"{len(symbols)} symbols are more than {height} x {width} cells hold")
            row, column = divmod(int(free[0]), width)
            rows, columns = _shape(symbol, self.codes, shapes)
            if row + rows > height or column + columns > width:
                raise ValueError(
                    f"symbol {symbol} of {rows} x {columns} cells does not fit at {row}, {column} of {height} x {width}"
                )
            grid[row : row + rows, column : column + columns] = self._cells(symbol)
        if bool((grid < 0).any()):
            raise ValueError(f"{len(symbols)} symbols leave {int((grid < 0).sum())} of {height} x {width} cells open")
        return grid

    def _cells(self, symbol: int) -> Tensor:
        if symbol < self.codes:
            return torch.tensor([[symbol]])
        way, first, second = self.steps[symbol - self.codes]
        return torch.cat([self._cells(first), self._cells(second)], 1 - way)


def learn_pairs(grids: Tensor, codes: int, count: int) -> PairMerges:
    """The ``count`` merges, or fewer, of the most frequent neighbours in grids ``(n, h, w)`` int64, one after the other.

    Of equally frequent pairs the first by direction and symbols is taken; it ends where no pair occurs twice.

    Raises:
        ValueError: codes outside 0 to ``codes - 1``.
    """
    _check(grids, codes)
    held: list[list[list[int]]] = grids.tolist()
    steps: list[tuple[int, int, int]] = []
    for i in range(count):
        shapes = PairMerges(codes, tuple(steps)).shapes
        seen: Counter[tuple[int, int, int]] = Counter()
        for grid in held:
            seen.update((way, grid[r][c], grid[y][x]) for way, r, c, y, x in _pairs(grid, codes, shapes))
        if not seen:
            break
        best, times = min(seen.items(), key=lambda item: (-item[1], item[0]))
        if times < 2:
            break
        steps.append(best)
        shapes = PairMerges(codes, tuple(steps)).shapes
        for grid in held:
            _apply(grid, best, codes + i, codes, shapes)
    return PairMerges(codes, tuple(steps))


def _shape(symbol: int, codes: int, shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return shapes[symbol - codes] if symbol >= codes else (1, 1)


def _pairs(
    grid: list[list[int]], codes: int, shapes: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int, int, int, int]]:
    """Direction, and the upper left cells, of neighbours that make a rectangle together."""
    height, width = len(grid), len(grid[0])
    for r in range(height):
        for c in range(width):
            if grid[r][c] < 0:
                continue
            rows, columns = _shape(grid[r][c], codes, shapes)
            if c + columns < width and (other := grid[r][c + columns]) >= 0 and _shape(other, codes, shapes)[0] == rows:
                yield ACROSS, r, c, r, c + columns
            if r + rows < height and (other := grid[r + rows][c]) >= 0 and _shape(other, codes, shapes)[1] == columns:
                yield DOWN, r, c, r + rows, c


def _apply(
    grid: list[list[int]], step: tuple[int, int, int], symbol: int, codes: int, shapes: Sequence[tuple[int, int]]
) -> None:
    """Merge a pair wherever it occurs, from the upper left on; cells that a symbol covers beside its first hold -1."""
    way, first, second = step
    for r in range(len(grid)):
        for c in range(len(grid[0])):
            if grid[r][c] != first:
                continue
            rows, columns = _shape(first, codes, shapes)
            y, x = (r, c + columns) if way == ACROSS else (r + rows, c)
            if y >= len(grid) or x >= len(grid[0]) or grid[y][x] != second:
                continue
            if _shape(second, codes, shapes)[way] == (rows, columns)[way]:
                grid[r][c], grid[y][x] = symbol, -1


def _check(grids: Tensor, codes: int) -> None:
    if (
        grids.dtype != torch.int64
        or grids.dim() != 3
        or not grids.numel()
        or int(grids.min()) < 0
        or int(grids.max()) >= codes
    ):
        raise ValueError(
            f"grids of dtype {grids.dtype} and shape {tuple(grids.shape)}; int64 (n, h, w) from 0 to {codes - 1}"
        )
