"""Caches in few bits: packing, quantizers and ZipCache, against plain loops and against a plain cache of the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

import tokensieve as ts
from tests.models import decoder, text
from tests.test_parity_cache import SIZES, attention, best, kept
from tokensieve.parts.attention.packed import attend
from tokensieve.parts.numeric.bits import Packed, pack, unpack
from tokensieve.sites.cache.evicted_layer import EvictedLayer
from tokensieve.sites.cache.statistics import probes
from tokensieve.testing import features

GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("width", [1, 7, 16])
def test_codes_are_packed(bits, width):
    codes = torch.randint(0, 2**bits, (2, 3, width), generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 3, -(-width * bits // 8))
    assert torch.equal(unpack(packed, bits, width).long(), codes)


def quantized(line, bits):
    """A list of numbers on the nearest of ``2 ** bits`` equal steps from the least to the greatest."""
    low, high = min(line), max(line)
    step = (high - low) / (2**bits - 1)
    return [low + round((x - low) / step) * step if step > 0 else low for x in line]


def by_channel(x, bits):
    return torch.tensor([quantized(c, bits) for c in x.double().T.tolist()]).T


def by_vector(x, bits):
    channel = x.double().abs().amax(0).sqrt()
    return torch.tensor([quantized(v, bits) for v in (x.double() / channel).tolist()]) * channel


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantizers(bits):
    x = features(3, 9, 7) * torch.tensor([1, 1, 9, 1, 0.1, 1, 30])
    for b in range(3):
        torch.testing.assert_close(
            Packed.by_channel(x, bits).open()[b], by_channel(x[b], bits).float(), atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(
            Packed.by_vector(x, bits).open()[b], by_vector(x[b], bits).float(), atol=1e-4, rtol=1e-4
        )
    same = torch.full((1, 4, 6), 3.0)
    assert torch.equal(Packed.by_channel(same, bits).open(), same)
    torch.testing.assert_close(Packed.by_vector(same, bits).open(), same)
    assert torch.equal(Packed.by_vector(0 * same, bits).open(), 0 * same)


def test_large_channels_leave_steps_to_others():
    """Why values are divided by channel: without, a vector's few large numbers take all steps."""
    x = features(1, 64, 32)
    x[..., 3] *= 50
    plain = torch.tensor([quantized(v, 4) for v in x[0].double().tolist()])
    ours = Packed.by_vector(x, 4).open()[0]
    others = torch.arange(32) != 3
    assert float((ours - x[0])[:, others].norm()) < 0.5 * float((plain - x[0])[:, others].norm())


@pytest.mark.parametrize(("b", "n", "keep"), SIZES)
def test_zipcache(b, n, keep):
    rows = attention(b, 3, n)
    got = ts.reduce(features(b, n), "zipcache", keep, probe_attention=rows)
    assert kept(got) == [sorted(best(rows[i].double().mean(0), keep, range(n))) for i in range(b)]


