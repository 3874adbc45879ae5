"""Position ids of survivors, and of what follows them."""

import pytest
import torch

from tokensieve.core.stage import POLICIES
from tokensieve.parts.numeric import position_ids

#                two text, six visual, two text;  the second row padded on the left
IDS = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 1, 0, 1, 2, 3, 4, 5, 6, 7]])
INDEX = torch.tensor([[0, 1, 3, 6, 8, 9], [0, 2, 5, 7, 8, 9]])
REAL = torch.tensor([[True] * 6, [False] + [True] * 5])


def test_original_ids_are_kept():
    out = position_ids.positions(IDS, INDEX, REAL, "original")
    assert out.tolist() == [[0, 1, 3, 6, 8, 9], [1, 0, 3, 5, 6, 7]]
    assert position_ids.shift(IDS, INDEX, REAL, "original").tolist() == [0, 0]


def test_compact_ids_close_up():
    out = position_ids.positions(IDS, INDEX, REAL, "compact")
    assert out.tolist() == [[0, 1, 2, 3, 4, 5], [1, 0, 1, 2, 3, 4]]
    assert position_ids.shift(IDS, INDEX, REAL, "compact").tolist() == [4, 3]


def test_compact_ids_start_where_the_row_does():
    out = position_ids.positions(IDS + 20, INDEX, REAL, "compact")
    assert out[0].tolist() == [20, 21, 22, 23, 24, 25]
    assert position_ids.shift(IDS + 20, INDEX, REAL, "compact").tolist() == [4, 3]


def test_padding_on_the_right():
    index, real = torch.tensor([[0, 3, 4, 4]]), torch.tensor([[True, True, True, False]])
    ids = torch.arange(5)[None]
    assert position_ids.positions(ids, index, real, "compact").tolist() == [[0, 1, 2, 4]]
    assert position_ids.shift(ids, index, real, "compact").tolist() == [2]


# Text at 0 and 1, a 2 x 3 image whose axes start at 2, text behind its largest id.
MROPE = torch.tensor([[0, 1, 2, 2, 2, 2, 2, 2, 5, 6], [0, 1, 2, 2, 2, 3, 3, 3, 5, 6], [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]])[
    :, None
]


def test_mrope_keeps_the_grid_or_becomes_a_line():
    index, real = torch.tensor([[0, 1, 4, 6, 8, 9]]), torch.ones(1, 6, dtype=torch.bool)
    kept = position_ids.positions(MROPE, index, real, "original")
    assert kept[:, 0].tolist() == [[0, 1, 2, 2, 5, 6], [0, 1, 2, 3, 5, 6], [0, 1, 4, 3, 5, 6]]
    assert position_ids.positions(MROPE, index, real, "compact")[:, 0].tolist() == [[0, 1, 2, 3, 4, 5]] * 3
    assert position_ids.shift(MROPE, index, real, "compact").tolist() == [[1], [1], [1]]


def test_mrope_axes_agree_where_the_first_survivor_is_visual():
    index, real = torch.tensor([[4, 6, 8, 9]]), torch.ones(1, 4, dtype=torch.bool)
    assert position_ids.positions(MROPE, index, real, "compact")[:, 0].tolist() == [[2, 3, 4, 5]] * 3


@pytest.mark.parametrize("shape", [(2,), (3, 2), (4, 2)])
@pytest.mark.parametrize("policy", POLICIES)
def test_all_survivors_keep_their_ids(shape, policy):
    ids = torch.arange(10).expand(*shape, 10)
    index = torch.arange(10).expand(2, 10)
    real = torch.ones(2, 10, dtype=torch.bool)
    assert torch.equal(position_ids.positions(ids, index, real, policy), ids)
    assert not position_ids.shift(ids, index, real, policy).any()
