"""AnchorAttention: against its definition as loops, and in a model against the plain one under the same mask."""

import math

import pytest
import torch

import tokensieve as ts
from tests.models import decoder, text
from tokensieve.parts.attention import anchor
from tokensieve.sites.model import taps
from tokensieve.testing import Largest

SMALL = {"block": 4, "step": 2}
GREEDY = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def model():
    return decoder()


def randoms(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]


def stripes(q, k, scale, real, block, gap):
    """One head of one row, by the paper's steps: for each key in front, its margin."""
    g, n = len(q), len(k)
    front = n - g
    first = [j for j in range(n) if real[j]][:block]
    score = lambda i, j: float(q[i] @ k[j]) * scale  # noqa: E731
    best = [-math.inf] * front
    for start in range(0, g, block):
        mine = [i for i in range(start, min(start + block, g)) if real[front + i]]
        if not mine:
            continue
        anchors = []
        for i in mine:
            near = [j for j in range(front, front + i + 1) if real[j]]
            anchors.append(max(score(i, j) for j in {*near, *(j for j in first if j <= front + i)}))
        mean = sum(q[i] for i in mine) / len(mine)
        for j in range(front):
            margin = float(mean @ k[j]) * scale + gap - sum(anchors) / len(anchors)
            best[j] = max(best[j], margin)
    return [(-math.inf if not real[j] else math.inf if j in first else best[j]) for j in range(front)]


