"""What the worker of vLLM does to a picture, on plain tensors: slots, positions, batches, signals, ranks."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlavaNextConfig

import tokensieve as ts
from tests.models import llava
from tokensieve.core.stage import Stage
from tokensieve.integrations.vllm import choice, looks
from tokensieve.integrations.vllm.anatomies import anatomy_of
from tokensieve.integrations.vllm.batches import batches, part
from tokensieve.integrations.vllm.eyes import Eyes, shares
from tokensieve.integrations.vllm.placeholders import mask_of, runs_of, thinned
from tokensieve.integrations.vllm.refusals import Tower
from tokensieve.integrations.vllm.told import FIELD, Told, unpack
from tokensieve.integrations.vllm.worker import Worker
from tokensieve.parts.attention import rows


def stage(method="divprune", keep=4, **options):
    return Stage(ts.get_method(method, **options), keep, "handoff")


# ---- slots ------------------------------------------------------------------------------------------------------------------


def test_each_run_keeps_its_first_slots():
    left = thinned(
        [9, 5, 5, 5, 5, 8, 5, 5, 7], [False, True, True, True, True, False, True, True, False], lambda n: n // 2
    )
    assert left.full == (9, 5, 5, 8, 5, 7)
    assert left.runs == ((4, 2), (2, 1))
    assert mask_of(left.embedded, left.full).tolist() == [False, True, True, False, True, False]
    assert runs_of(torch.tensor(left.embedded)) == [(1, 2), (4, 1)]


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5))
def test_slots_that_stay_add_up(embedded, keep):
    left = thinned(list(range(len(embedded))), embedded, lambda n: min(n, keep))
    assert sum(n for n, _ in left.runs) == sum(embedded)
    assert sum(left.embedded) == sum(k for _, k in left.runs)
    assert [i for i, e in zip(left.full, left.embedded, strict=True) if not e] == [
        i for i, e in enumerate(embedded) if not e
    ]


def test_what_is_told_of_a_picture_arrives():
    told = Told(stage("visionzip", 0.25, contextual=0.5), ((16, 4), (9, 2)), 25)
    assert unpack(told.pack()) == told
    assert (told.tokens, told.kept) == (25, 6)


# ---- batches ----------------------------------------------------------------------------------------------------------------


def test_pictures_are_told_apart_in_a_batch():
    grid = torch.tensor([[1, 2, 2], [1, 4, 2], [1, 2, 6]])
    given = {"pixel_values": torch.arange(24.0)[:, None], "image_grid_thw": grid, "names": ["a", "b", "c"]}
    second = part(given, 3, 1, 2)
    assert second["pixel_values"].flatten().tolist() == list(range(4, 12))
    assert second["image_grid_thw"].tolist() == [[1, 4, 2]]
    assert second["names"] == ["b"]
    tiles = {"pixel_values": torch.zeros(7, 3, 2, 2), "num_patches": torch.tensor([4, 3])}
    assert part(tiles, 2, 1, 2)["pixel_values"].shape[0] == 3
    assert part({"pixel_values": torch.zeros(7, 2)}, 2, 0, 1) is None
    assert part({"pixel_values": torch.zeros(2, 2), "token": torch.tensor(7), "size": 3}, 2, 0, 1)["token"] == 7
    assert part({"pixel_values": torch.zeros(7, 2)}, 1, 0, 1)["pixel_values"].shape[0] == 7


@settings(max_examples=50)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 120))
def test_batches_cost_no_more_than_they_may(cost, most):
    made = list(batches(cost, most))
    assert [i for start, stop in made for i in range(start, stop)] == list(range(len(cost)))
    assert all(sum(cost[a:b]) <= most or b - a == 1 for a, b in made)


# ---- what stays ---------------------------------------------------------------------------------------------------------------


def test_a_run_keeps_what_the_method_keeps_alone():
    x = torch.randn(25, 12, generator=torch.Generator().manual_seed(1))
    kept, places = choice.thinned(stage(), x, 8, [(16, 4), (9, 9)], lambda: [{}, {}])
    wanted = ts.reduce(x[:16, :8], "divprune", keep=4).kept[0]
    assert places.tolist() == [*wanted.tolist(), *range(9)]
    assert torch.equal(kept, torch.cat([x[:16][wanted], x[16:]]))


def test_a_method_that_fails_leaves_evenly_spaced_tokens_and_says_so_once(monkeypatch, caplog):
    made = stage()
    choice.WARNED.clear()
    monkeypatch.setattr(type(made.method), "reduce", lambda self, s, keep: 1 / 0)
    x = torch.randn(12, 4)
    with caplog.at_level(logging.WARNING, "vllm.tokensieve"):
        monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
        for _ in range(2):
            kept, places = choice.thinned(made, x, 4, [(12, 4)], lambda: [{}])
            assert len(kept) == len(places) == 4
            assert np.ptp(np.diff(places.tolist())) <= 1
    assert sum("divprune failed" in r.message for r in caplog.records) == 1


def test_signals_that_fail_leave_evenly_spaced_tokens():
    choice.WARNED.clear()

    def told():
        raise ValueError("no eyes")

    kept, _ = choice.thinned(stage("fastervlm"), torch.randn(12, 4), 4, [(12, 3)], told)
    assert len(kept) == 3
    # A method that needs a signal which is not there fails likewise.
    kept, _ = choice.thinned(stage("fastervlm"), torch.randn(12, 4), 4, [(12, 3)], lambda: [{}])
    assert len(kept) == 3


def test_a_count_is_never_wrong(monkeypatch):
    made = stage()
    monkeypatch.setattr(
        type(made.method), "reduce", lambda self, s, keep: ts.Reduction.keep(torch.arange(s.n)[None] < 2)
    )
    kept, _ = choice.thinned(made, torch.randn(12, 4), 4, [(12, 4)], lambda: [{}])
    assert len(kept) == 4


# ---- signals ------------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """The layer of vLLM, as far as it is looked at: rows of all heads side by side."""

    def __init__(self, heads, size):
        super().__init__()
        self.num_heads = self.num_kv_heads = heads
        self.head_size, self.scale = size, size**-0.5

    def forward(self, query, key, value, cu_seqlens=None):
        return query


def heard(model, blocks, made, run):
    eyes = Eyes(anatomy_of(model.config), blocks)
    with eyes.looking([made]) as out:
        run()
    return eyes, out[made]


def test_the_attention_of_a_batch_is_read_row_by_row():
    model = llava()
    config = model.config.vision_config
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    blocks = [Attention(heads, size) for _ in range(config.num_hidden_layers)]
    made = stage("fastervlm")
    n = (config.image_size // config.patch_size) ** 2
    q, k = torch.randn(2, 1 + n, heads * size), torch.randn(2, 1 + n, heads * size)

    def run():
        for block in blocks:
            block(q, key=k, value=k)

    eyes, out = heard(model, blocks, made, run)
    parts = out["cls_attention"][-2]
    assert [tuple(p.shape) for p in parts] == [(1, n, heads)] * 2
    split = [x.view(2, 1 + n, heads, size).transpose(1, 2) for x in (q, k)]
    wanted = rows.attend(split[0][:, :, :1], split[1], size**-0.5)[:, :, 0, 1:]
    assert torch.allclose(torch.cat(parts).movedim(-1, 1), wanted, atol=1e-6)
    # Nobody looks any more, and only what is read was hooked.
    run()
    assert sum(len(b._forward_pre_hooks) for b in blocks) == 1
    look = looks.look_of(
        eyes.anatomy,
        {"pixel_values": torch.zeros(1, 3, config.image_size, config.image_size)},
        [n],
        {"cls_attention": {-2: parts[1:]}},
        n,
    )
    told = looks.signals_of(look, made.method.needs)[0]
    assert told["cls_attention"][-2].shape == (1, heads, n)
    assert torch.allclose(told["cls_attention"][-2], wanted[1:], atol=1e-6)
    side = config.image_size // config.patch_size
    assert told["grid"] == (side, side)


def test_empty_crops_of_a_picture_are_left_out():
    """A prompt's pictures may be filled up with empty crops until all have as many."""
    config = LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 8, "patch_size": 2, "hidden_size": 8,
                       "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8},
        text_config={"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                     "intermediate_size": 8, "vocab_size": 50},
        image_grid_pinpoints=[[8, 16], [16, 8], [16, 16]], image_token_index=5,
    )  # fmt: skip
    anatomy = anatomy_of(config)
    given = {"pixel_values": torch.zeros(1, 5, 3, 8, 8), "image_sizes": torch.tensor([[8, 16]])}
    assert looks.joins(anatomy, given)
    heard = [torch.full((1, 16, 2), float(i)) for i in range(5)]
    tokens = 16 + 4 * (8 + 1)
    look = looks.look_of(anatomy, given, [tokens], {"cls_attention": {-2: heard}}, 5 * 16)
    told = looks.signals_of(look, stage("fastervlm").method.needs)[0]
    attention = told["cls_attention"][-2][0, 0]
    assert attention.shape == (tokens,)
    # The thumbnail, then lines of both crops, each with a line end, of which nothing is known.
    assert attention[:16].tolist() == [0.0] * 16
    assert attention[16:25].tolist() == [1.0] * 4 + [2.0] * 4 + [0.0]
    assert told["crop"][0].tolist() == [0] * 16 + ([1] * 4 + [2] * 4 + [-1]) * 4


