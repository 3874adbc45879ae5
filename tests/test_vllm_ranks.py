"""Two processes that share an encoder's heads hear all of them, and keep what the first of them chose."""

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from tokensieve.integrations.vllm.ranks import all_heads, of_first


def test_one_rank_is_left_alone():
    x = torch.randn(1, 4, 3, 2)
    assert all_heads(x, 1, None) is x
    assert of_first(lambda: [x], [], None)[0] is x


def rank(number, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    group = dist.new_group([0, 1])
    whole = torch.arange(24.0).view(1, 4, 3, 2)
    own = whole[:, 2 * number : 2 * number + 2].transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(all_heads(own, 1, group), whole)

    def choose():
        assert number == 0, "the choice is made once"
        return [torch.full((2, 3), 7.0), torch.tensor([1, 5])]

    kept, places = of_first(choose, [torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)], group)
    assert torch.equal(kept, torch.full((2, 3), 7.0))
    assert places.tolist() == [1, 5]
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_agree(tmp_path):
    multiprocessing.spawn(rank, (tmp_path / "store",), nprocs=2)