@pytest.mark.parametrize(("g", "n", "block"), [(8, 8, 4), (8, 24, 4), (6, 21, 4), (3, 30, 5), (9, 12, 20)])
def test_stripes_are_those_of_the_definition(g, n, block):
    q, k = randoms((2, 3, g, 8), (2, 3, n, 8))
    real = torch.ones(2, n, dtype=torch.bool)
    real[1, : n // 3] = False
    got = anchor.stripes(q, k, 0.7, real, block, 1.5)
    assert got.shape == (2, 3, n - g)
    for b in range(2):
        for h in range(3):
            want = torch.tensor(stripes(q[b, h], k[b, h], 0.7, real[b].tolist(), block, 1.5))
            torch.testing.assert_close(got[b, h].double(), want.double(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def logits(model, inputs, keep, **options):
    with ts.sieve(model, "anchor-attention", keep=keep, **options):
        return model(**inputs).logits


def test_a_wide_gap_reads_everything(model):
    inputs = text(50, 37)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        plain = model(**inputs).logits
    got = logits(model, inputs, 1000, gap=1e9, **SMALL)
    torch.testing.assert_close(got[real], plain[real], rtol=1e-4, atol=1e-4)
    assert (logits(model, inputs, 1000, gap=0.0, **SMALL)[real] - plain[real]).abs().max() > 1e-3
    assert torch.equal(logits(model, inputs, 1.0, **SMALL), plain)
    assert torch.equal(logits(model, inputs, 0.1), plain)  # shorter than a group


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("keep", [1000, 5, 0.3])
def test_the_model_reads_what_the_stripes_say(attn, keep):
    """The first layer's output equals plain attention under the mask of the definition, head by head, with padding."""
    model, inputs, gap = decoder(attn, layers=1), text(30, 23), 1.0
    calls, made = [], []
    undo = taps.attach(model.model.layers[0].self_attn, observe=calls.append)
    hook = model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda m, a: made.append(a[0]))
    logits(model, inputs, keep, gap=gap, **SMALL)
    hook.remove()
    undo()
    (call,), (out,) = calls, made
    real = inputs["attention_mask"].bool()
    n, heads = real.shape[1], call.query.shape[1]
    out = out.view(2, n, heads, -1)
    for b in range(2):
        for h in range(heads):
            q, k, v = call.query[b, h], call.key[b, h // 2], call.value[b, h // 2]
            allowed = torch.zeros(n, n, dtype=torch.bool)
            first = int(real[b].long().argmax())
            for start in range(first, n, 8):
                stop = min(start + 8, n)
                margin = stripes(q[start:stop], k[:stop], call.scale, real[b].tolist(), 4, gap)
                front = int(real[b, :start].sum())
                most = keep if isinstance(keep, int) else math.floor(keep * front + 0.5)
                order = sorted((j for j in range(start) if margin[j] >= 0), key=lambda j: -margin[j])
                for j in order[: max(most, 1)]:
                    allowed[start:stop, j] = True
                allowed[start:stop, start:stop] = torch.ones(stop - start, stop - start).tril().bool()
            score = (q @ k.T * call.scale).masked_fill(~(allowed & real[b]), -torch.inf)
            want = score.softmax(-1) @ v
            torch.testing.assert_close(out[b, real[b], h], want[real[b]], rtol=1e-4, atol=1e-5)


def test_padding_and_chunks_change_nothing(model):
    inputs = text(50, 37)
    both = logits(model, inputs, 0.5, gap=0.5, **SMALL)
    for row, n in enumerate((50, 37)):
        alone = {k: v[row : row + 1, -n:] for k, v in inputs.items()}
        want = logits(model, alone, 0.5, gap=0.5, **SMALL)
        torch.testing.assert_close(both[row, -n:], want[0], rtol=1e-4, atol=1e-4)
    alone = {k: v[:1] for k, v in inputs.items()}
    with ts.sieve(model, "anchor-attention", keep=0.5, gap=0.5, **SMALL) as s:
        one, parts = ts.prefill(model, alone), ts.prefill(model, alone, chunk=16)
        assert s.last.layer_tokens[0] < 50
    for a, b in zip(one.layers, parts.layers, strict=True):
        torch.testing.assert_close(a.keys, b.keys, rtol=1e-4, atol=1e-4)


def test_a_short_row_reads_all_beside_a_long_one(model):
    """In a second pass, too: alone, it fits into one group."""
    inputs, more = text(30, 3), torch.tensor([[7, 8, 9, 10], [11, 12, 13, 14]])

    @torch.no_grad()
    def second(part, new):
        cache = ts.prefill(model, part)
        mask = torch.cat([part["attention_mask"], torch.ones_like(new)], 1)
        places = (mask.cumsum(1) - 1)[:, -4:]
        return model(new, attention_mask=mask, position_ids=places, past_key_values=cache).logits

    with ts.sieve(model, "anchor-attention", keep=1, gap=0.5, **SMALL):
        both = second(inputs, more)
        for row, n in enumerate((30, 3)):
            one = second({k: v[row : row + 1, -n:] for k, v in inputs.items()}, more[row : row + 1])
            torch.testing.assert_close(both[row], one[0], rtol=1e-4, atol=1e-4)


def test_it_generates_and_goes_away(model):
    inputs = text(60, 41)
    plain = model.generate(**inputs, **GREEDY)
    with ts.sieve(model, "anchor-attention", keep=0.5, **SMALL):
        assert model.generate(**inputs, **GREEDY).shape == plain.shape
    assert torch.equal(model.generate(**inputs, **GREEDY), plain)
    with ts.sieve(model, "anchor-attention", keep=1000, gap=1e9, **SMALL):
        beams = model.generate(**inputs, **GREEDY, num_beams=2)
    assert torch.equal(beams, model.generate(**inputs, **GREEDY, num_beams=2))


def test_no_square_is_held():
    n = 4096
    q, k = randoms((1, 1, 256, 8), (1, 1, n, 8))
    with Largest() as seen:
        anchor.stripes(q.float(), k.float(), 0.3, torch.ones(1, n, dtype=torch.bool), 64, 1.0)
    assert seen.elements < 256 * n // 4


def test_it_stands_alone(model):
    with pytest.raises(ValueError, match="anchor-attention, which reads a whole cache, stands alone"):
        ts.sieve(model, ts.Plan([ts.stage("anchor-attention", 0.5), ts.stage("snapkv", 0.5)]))