def test_windows_are_heard_one_by_one_and_belong_to_their_picture():
    parts = [torch.zeros(1, n, 2) for n in (4, 4, 2, 6)]
    each = shares(parts, [8, 8])
    assert [[p.shape[1] for p in mine] for mine in each] == [[4, 4], [2, 6]]
    assert shares(parts, [6, 10]) is None
    assert shares(parts, [8, 4]) is None


def test_a_block_that_cannot_be_read_does_not_end_the_engine():
    model = llava()
    config = model.config.vision_config
    blocks = [Attention(config.num_attention_heads, 8) for _ in range(config.num_hidden_layers)]
    made = stage("fastervlm")

    def run():
        for block in blocks:
            block(torch.randn(1, 17, 3), key=torch.randn(1, 17, 3), value=torch.randn(1, 17, 3))

    assert heard(model, blocks, made, run)[1] == {}


def test_a_gate_that_is_shut_hears_nothing():
    model = llava()
    config = model.config.vision_config
    blocks = [Attention(config.num_attention_heads, 8) for _ in range(config.num_hidden_layers)]
    eyes = Eyes(anatomy_of(model.config), blocks)
    watch = eyes.watch(stage("fastervlm"))
    blocks[watch.blocks[0]](*[torch.randn(1, 17, config.num_attention_heads * 8) for _ in range(3)])
    assert watch.seen is None


