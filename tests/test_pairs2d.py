"""Merges of neighbours in grids of codes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensieve.parts.merge.pairs2d import ACROSS, DOWN, PairMerges, learn_pairs


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(2, 4), st.integers(0, 20), st.integers(0, 999))
def test_what_is_merged_comes_back_exactly(height, width, codes, count, seed):
    draw = torch.Generator().manual_seed(seed)
    grids = torch.randint(codes, (6, height, width), generator=draw)
    merges = learn_pairs(grids, codes, count)
    assert len(merges.steps) <= count
    for grid in (*grids, torch.randint(codes, (height, width), generator=draw)):
        symbols = merges.encode(grid)
        assert torch.equal(merges.decode(symbols, height, width), grid)
        area = sum(
            1 if s < codes else merges.shapes[s - codes][0] * merges.shapes[s - codes][1] for s in symbols.tolist()
        )
        assert area == height * width


def test_the_most_frequent_neighbours_become_one():
    grid = torch.tensor([[0, 1, 0, 1], [2, 2, 3, 3]])
    merges = learn_pairs(grid.expand(3, -1, -1).contiguous(), 4, 1)
    assert merges.steps == ((ACROSS, 0, 1),)
    assert merges.encode(grid).tolist() == [4, 4, 2, 2, 3, 3]
    tall = PairMerges(4, ((DOWN, 0, 2), (ACROSS, 4, 4)))
    assert tall.shapes == [(2, 1), (2, 2)]
    assert tall.encode(torch.tensor([[0, 0], [2, 2]])).tolist() == [5]


def test_symbols_that_fill_no_grid_and_unknown_codes_are_refused():
    merges = PairMerges(2, ((ACROSS, 0, 1),))
    with pytest.raises(ValueError, match="does not fit at 0, 2 of 1 x 3"):
        merges.decode(torch.tensor([2, 2]), 1, 3)
    with pytest.raises(ValueError, match="leave 1 of 1 x 3 cells open"):
        merges.decode(torch.tensor([2]), 1, 3)
    with pytest.raises(ValueError, match="more than 1 x 2 cells"):
        merges.decode(torch.tensor([2, 0]), 1, 2)
    with pytest.raises(ValueError, match="from 0 to 1"):
        merges.encode(torch.tensor([[0, 2]]))
