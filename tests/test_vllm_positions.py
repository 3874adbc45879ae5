"""Positions of prompts whose pictures lost tokens in vLLM, against the plain definition."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import tokensieve as ts
from tokensieve.core.stage import Stage
from tokensieve.integrations.vllm import positioned as positioned_module
from tokensieve.integrations.vllm import positions, rope
from tokensieve.integrations.vllm.positioned import Positioned
from tokensieve.integrations.vllm.positions import ThinnedRun
from tokensieve.integrations.vllm.told import FIELD, Told


def stage(method="divprune", keep=4, **options):
    return Stage(ts.get_method(method, **options), keep, "handoff")


# ---- positions --------------------------------------------------------------------------------------------------------------


def slowly(prompt, merge_grids):
    """Positions by the plain definition: token by token, a picture's as a grid, the text behind it at its largest plus one."""
    out, now = [], 0
    for kind, value in prompt:
        if kind == "text":
            out += [(now + i,) * 3 for i in range(value)]
            now += value
        else:
            h, w = value
            if merge_grids:
                out += [(now, now + y, now + x) for y in range(h) for x in range(w)]
                now += max(h, w)
            else:
                out += [(now + i,) * 3 for i in range(h * w)]
                now += h * w
    return torch.tensor(out).T, now


PROMPTS = {
    "tall": [("text", 3), ("image", (8, 4)), ("text", 2)],
    "wide": [("text", 3), ("image", (2, 9)), ("text", 2)],
    "two": [("text", 1), ("image", (3, 3)), ("text", 1), ("image", (5, 2)), ("text", 4)],
    "side by side": [("image", (3, 3)), ("image", (2, 2)), ("text", 1)],
    "none": [("text", 5)],
    "one stays whole": [("text", 1), ("image", (1, 2)), ("text", 1), ("image", (6, 6)), ("text", 1)],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("name", PROMPTS)
def test_kept_tokens_have_the_positions_that_they_had(name, axes, dtype):
    prompt, keep = PROMPTS[name], 3
    full, end = slowly(prompt, axes == 3)
    g = torch.Generator().manual_seed(0)
    runs, chosen, embedded, at, length = [], [], [], 0, 0
    for kind, value in prompt:
        if kind == "text":
            chosen += range(at, at + value)
            at, length = at + value, length + value
            continue
        n = value[0] * value[1]
        stay = torch.randperm(n, generator=g)[: min(keep, n)].sort().values
        runs.append(ThinnedRun(length, len(stay), n))
        grid = (1, *value) if axes == 3 else None
        rows_ = torch.cat(
            [torch.zeros(len(stay), 2), positions.channels(positions.places(n, grid)[stay], torch.zeros(len(stay), 2))],
            1,
        )
        embedded.append(rows_.to(dtype))
        chosen += (at + stay).tolist()
        at, length = at + n, length + len(stay)
    begun, ahead = positions.begun(full, runs, length)
    assert ahead == end - length
    done = begun
    slots = (
        torch.cat([torch.arange(r.start, r.start + r.kept) for r in runs]) if runs else torch.zeros(0, dtype=torch.long)
    )
    if runs:
        told = torch.cat([positions.split(x)[1] for x in embedded])
        # In chunks, one slot at a time, and the first of them twice: what was filled stays.
        for i in [*range(len(slots)), 0]:
            done = positions.filled(done, told[i : i + 1], slots[i : i + 1])
    assert torch.equal(done, full[:, chosen])


def test_places_survive_bfloat16_far_beyond_256():
    at = torch.tensor([[0, 255, 257], [301, 4097, 32000]])
    x = torch.randn(2, 5).bfloat16()
    clean, back = positions.split(torch.cat([x, positions.channels(at, x)], 1))
    assert torch.equal(clean, x)
    assert torch.equal(back, at)
    assert bool((positions.split(torch.cat([x, positions.channels(None, x)], 1))[1] < 0).all())


def test_slots_that_have_their_position_are_left_alone():
    before = torch.tensor([[0, 1, 2]] * 3)
    assert torch.equal(positions.filled(before, torch.full((1, 3), -129), torch.tensor([1])), before)
    assert torch.equal(positions.filled(before, torch.tensor([[5, 5, 5]]), torch.tensor([1])), before)


def test_one_axis_gets_tables_of_three():
    text = SimpleNamespace(
        model_type="llama", rope_parameters={"rope_type": "default", "rope_theta": 1e4}, head_dim=32, hidden_size=160,
        num_attention_heads=5,
    )  # fmt: skip
    assert rope.narrow(text) is None
    assert rope.section(text) is None
    rope.widen(text)
    assert text.rope_parameters["mrope_section"] == [16, 0, 0]
    assert rope.section(text) == 16
    text.rope_parameters = {"rope_type": "llama3"}
    assert "llama3" in rope.narrow(text)
    assert "opt" in rope.narrow(SimpleNamespace(model_type="opt", rope_parameters=None))


# ---- positions as vLLM asks for them ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    offset: int
    length: int
    is_embed: torch.Tensor | None = None


@dataclass(frozen=True)
class Feature:
    """A picture, or a video, of a prompt, as vLLM describes it to its workers."""

    mm_position: Place
    data: dict
    size: tuple[int, int]


IMAGE, VIDEO, TEXT = 5, 6, 9


def positioned(positions="original"):
    config = SimpleNamespace(
        image_token_id=IMAGE, video_token_id=VIDEO, vision_config=SimpleNamespace(spatial_merge_size=2)
    )

    def own(tokens, features):
        prompt, at = [], 0
        for f in features:
            prompt += [("text", f.mm_position.offset - at), ("image", f.size)]
            at = f.mm_position.offset + f.mm_position.length
        full, end = slowly([*prompt, ("text", len(tokens) - at)], True)
        return full, end - len(tokens)

    model = SimpleNamespace(get_mrope_input_positions=own)
    return Positioned(model, SimpleNamespace(config=config, one_axis=False)), replace(
        stage(keep=3), positions=positions
    )


def picture(offset, size, made, kept):
    n = size[0] * size[1]
    told = Told(made, ((n, kept),), max(size))
    return Feature(Place(offset, kept), {FIELD: SimpleNamespace(data=told.pack())}, size), told


def test_a_video_beside_a_picture_keeps_the_positions_of_the_model():
    here, made = positioned()
    first, told = picture(2, (4, 3), made, 3)
    video = Feature(Place(6, 6), {}, (2, 3))
    ids = [TEXT, TEXT, IMAGE, IMAGE, IMAGE, TEXT, *[VIDEO] * 6, TEXT, TEXT]
    full, end = slowly([("text", 2), ("image", (4, 3)), ("text", 1), ("image", (2, 3)), ("text", 2)], True)
    begun, ahead = here.begun(ids, [first, video])
    assert ahead == end - len(ids)
    kept = torch.tensor([1, 5, 11])
    at = here.places(told, kept, {"image_grid_thw": torch.tensor([[1, 8, 6]])})
    rows_ = [torch.cat([torch.zeros(3, 2), positions.channels(at, torch.zeros(3, 2))], 1)]
    rows_.append(torch.cat([torch.ones(6, 2), positions.channels(None, torch.ones(6, 2))], 1))
    clean, done, again = here.filled(ids, rows_, begun, 0)
    assert [x.shape[1] for x in clean] == [2, 2]
    assert again == ahead
    assert torch.equal(done, full[:, [0, 1, *(2 + kept).tolist(), *range(14, len(full[0]))]])
    # A decode step brings no pictures.
    assert here.filled(ids, [], done, len(ids))[2] == ahead


def test_compact_positions_count_up():
    here, made = positioned("compact")
    first, told = picture(1, (4, 3), made, 3)
    begun, ahead = here.begun([TEXT, IMAGE, IMAGE, IMAGE, TEXT], [first])
    assert begun.tolist() == [list(range(5))] * 3
    assert ahead == 0
    assert here.places(told, torch.tensor([0, 1, 2]), None) is None


def test_where_nothing_leaves_positions_stay_under_either_policy():
    for policy in ("original", "compact"):
        here, made = positioned(policy)
        first, _ = picture(1, (1, 3), made, 3)
        begun, _ = here.begun([TEXT, IMAGE, IMAGE, IMAGE, TEXT], [first])
        assert torch.equal(begun, slowly([("text", 1), ("image", (1, 3)), ("text", 1)], True)[0])


def test_what_compiles_a_model_is_told_where_its_tokens_are():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    model[0]._dynamic_arg_dims = {"positions": {0: "b"}, "input_ids": {0: "b"}}
    model[1]._dynamic_arg_dims = {"positions": 0}
    positioned_module._dynamic_tokens(model)
    assert model[0]._dynamic_arg_dims == {"positions": {-1: "b"}, "input_ids": {0: "b"}}
    assert model[1]._dynamic_arg_dims == {"positions": -1}