# ---- the worker as a whole, without an engine ------------------------------------------------------------------------------


def worker(server_keep, most):
    made = object.__new__(Worker)
    made.server = SimpleNamespace(
        stage=None if server_keep is None else stage(keep=server_keep), tower=Tower(1, 0, False)
    )
    made.anatomy, made.group, made.eyes, made.positioned = None, None, None, None
    made.width, made.most, made.last = 4, most, []
    return made


def batch(runs, keep):
    told = [Told(stage(keep=keep), ((n, min(n, keep)),), n) for n in runs]
    return {
        "pixel_values": [torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in runs],
        FIELD: [t.pack() for t in told],
    }


@pytest.mark.parametrize(("server_keep", "calls"), [(None, [1, 1, 1]), (10, [2, 1]), (4, [3])])
def test_no_more_pictures_are_encoded_together_than_were_measured(server_keep, calls):
    seen = []

    def encode(pixel_values):
        seen.append(len(pixel_values))
        return list(pixel_values)

    runs = [16, 16, 16]
    out = worker(server_keep, 20).embed(encode, **batch(runs, 2))
    assert seen == calls
    assert [tuple(x.shape) for x in out] == [(2, 4)] * 3


def test_each_picture_of_a_batch_is_thinned_by_its_own_plan():
    made = worker(None, 1000)
    given = batch([9, 25], 4)
    given[FIELD][1] = Told(stage(keep=7), ((25, 7),), 25).pack()
    out = made.embed(lambda pixel_values: list(pixel_values), **given)
    assert [len(x) for x in out] == [4, 7]
    for (told, places), x in zip(made.last, given["pixel_values"], strict=True):
        assert places.tolist() == ts.reduce(x, "divprune", keep=told.kept).kept[0].tolist()


def test_pictures_without_a_plan_pass_as_they_are():
    x = [torch.randn(3, 4)]
    assert worker(None, 10).embed(lambda pixel_values: pixel_values, pixel_values=x) is x