def test_probes():
    real = torch.arange(400) >= torch.tensor([[0], [100], [399]])
    got = probes(real, 0.1)
    for row, n in enumerate((400, 300, 1)):
        at = got[row].nonzero()[:, 0]
        assert bool(real[row, at].all())
        assert bool(got[row, 400 - -(-n // 20) :].all())
        assert torch.equal(got[row, 400 - n :], probes(torch.ones(1, n, dtype=torch.bool), 0.1)[0])
        assert abs(len(at) - 0.1 * n) <= 0.01 * n + 1
    assert 15 <= int(got[0, :380].sum()) <= 20
    assert bool(got[0, :380].unflatten(0, (4, 95)).any(1).all())


def zipped(model, **options):
    """A prompt batch, the plain cache, and the cache that ZipCache makes."""
    inputs = text(33, 48)
    ids = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        plain = model(**inputs, position_ids=ids).past_key_values
    with ts.sieve(model, "zipcache", keep=0.4, **options):
        return inputs, plain, ts.prefill(model, inputs)


def test_zipcache_in_a_model():
    """The entries, opened, are the plain ones quantized by loops; the salient tokens are those of eager attention's maps."""
    inputs, plain, cache = zipped(decoder(), probes=0.5)
    ids = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        maps = decoder("eager")(**inputs, position_ids=ids, output_attentions=True).attentions
    for i in range(3):
        keys, values, columns = cache.layers[i].entries()
        for b, n in enumerate((33, 48)):
            first = 48 - n
            at = [first + q for q in probes(torch.ones(1, n, dtype=torch.bool), 0.5)[0].nonzero()[:, 0].tolist()]
            total = torch.zeros(n, dtype=torch.float64)
            for j in range(n):
                seen = [q for q in at if q >= first + j]
                total[j] = sum(maps[i][b, :, q, first + j].double().mean() for q in seen) / max(len(seen), 1)
            high = sorted(best(total, int(n * 0.4 + 0.5), range(n)))
            low = [j for j in range(n) if j not in high]
            assert columns[b, 0, first:].tolist() == list(range(first, 48))
            for x, held, how in ((keys, plain.layers[i].keys, by_channel), (values, plain.layers[i].values, by_vector)):
                flat = held[b, :, first:].transpose(0, 1).flatten(1)
                want = torch.zeros_like(flat)
                want[high], want[low] = how(flat[high], 4).float(), how(flat[low], 2).float()
                found = x[b, :, first:].transpose(0, 1).flatten(1)
                torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)


def test_decoding_over_a_packed_cache():
    """As the plain model over a cache of the same numbers; beams and rows of a batch too."""
    model = decoder()
    inputs, plain, cache = zipped(model)
    for held, layer in zip(plain.layers, cache.layers, strict=True):
        held.keys, held.values, _ = layer.entries()
    token = torch.randint(3, 64, (2, 1), generator=torch.Generator().manual_seed(7))
    more = {"attention_mask": torch.cat([inputs["attention_mask"], torch.ones(2, 1).long()], 1)}
    more["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
    for options in (GREEDY, GREEDY | {"num_beams": 3}):
        one, two = copy.deepcopy(plain), copy.deepcopy(cache)
        for held in (one, two):
            held.batch_repeat_interleave(options.get("num_beams", 1))
        want = model.generate(**more, **options, past_key_values=one)
        with ts.sieve(model, ts.Plan([])):
            assert torch.equal(model.generate(**more, **options, past_key_values=two), want)
    with ts.sieve(model, "zipcache", keep=0.4, every=3):
        both = model.generate(**inputs, **GREEDY)[:, 48:]
        for row, n in enumerate((33, 48)):
            alone = {k: v[row : row + 1, -n:] for k, v in inputs.items()}
            assert torch.equal(model.generate(**alone, **GREEDY)[0, n:], both[row])
    with pytest.raises(ValueError, match="packed in few bits; such caches are not saved"):
        ts.save_cache(cache, "nowhere.safetensors")


def test_bytes_are_really_fewer():
    model, inputs = decoder(), text(220, 220)
    held = {}
    for high, low in ((16, 16), (8, 8), (4, 4), (4, 2), (2, 2)):
        cache = DynamicCache()
        if high < 16:
            with ts.sieve(model, "zipcache", keep=0.5, high=high, low=low):
                cache = ts.prefill(model, inputs)
        else:
            model(**inputs, past_key_values=cache)
        held[high, low] = ts.cache_bytes(cache)
    # Beside the codes of 256 bytes a token (in single precision): a place, its precision, a scale and a least value.
    for (high, low), size in held.items():
        if high < 16:
            assert size / held[16, 16] < (high + low) / 64 + 13 / 256 + 0.02


def test_evict_then_pack():
    """Two stages on one cache: SnapKV's choice, in few bits; while decoding too."""
    model, inputs = decoder(), text(33, 48)
    plan = ts.Plan([ts.stage("snapkv", keep=20, window=4, every=2), ts.stage("zipcache", keep=10, every=2)])
    with ts.sieve(model, "snapkv", keep=20, window=4):
        one = ts.prefill(model, inputs)
    with ts.sieve(model, plan):
        two = ts.prefill(model, inputs)
        out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True).past_key_values
    assert torch.equal(one.layers[0].entries()[2], two.layers[0].entries()[2])
    assert all(layer.packed is not None for layer in out.layers)
    assert all(int((layer.entries()[2] >= 0).sum(2).max()) <= 21 for layer in out.layers)
    with pytest.raises(ValueError, match=r"layer 0 has stages with every=\[2, 3\]"):
        ts.sieve(model, ts.Plan([plan.stages[0], ts.stage("zipcache", keep=10, every=3)]))
    with pytest.raises(ValueError, match="kvcompose, whose layers share one budget, stands alone"):
        ts.sieve(model, ts.Plan([ts.stage("kvcompose", keep=40), ts.stage("zipcache", keep=10)]))
    with pytest.raises(ValueError, match="high=2, low=4; low must be at most high"):
        ts.get_method("zipcache", high=2, low=4)


@pytest.mark.parametrize("bits", [(4, 2), (8, 1), (2, 2)])
def test_attention_over_codes_is_that_over_opened_vectors(bits):
    """Grouped heads, rows whose parts differ in length, a mask over what came since."""
    g = torch.Generator().manual_seed(3)
    sizes, heads, d = (5, 9), 2, 8
    parts = [
        (
            Packed.by_channel(torch.randn(3, n, heads * d, generator=g), b),
            Packed.by_vector(torch.randn(3, n, heads * d, generator=g), b),
        )
        for n, b in zip(sizes, bits, strict=True)
    ]
    keys, values = (torch.randn(3, heads, 4, d, generator=g) for _ in range(2))
    query = torch.randn(3, 6, 2, d, generator=g)
    real = torch.ones(3, 14, dtype=torch.bool)
    real[1, 3:5], real[2, 10:] = False, False
    allowed = torch.zeros(3, 1, 2, 4)
    allowed[0, :, :, 0] = -torch.inf
    whole = [
        torch.cat([torch.cat([p.open() for p in each], 1).unflatten(2, (heads, d)).transpose(1, 2), late], 2)
        for each, late in zip(zip(*parts, strict=True), (keys, values), strict=True)
    ]
    bias = torch.zeros(3, 1, 2, 18)
    bias[..., :14] = torch.where(real, 0.0, -torch.inf)[:, None, None]
    bias[..., 14:] = allowed
    want = torch.nn.functional.scaled_dot_product_attention(
        query, *(x.repeat_interleave(3, 1) for x in whole), bias, scale=0.3
    )
    got = attend(query, parts, real, keys, values, 0.3, allowed)
    assert (got - want).abs().max() < 1e-5
    plain = attend(
        query[:1],
        [(k.rows(lambda x, _: x[:1]), v.rows(lambda x, _: x[:1])) for k, v in parts],
        None,
        keys[:1],
        values[:1],
        0.3,
        None,
    )
    assert (plain - attend(query, parts, real, keys, values, 0.3, None)[:1]).abs().max() < 1e-6


@pytest.mark.parametrize("padded", [False, True])
def test_nothing_is_opened_to_decode_a_token(padded, monkeypatch):
    model, inputs = decoder(), text(30, 50 if padded else 30)
    with ts.sieve(model, "zipcache", keep=0.4):
        calls = []
        monkeypatch.setattr(Packed, "open", lambda self: calls.append(1))
        closed = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
        assert calls == []
        monkeypatch.undo()
        monkeypatch.setattr(EvictedLayer, "bare", property(lambda self: False, lambda self, value: None), raising=False)
        opened = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
    for a, b in zip(opened.logits, closed.logits, strict=True):
        assert (a - b).abs().max() < 1e-4
