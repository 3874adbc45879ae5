"""Every method of the cache: second turns, rows of a batch wider than what is sampled, and the bytes that are really held."""

import pytest
import torch
from transformers import DynamicCache

import tokensieve as ts
from tests.models import decoder, llava, prompt, text
from tokensieve.sites.cache.evicted_layer import EvictedLayer

MARKS = {"separators": tuple(range(3, 64, 5))}
SMALL = {
    "snapkv": {"window": 6},
    "pyramidkv": {"window": 2, "beta": 3.0},
    "adakv": {"window": 6},
    "kvcompose": {"window": 3},
    "ems": {"window": 4},
    "vatp": {"sinks": 3},
    "caote": {"scorer": "h2o"},
    "expected-attention": {"future": 16},
    "anchor-attention": {"block": 4, "step": 2},
    "tidaldecode": {"dense": 1},
    "mustdrop-c": {"window": 4},
    "sepllm": MARKS,
    "zipcache": {"probes": 0.5},
}
"""Options with which short prompts are enough."""
ALL = ts.list_methods(site="cache")
VISUAL = ("mustdrop-c", "vasparse")
READING = ("anchor-attention", "tidaldecode")
EVICTING = [name for name in ALL if name not in (*VISUAL, *READING)]
GREEDY = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def model():
    return decoder()


@pytest.fixture(scope="module")
def seeing():
    return llava()


@pytest.fixture(scope="module")
def wide():
    return decoder(layers=2, max_position_embeddings=1024)


def turns(model, inputs, more):
    """Two turns of `generate`, the second on the cache that the first filled; all ids, and the cache."""
    out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    ids = torch.cat([out.sequences, more], 1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(len(ids), ids.shape[1] - inputs["input_ids"].shape[1])], 1)
    cache = out.past_key_values
    return model.generate(input_ids=ids, attention_mask=mask.long(), past_key_values=cache, **GREEDY), cache


@pytest.mark.parametrize("every", [0, 3])
@pytest.mark.parametrize("name", [n for n in ALL if n not in VISUAL])
def test_a_second_turn_of_a_padded_batch_is_that_of_its_rows(model, name, every):
    if every and name in READING:
        pytest.skip("nothing leaves")
    inputs, more = text(33, 48), torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(4))
    with ts.sieve(model, ts.get_method(name, **SMALL.get(name, {})), keep=12, site="cache", every=every):
        both, cache = turns(model, inputs, more)
        for row, n in enumerate((33, 48)):
            alone = {k: v[row : row + 1, -n:] for k, v in inputs.items()}
            assert torch.equal(turns(model, alone, more[row : row + 1])[0][0], both[row, 48 - n :])
    if name not in (*READING, "zipcache"):
        # What was kept behind the second prompt, and what has come since.
        held = torch.stack([(layer.entries()[2] >= 0).sum(2).float().mean() for layer in cache.layers])
        assert float(held.mean()) <= 12 + 5


@pytest.mark.parametrize("every", [0, 3])
@pytest.mark.parametrize("name", VISUAL)
def test_a_second_turn_about_images(seeing, name, every):
    inputs, more = prompt((1, 2)), torch.randint(6, 64, (2, 9), generator=torch.Generator().manual_seed(4))
    pixels, length = inputs["pixel_values"], inputs["input_ids"].shape[1]
    with ts.sieve(seeing, ts.get_method(name, **SMALL.get(name, {})), keep=14, every=every):
        both, _ = turns(seeing, inputs, more)
        for row, images in enumerate((slice(0, 1), slice(1, 3))):
            n = int(inputs["attention_mask"][row].sum())
            alone = {k: inputs[k][row : row + 1, -n:] for k in ("input_ids", "attention_mask")}
            one, _ = turns(seeing, alone | {"pixel_values": pixels[images]}, more[row : row + 1])
            assert torch.equal(one[0], both[row, length - n :])


@pytest.mark.parametrize("name", EVICTING)
def test_a_row_keeps_in_a_wide_batch_what_it_keeps_alone(wide, name):
    """Alone it is no longer than the queries that are sampled; the batch is."""
    inputs = text(300, 600)

    def kept(part):
        with ts.sieve(wide, ts.get_method(name, **SMALL.get(name, {})), keep=0.25, site="cache"):
            cache = ts.prefill(wide, part)
        if name == "zipcache":
            return [[layer.salient[0, -300:].nonzero()[:, 0].tolist()] for layer in cache.layers]
        first = part["input_ids"].shape[1] - 300
        return [[x[x >= 0].sub(first).tolist() for x in layer.entries()[2][0]] for layer in cache.layers]

    assert kept(inputs) == kept({k: v[:1, 300:] for k, v in inputs.items()})


@pytest.mark.parametrize("name", READING)
def test_one_entry_is_not_all(model, name):
    with ts.sieve(model, ts.get_method(name, **SMALL.get(name, {})), keep=1) as s:
        model.generate(**text(48), max_new_tokens=2, do_sample=False)
    assert min(s.last.layer_tokens) < 48


# ---- bytes, where 9 query heads share 3 key-value heads of 64 dimensions

LAYERS, HEADS, DIM = 2, 3, 64
OF_PASSES = {"window_attention", "expected_logits"}
"""Needs for which queries of a prompt are remembered until a token is decoded: more of it may come."""
SHAPE = {"hidden_size": 576, "num_attention_heads": 9, "head_dim": DIM, "max_position_embeddings": 8192}


def asked(method, count, size):
    """Bytes of the entries that a quarter of ``count`` tokens stands for, of numbers of ``size`` bytes."""
    width = HEADS * DIM
    if method.bits is None:
        return LAYERS * 2 * width * size * count / 4
    high, low = method.bits
    codes = 2 * width * count * (high / 4 + low * 3 / 4) / 8
    # A step and a least value of each value and, in both precisions, of each channel of the keys; a divisor of the values'.
    return LAYERS * (codes + size * (2 * count + 2 * 2 * width + 2 * width))


@pytest.mark.parametrize(
    ("dtype", "count"),
    [
        (torch.float32, 1024),
        (torch.bfloat16, 1024),
        pytest.param(torch.float32, 4096, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, 4096, marks=pytest.mark.slow),
    ],
    ids=lambda x: str(x).removeprefix("torch."),
)
@pytest.mark.parametrize("name", EVICTING)
def test_what_is_held_is_what_was_asked_for(name, dtype, count):
    """All of it, with whatever else a layer remembers: right behind the prompt, and from the first decoded token on."""
    model = decoder(layers=LAYERS, kv_heads=HEADS, **SHAPE).to(dtype)
    ids = torch.randint(3, 64, (1, count + 9), generator=torch.Generator().manual_seed(0))
    method, cache, size = ts.get_method(name, **(MARKS if name == "sepllm" else {})), DynamicCache(), dtype.itemsize
    whole = LAYERS * 2 * HEADS * DIM * size
    with ts.sieve(model, method, keep=0.25, site="cache"), torch.no_grad():
        model(ids[:, :count], past_key_values=cache, logits_to_keep=1)
        assert all(isinstance(layer, EvictedLayer) for layer in cache.layers)
        most = 1.15 if OF_PASSES & {need.name for need in method.needs} else 1.05
        if most == 1.05 or count >= 4096:
            assert ts.cache_bytes(cache) <= most * asked(method, count, size)
        for more in range(1, 9):
            model(ids[:, count + more - 1 : count + more], past_key_values=cache)
            assert ts.cache_bytes(cache) <= 1.05 * (asked(method, count, size) + more * whole)
