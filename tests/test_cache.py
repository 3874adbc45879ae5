"""The cache site: against the plain model, and against the plain model with the evicted entries masked."""

import pytest
import torch
from transformers import DynamicCache

import tokensieve as ts
from tests.models import decoder, text
from tokensieve.sites.evicted import EvictedLayer

GREEDY = {"max_new_tokens": 6, "do_sample": False}
SMALL = {"window": 6}
METHODS = [
    ("snapkv", SMALL),
    ("pyramidkv", {"window": 2, "beta": 3.0}),
    ("adakv", SMALL),
    ("h2o", {}),
    ("tova", {}),
    ("streamingllm", {}),
    ("keydiff", {}),
    ("expected-attention", {"future": 16}),
    ("random", {"site": "cache"}),
]
each_method = pytest.mark.parametrize(("name", "options"), METHODS, ids=[n for n, _ in METHODS])


@pytest.fixture(scope="module")
def model():
    return decoder()


@pytest.fixture(scope="module")
def eager():
    return decoder("eager")


def held(cache, index, batch, heads):
    """Columns that the entries of a layer stand for, -1 at padding: (B, G, N)."""
    if len(cache.layers) <= index or not cache.layers[index].is_initialized:
        return torch.zeros(batch, heads, 0, dtype=torch.long)
    layer = cache.layers[index]
    if isinstance(layer, EvictedLayer):
        return layer.entries()[2]
    return torch.arange(layer.get_seq_length()).expand(batch, heads, -1)


@torch.no_grad()
def steps(model, inputs, passes, new):
    """Drive a model by hand: the prompt in ``passes`` parts, then ``new`` greedy tokens.

    Returns the logits of every token, all ids, the mask, the cache, and by layer which column each query saw, (B, G, L, L).
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    cache, logits, saw, past = DynamicCache(), [], [], 0
    config = model.config.get_text_config()
    b, g, total = len(ids), config.num_key_value_heads, ids.shape[1] + new
    saw = [torch.zeros(b, g, total, total, dtype=torch.bool) for _ in range(config.num_hidden_layers)]
    parts = list(ids.tensor_split(passes, 1))
    for step in range(passes + new):
        part = parts[step]
        upto = past + part.shape[1]
        if mask.shape[1] < upto:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        for i, seen in enumerate(saw):
            columns = held(cache, i, b, g)
            before = torch.zeros(b, g, total + 1, dtype=torch.bool).scatter_(2, columns % (total + 1), True)[
                ..., :total
            ]
            seen[:, :, past:upto] = before[:, :, None]
            seen[:, :, past:upto, past:upto] |= torch.ones(upto - past, upto - past).tril().bool()
        places = (mask[:, :upto].cumsum(1) - 1).clamp(min=0)[:, past:]
        out = model(input_ids=part, attention_mask=mask[:, :upto], position_ids=places, past_key_values=cache)
        logits.append(out.logits)
        past = upto
        if step >= passes - 1:
            parts.append(out.logits[:, -1:].argmax(-1))
    return torch.cat(logits, 1), torch.cat(parts[:-1], 1), mask, cache, saw


@torch.no_grad()
def masked(model, ids, mask, saw):
    """Logits of the plain model, each query seeing the columns it is said to have seen, layer by layer and head by head."""
    handles = []
    for i, layer in enumerate(model.model.layers):
        allowed = saw[i].repeat_interleave(model.config.num_attention_heads // saw[i].shape[1], 1)
        allowed = (allowed & mask[:, None, None].bool()) | torch.eye(ids.shape[1], dtype=torch.bool)
        bias = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)

        def hook(module, args, kwargs, bias=bias):
            return args, {**kwargs, "attention_mask": bias}

        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        places = (mask.cumsum(1) - 1).clamp(min=0)
        return model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits
    finally:
        for h in handles:
            h.remove()


@each_method
@pytest.mark.parametrize("how", ["greedy", "sample", "beam"])
def test_keeping_all_is_the_plain_model(model, name, options, how):
    inputs = text(30, 50)
    extra = {"greedy": GREEDY, "sample": GREEDY | {"do_sample": True}, "beam": GREEDY | {"num_beams": 3}}[how]

    def run():
        torch.manual_seed(0)
        return model.generate(**inputs, **extra)

    plain = run()
    for keep in (1.0, 500):
        with ts.sieve(model, name, keep=keep, every=2, **options):
            assert torch.equal(run(), plain)
    assert torch.equal(run(), plain)


@each_method
@pytest.mark.parametrize("every", [0, 2])
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_evicting_equals_masking(request, name, options, every, passes, attn):
    model = request.getfixturevalue("model" if attn == "sdpa" else "eager")
    inputs = text(33, 48)
    with ts.sieve(model, name, keep=12, every=every, **options):
        logits, ids, mask, cache, saw = steps(model, inputs, passes, 7)
    expected = masked(model, ids, mask, saw)
    real = mask.bool()
    torch.testing.assert_close(logits[real], expected[real], atol=5e-5, rtol=1e-4)
    assert all(isinstance(layer, EvictedLayer) for layer in cache.layers)
    counts = torch.stack([(held(cache, i, 2, 2) >= 0).sum(2).float().mean(1) for i in range(3)])
    late = 7 % every if every else 7
    torch.testing.assert_close(counts.mean(0), torch.full((2,), 12.0 + late), atol=1e-5, rtol=0)


@each_method
def test_entries_stand_in_order_and_are_no_padding(model, name, options):
    inputs = text(20, 48)
    with ts.sieve(model, name, keep=12, **options):
        cache = ts.prefill(model, inputs)
    for i in range(3):
        for row, heads in enumerate(held(cache, i, 2, 2)):
            for columns in heads:
                real = columns[columns >= 0]
                assert bool((real[1:] > real[:-1]).all())
                assert int(real.min()) >= 48 - (20, 48)[row]
                if name in ("streamingllm", "expected-attention"):
                    assert real[:4].tolist() == list(range(28, 32) if row == 0 else range(4))


@each_method
@pytest.mark.parametrize("keep", [11, 0.4])
def test_a_batch_is_its_rows(model, name, options, keep):
    inputs = text(33, 48, 40)
    with ts.sieve(model, name, keep=keep, every=3, **options):
        batch = model.generate(**inputs, **GREEDY)[:, -6:]
        for row, n in enumerate((33, 48, 40)):
            alone = {k: v[row : row + 1, -n:] for k, v in inputs.items()}
            assert torch.equal(model.generate(**alone, **GREEDY)[0, -6:], batch[row])


@pytest.mark.parametrize("name", ["snapkv", "adakv", "h2o"])
def test_beams(model, name):
    """Beam search over the compressed cache, against one that goes on from copies of a saved prefix."""
    inputs = text(33, 48)
    options = {} if name == "h2o" else SMALL
    with ts.sieve(model, name, keep=12, every=2, **options):
        beams = model.generate(**inputs, **GREEDY, num_beams=4, return_dict_in_generate=True, output_scores=True)
        again = model.generate(**inputs, **GREEDY, num_beams=4, num_return_sequences=4)
    # Every returned sequence scores what the model gives it when it is decoded on its own.
    with ts.sieve(model, name, keep=12, every=2, **options):
        for row in range(2):
            one = {k: v[row : row + 1] for k, v in inputs.items()}
            total = forced(model, one, again[4 * row : 4 * row + 1, 48:])
            torch.testing.assert_close(total / 6, beams.sequences_scores[row], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def forced(model, inputs, tokens):
    """Log-likelihood of ``tokens`` behind a prompt, one pass each."""
    cache, mask, part, total = DynamicCache(), inputs["attention_mask"], inputs["input_ids"], 0.0
    for token in tokens[0]:
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -part.shape[1] :]
        out = model(input_ids=part, attention_mask=mask, position_ids=places, past_key_values=cache)
        total = total + out.logits[0, -1].log_softmax(-1)[token]
        part, mask = token[None, None], torch.cat([mask, torch.ones(1, 1, dtype=torch.long)], 1)
    return total
