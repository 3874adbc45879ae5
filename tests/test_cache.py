"""The cache site: against the plain model, and against the plain model with the evicted entries masked."""

import copy
import inspect
import threading
import warnings

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import DynamicCache, QuantizedCache
from transformers.cache_utils import DynamicLayer

import tokensieve as ts
from tests.models import IMAGE, decoder, eight_bits, llava, prompt, text
from tokensieve.sites.cache import prefix
from tokensieve.sites.cache.evicted_layer import EvictedLayer
from tokensieve.sites.model.compatibility import cache_of
from tokensieve.sites.model.decoder import decoder as site
from tokensieve.sites.model.decoder import full_layers

GREEDY = {"max_new_tokens": 6, "do_sample": False}
SMALL = {"window": 6}
METHODS = [
    ("snapkv", SMALL),
    ("pyramidkv", {"window": 2, "beta": 3.0}),
    ("adakv", SMALL),
    ("adakv", {"scorer": "keydiff", "floor": 0.1}),
    ("h2o", {}),
    ("tova", {}),
    ("streamingllm", {}),
    ("keydiff", {}),
    ("expected-attention", {"future": 16}),
    ("random", {"site": "cache"}),
    ("a2sf", {"factor": 0.9}),
    ("vatp", {"sinks": 3}),
    ("caote", {}),
    ("kvcompose", {"window": 3}),
    ("sepllm", {"separators": tuple(range(3, 64, 5))}),
]
each_method = pytest.mark.parametrize(
    ("name", "options"), METHODS, ids=[f"{n}{o.get('scorer', '')}" for n, o in METHODS]
)


@pytest.fixture(scope="module")
def model():
    return decoder()


@pytest.fixture(scope="module")
def eager():
    return decoder("eager")


def held(cache, index, batch, heads):
    """Columns that the entries of a layer stand for, -1 at padding: (B, G, N)."""
    layer = cache.layers[index] if len(cache.layers) > index else None
    if not isinstance(layer, DynamicLayer) or not layer.is_initialized:
        return torch.zeros(batch, heads, 0, dtype=torch.long)
    if isinstance(layer, EvictedLayer):
        return layer.entries()[2]
    return torch.arange(layer.get_seq_length()).expand(batch, heads, -1)


def cached_heads(config):
    own = getattr(config, "num_key_value_heads", config.num_attention_heads)
    return 1 if getattr(config, "kv_lora_rank", None) else own


@torch.no_grad()
def steps(model, inputs, passes, new, more=None):
    """Drive a model by hand: the prompt in ``passes`` parts, then ``new`` greedy tokens; then ``more`` and as many again.

    Returns the logits of every token, all ids, the mask, the cache, and by layer which column each query saw, (B, G, L, L).
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    config = model.config.get_text_config()
    cache, logits, past = DynamicCache(config=config), [], 0
    b, g, total = len(ids), cached_heads(config), ids.shape[1] + new
    total += 0 if more is None else new + more.shape[1]
    saw = [torch.zeros(b, g, total, total, dtype=torch.bool) for _ in range(config.num_hidden_layers)]
    parts = list(ids.tensor_split(passes, 1))
    for step in range(passes + new + (0 if more is None else new + 1)):
        if more is not None and step == passes + new:
            parts[step] = more
        part = parts[step]
        upto = past + part.shape[1]
        if mask.shape[1] < upto:
            mask = torch.cat([mask, torch.ones(b, upto - mask.shape[1], dtype=torch.long)], 1)
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
    handles, language = [], site(model)
    for layer, i in zip(language.layers, language.sources, strict=True):
        if i not in full_layers(language):
            continue
        allowed = saw[i].repeat_interleave(model.config.num_attention_heads // saw[i].shape[1], 1)
        allowed = (allowed & mask[:, None, None].bool()) | torch.eye(ids.shape[1], dtype=torch.bool)
        bias = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)

        names = tuple(inspect.signature(layer.forward).parameters)

        def hook(module, args, kwargs, bias=bias, names=names):
            return (), {**dict(zip(names, args, strict=False)), **kwargs, "attention_mask": bias}

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


def test_the_row_of_the_longest_head_may_go(model):
    """As beams do: what is left is still one table, and goes on to evict."""
    with ts.sieve(model, "adakv", keep=12, every=1, **SMALL):
        cache = ts.prefill(model, text(48, 40))
        ragged = [layer for layer in cache.layers if layer.pages is not None]
        for layer in ragged:
            short = layer.pages.counts.view(2, -1).amax(1).argmin()
            before = [x[short] for x in layer.entries()]
            layer.batch_select_indices(short.expand(2))
            for now, then in zip(layer.entries(), before, strict=True):
                assert torch.equal(now[0][before[2] >= 0], then[before[2] >= 0])
        model(torch.full((2, 1), 9), past_key_values=cache)
    assert ragged
    assert {int((held(cache, i, 2, 2)[0] >= 0).sum()) for i in range(3)} == {24}


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


@pytest.mark.parametrize(
    ("name", "options"), [("snapkv", SMALL), ("adakv", SMALL), ("h2o", {}), ("pyramidkv", {"window": 2})]
)
@pytest.mark.parametrize("every", [0, 3])
def test_a_second_turn(model, name, options, every):
    inputs, more = text(33, 48), torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(4))
    with ts.sieve(model, name, keep=12, every=every, **options):
        logits, ids, mask, _, saw = steps(model, inputs, 1, 5, more)
    real = mask.bool()
    torch.testing.assert_close(logits[real], masked(model, ids, mask, saw)[real], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"), [("snapkv", SMALL), ("adakv", SMALL), ("expected-attention", {"future": 9})]
)
def test_a_prompt_in_chunks_never_holds_it_all(model, name, options):
    inputs, most = text(150, 200), []
    handle = model.model.layers[2].register_forward_pre_hook(
        lambda m, a, kw: most.append(held(cache_of(kw), 1, 2, 2).shape[2]), with_kwargs=True
    )
    with ts.sieve(model, name, keep=0.2, **options):
        cache = ts.prefill(model, inputs, chunk=30)
        assert len(most) == 7
        assert max(most) <= (40 if name != "adakv" else 80)
        assert max((held(cache, 1, 2, 2) >= 0).sum((1, 2)).tolist()) == 80
        whole = model.generate(**inputs, **GREEDY, prefill_chunk_size=30)
        rest = model.generate(
            input_ids=whole[:, :201], attention_mask=torch.cat([inputs["attention_mask"], torch.ones(2, 1).long()], 1),
            past_key_values=cache, max_new_tokens=5, do_sample=False,
        )  # fmt: skip
    handle.remove()
    assert cache.get_seq_length() == 205
    assert rest.shape == whole.shape


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_masks_of_a_chunk_are_no_wider_than_it_has_to_be(attn):
    """The model's own would be as wide as the prompt."""
    model, widths = decoder(attn), []
    model.model.register_forward_pre_hook(lambda m, a, kw: widths.append(kw["attention_mask"].shape), with_kwargs=True)
    with ts.sieve(model, "snapkv", keep=12, **SMALL):
        steps(model, text(150, 200), 5, 2)
    assert [tuple(w)[2:] for w in widths[1:5]] == [(40, 40)] * 4
    assert [tuple(w) for w in widths[5:]] == [(2, 201), (2, 202)]


def test_chunks_of_a_whole_budget_are_one_pass(model):
    inputs = text(50, 70)
    with ts.sieve(model, "snapkv", keep=20, **SMALL):
        one = ts.prefill(model, inputs)
    with ts.sieve(model, "snapkv", keep=100, **SMALL):
        cache = ts.prefill(model, {k: v[:, :60] for k, v in inputs.items()}, chunk=20)
    with ts.sieve(model, "snapkv", keep=20, **SMALL):
        ts.prefill(model, inputs | {"input_ids": inputs["input_ids"][:, 60:]}, cache=cache)
    for i in range(3):
        assert torch.equal(held(one, i, 2, 2), held(cache, i, 2, 2))
        torch.testing.assert_close(one.layers[i].keys, cache.layers[i].keys, atol=1e-5, rtol=1e-4)


@each_method
def test_the_window_may_come_in_several_chunks(model, name, options):
    """Chunks shorter than the window: queries of earlier ones still vote; sums go on. As all at once, if nothing left before."""
    inputs = text(40, 40)
    with ts.sieve(model, name, keep=12, **options):
        one = ts.prefill(model, inputs)
    with ts.sieve(model, name, keep=38, **options):
        cache = ts.prefill(model, {k: v[:, :38] for k, v in inputs.items()}, chunk=2)
        for layer in cache.layers:  # nothing has left, so only what was noted tells it from a plain one
            assert not isinstance(layer, EvictedLayer) or layer.places.shape[2] == 0
    if name in ("keydiff", "streamingllm", "h2o"):
        with ts.sieve(model, name, keep=12, **options):
            ts.prefill(model, inputs | {"input_ids": inputs["input_ids"][:, 38:]}, cache=cache)
        assert all(torch.equal(held(one, i, 2, 2), held(cache, i, 2, 2)) for i in range(3))


@each_method
def test_memory_is_freed(model, name, options):
    inputs = text(220, 220)
    plain = DynamicCache()
    model.generate(**inputs, **GREEDY, past_key_values=plain)
    cache = DynamicCache()
    with ts.sieve(model, name, keep=0.25, **options):
        model.generate(**inputs, **GREEDY, past_key_values=cache)
    share = (55 + 5) / 225
    # Beside entries: their columns (4 of 128 bytes), sums of attention, on average half a page for each head, and rows as long
    # as the batch's longest.
    slack = {"adakv": 5 / 225, "kvcompose": 0.01}
    slack |= dict.fromkeys(("h2o", "a2sf", "vatp"), 0.01)
    assert ts.cache_bytes(cache) / ts.cache_bytes(plain) < share * 1.05 + slack.get(name, 0.0)


@pytest.mark.parametrize(("name", "options"), [("snapkv", SMALL), ("adakv", SMALL)])
def test_a_saved_prefix_answers_many_questions(model, name, options, tmp_path):
    inputs = text(33, 48)
    questions = [torch.randint(3, 64, (2, n), generator=torch.Generator().manual_seed(n)) for n in (3, 7)]
    with ts.sieve(model, name, keep=12, **options):
        cache = ts.prefill(model, inputs)
    ts.save_cache(cache, tmp_path / "prefix.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["prefix.safetensors"]

    def ask(question, held):
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(question)], 1)
        ids = torch.cat([inputs["input_ids"], question], 1)
        return model.generate(ids, attention_mask=mask, past_key_values=held, **GREEDY)

    with ts.sieve(model, ts.Plan([])):
        for question in questions:
            back = ts.load_cache(tmp_path / "prefix.safetensors", model)
            for i in range(3):
                assert torch.equal(held(cache, i, 2, 2), held(back, i, 2, 2))
            assert torch.equal(ask(question, back), ask(question, copy.deepcopy(cache)))
    with pytest.raises(RuntimeError, match="tokens have left this cache; attach a sieve"):
        ask(questions[0], copy.deepcopy(cache))
    other = decoder(seed=1)
    with pytest.raises(ValueError, match="filled by another model"):
        ts.load_cache(tmp_path / "prefix.safetensors", other)
    with (
        ts.sieve(other, ts.Plan([])),
        pytest.raises(ValueError, match="layer 0 of this cache was filled by another model"),
    ):
        other(questions[0], past_key_values=copy.deepcopy(cache))
    plain = DynamicCache()
    model(questions[0], past_key_values=plain)
    with pytest.raises(ValueError, match="layer 0 of the cache is a DynamicLayer"):
        ts.save_cache(plain, tmp_path / "plain.safetensors")


@pytest.mark.parametrize(("name", "options"), [("h2o", {}), ("adakv", SMALL), ("sepllm", {"separators": (5, 8, 11)})])
def test_a_prefix_saved_in_the_format_before_is_read(model, name, options, tmp_path):
    """There what was noted had other names and was told by query head, heads that hold the same were all written out, and the
    model's name was that of its weights alone."""
    path, inputs = tmp_path / "prefix.safetensors", text(33, 48)
    with ts.sieve(model, name, keep=12, **options):
        cache = ts.prefill(model, inputs)
    for layer in cache.layers:  # of pictures, though there are none, so that all is there that may be
        layer.is_visual = torch.zeros(2, 48, dtype=torch.bool)
        layer.shares = torch.rand(2, 2, layer.places.shape[2])
    ts.save_cache(cache, path)
    with safe_open(path, "pt") as f:
        meta = f.metadata()
        now = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (a safetensors handle)
    names = {"accumulated_attention": "carried", "token_ids": "named", "is_visual": "shown"}
    before = {}
    for key, x in now.items():
        layer, what = key.split(".", 1)
        if what in ("accumulated_attention", "shares"):  # of two query heads, whose mean it is
            x = torch.stack([x * 0.5, x * 1.5], 2).flatten(1, 2)
        if what in ("places", "token_ids"):
            x = x.expand(-1, 2, -1).contiguous()
        before[f"{layer}.{names.get(what, what)}"] = x
    save_file(before, path, metadata=meta | {"format": "tokensieve.cache.1", "model": meta["model"].split("/")[0]})
    back = ts.load_cache(path, model)
    for one, two in zip(back.layers, cache.layers, strict=True):
        for what in prefix.ASIDE:
            x, y = getattr(one, what), getattr(two, what)
            assert (x is None) == (y is None)
            assert x is None or torch.allclose(x, y)
    with pytest.raises(ValueError, match="filled by another model"):
        ts.load_cache(path, decoder(seed=1))
    question = torch.full((2, 5), 9)
    ids, mask = (torch.cat(x, 1) for x in zip(inputs.values(), (question, torch.ones_like(question)), strict=True))
    for layer in (*back.layers, *cache.layers):
        layer.is_visual = layer.shares = None
    with ts.sieve(model, name, keep=12, every=2, **options):
        got = model.generate(ids, attention_mask=mask, past_key_values=back, **GREEDY)
        assert torch.equal(got, model.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY))


@pytest.mark.parametrize("said", ["tokensieve.cache.3", None])
def test_a_file_of_another_format_is_no_saved_cache(model, said, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x", metadata=said and {"format": said})
    with pytest.raises(ValueError, match=rf"is not a saved cache \(format {said!r}\)"):
        ts.load_cache(tmp_path / "x", model)


FAMILIES = [
    ("Qwen2", {"use_sliding_window": False}),
    ("Qwen3", {}),
    ("Mistral", {"sliding_window": None}),
    ("Gemma2", {"sliding_window": 16, "attn_logit_softcapping": None, "query_pre_attn_scalar": 16}),
    ("Gemma3Text", {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention", "full_attention"]}),
]


@pytest.mark.parametrize(("family", "options"), FAMILIES, ids=[f for f, _ in FAMILIES])
@pytest.mark.parametrize("name", ["snapkv", "adakv", "h2o"])
def test_other_families(family, options, name):
    model = decoder("eager" if family == "Gemma2" else "sdpa", family=family.replace("3Text", "3Text"), **options)
    inputs = text(33, 48)
    plain = model.generate(**inputs, **GREEDY)
    with ts.sieve(model, name, keep=1.0):
        assert torch.equal(model.generate(**inputs, **GREEDY), plain)
    extra = {} if name == "h2o" else SMALL
    with ts.sieve(model, name, keep=12, every=2, **extra):
        out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        for row, n in enumerate((33, 48)):
            alone = {k: v[row : row + 1, -n:] for k, v in inputs.items()}
            assert torch.equal(model.generate(**alone, **GREEDY)[0, -6:], out.sequences[row, -6:])
    kinds = getattr(model.config, "layer_types", None) or ["full_attention"] * 3
    for kind, layer in zip(kinds, out.past_key_values.layers, strict=True):
        assert isinstance(layer, EvictedLayer) == (kind == "full_attention")
        assert layer.get_seq_length() == 53


def test_inside_a_vision_language_model():
    """FastV's tokens leave at layer 2, the cache's entries behind every layer; both as if they had been masked."""
    model, inputs = llava(), prompt((1, 1))
    plan = ts.Plan([ts.stage("fastv", keep=20), ts.stage("snapkv", keep=14, window=4, every=2)])
    with ts.sieve(model, plan) as s:
        out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        for row in range(2):
            real = inputs["attention_mask"][row].bool()
            alone = {k: v[row : row + 1, real] for k, v in inputs.items() if k != "pixel_values"}
            alone["pixel_values"] = inputs["pixel_values"][row : row + 1]
            assert torch.equal(model.generate(**alone, **GREEDY)[0, -6:], out.sequences[row, -6:])
        again = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, num_beams=2)
    assert s.last.stages[0].reduction.m == 20
    for layer in (*out.past_key_values.layers, *again.past_key_values.layers):
        assert layer.keys.shape[2] == 14 + 5 % 2
    stays = s.last.stages[0].reduction
    gone = torch.ones(2, 64, dtype=torch.bool).scatter_(1, stays.kept[::2], False)
    for row in range(2):
        visual = (inputs["input_ids"][row] == IMAGE).nonzero()[:, 0]
        left = set(visual[gone[row]].tolist())
        for i, layer in enumerate(again.past_key_values.layers):
            kept = set(layer.entries()[2][2 * row].flatten().tolist())
            assert not (kept & left) or i < 2
    with ts.sieve(model, "snapkv", keep=14, window=4):  # the language model alone
        out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    assert {layer.keys.shape[2] for layer in out.past_key_values.layers} == {14 + 5}


def test_nested_sieves_are_one_plan():
    model, inputs = llava(), prompt((1, 1))
    plan = ts.Plan([ts.stage("fastv", keep=20), ts.stage("snapkv", keep=14, window=4)])
    with ts.sieve(model, plan):
        one = model.generate(**inputs, **GREEDY)
    with ts.sieve(model, "fastv", keep=20), ts.sieve(model, "snapkv", keep=14, window=4):
        assert torch.equal(model.generate(**inputs, **GREEDY), one)


@eight_bits
def test_a_quantized_cache(model):
    inputs = text(33, 48)
    with ts.sieve(model, "snapkv", keep=12, every=2, **SMALL):
        plain = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
        cache = QuantizedCache("fp8", model.config)
        out = model.generate(
            **inputs, **GREEDY, return_dict_in_generate=True, output_logits=True, past_key_values=cache
        )
        model.generate(**inputs, **GREEDY, num_beams=3, past_key_values=QuantizedCache("fp8", model.config))
    torch.testing.assert_close(out.logits[0], plain.logits[0])
    torch.testing.assert_close(out.logits[1], plain.logits[1], atol=0.2, rtol=0.1)
    assert cache.layers[0]._quantized_keys[0].shape == (2, 2, 13, 16)
    assert ts.cache_bytes(cache) < 0.7 * ts.cache_bytes(plain.past_key_values)
    with (
        ts.sieve(model, "adakv", keep=12, **SMALL),
        pytest.raises(ValueError, match="need a cache that is not quantized"),
    ):
        model.generate(**inputs, **GREEDY, past_key_values=QuantizedCache("fp8", model.config))


def test_one_entry_is_not_all(model):
    with ts.sieve(model, "keydiff", keep=1):
        assert {layer.keys.shape[2] for layer in ts.prefill(model, text(48)).layers} == {1}


def test_some_layers_only(model):
    with ts.sieve(model, "snapkv", keep=12, layers=(1, -1), **SMALL) as s:
        cache = ts.prefill(model, text(48))
    assert [layer.keys.shape[2] for layer in cache.layers] == [48, 12, 12]
    assert s.last.layer_tokens == [48, 12, 12]


def test_exit_restores_the_model():
    model, inputs = decoder(), text(33, 48)
    before = model.generate(**inputs, **GREEDY)
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    with ts.sieve(model, "adakv", keep=12, **SMALL):
        model.generate(**inputs, **GREEDY)
    with pytest.raises(ValueError, match="always keeps 13"), ts.sieve(model, "adakv", keep=12, window=13):
        model.generate(**inputs, **GREEDY)
    assert model.config._attn_implementation == "sdpa"
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert torch.equal(model.generate(**inputs, **GREEDY), before)


def test_prompts_shorter_than_the_window(model):
    inputs = text(5, 6)
    plain = model.generate(**inputs, **GREEDY)
    with ts.sieve(model, "snapkv", keep=3, window=16, every=1), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert torch.equal(model.generate(**inputs, **GREEDY), plain)
    assert [str(w.message) for w in seen] == [
        "a prompt of 6 tokens is no longer than the 16 that snapkv always keeps; nothing leaves its cache"
    ]


REFUSED = [
    (
        "snapkv",
        {"keep": 7, "window": 8},
        r"keep=7 leaves row 0 7 of its 33 tokens; snapkv always keeps 8: pass keep=8 or more",
    ),
    ("adakv", {"keep": 0.2, "window": 8}, r"keep=0.2 leaves row 0 7 of its 33 tokens"),
    ("streamingllm", {"keep": 4}, r"always keeps 5"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_budgets_below_what_always_stays(model, name, options, message):
    with ts.sieve(model, name, **options), pytest.raises(ValueError, match=message):
        model.generate(**text(33, 48), **GREEDY)


def test_what_is_refused(model):
    with pytest.raises(ValueError, match="at site='cache' a budget is a number of tokens or a share"):
        ts.sieve(model, "snapkv", keep=ts.Keep(flops=0.5))
    with pytest.raises(ValueError, match="prefill=False and every=0: nothing would ever leave"):
        ts.sieve(model, "snapkv", keep=12, prefill=False)
    with pytest.raises(ValueError, match="every=3, prefill=True at site='handoff'; they go with site='cache'"):
        ts.stage("visionzip", keep=12, every=3)
    with pytest.raises(ValueError, match="every=-1; it must be a number of tokens"):
        ts.sieve(model, "snapkv", keep=12, every=-1)
    with pytest.raises(ValueError, match="positions='compact'; at site='cache'"):
        ts.sieve(model, "snapkv", keep=12, positions="compact")
    with (
        pytest.raises(ValueError, match="token 257 is past the model's max_position_embeddings=256"),
        ts.sieve(model, "tova", 9),
    ):
        model.generate(**text(250), max_new_tokens=9, do_sample=False)
    with pytest.raises(ValueError, match="layer 0 of the cache is a StaticLayer"), ts.sieve(model, "tova", keep=9):
        model.generate(**text(30), **GREEDY, cache_implementation="static")
    with pytest.raises(ValueError, match=r"layers=\(0,\): layer 0 does not see every token; those that do are \[1\]"):
        ts.sieve(
            decoder(
                family="Gemma3Text", layers=2, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
            ),
            "tova",
            keep=9,
            layers=0,
        )
    with pytest.raises(ValueError, match="its layers are of kind sliding_attention; none"):
        ts.sieve(decoder(family="Mistral", sliding_window=16), "tova", keep=9)
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    with pytest.raises(ValueError, match="the cache site takes decoder-only models"):
        ts.sieve(t5, "tova", keep=9)
    with ts.sieve(model, "tova", keep=9):
        cache = ts.prefill(model, text(30))
        with pytest.raises(ValueError, match="cannot crop 3 tokens; 0 have come since"):
            cache.crop(-3)
        with pytest.raises(ValueError, match=r"crop\(3\): to take tokens back, pass a number below 0"):
            cache.crop(3)
    with pytest.raises(ValueError, match="chunk=0; it must be a number of tokens"):
        ts.prefill(model, text(30), chunk=0)


IN_TURN = [
    ("h2o", {}, "h2o", {}),
    ("vatp", {"sinks": 3}, "vatp", {"sinks": 3}),
    ("snapkv", SMALL, "h2o", {}),
    ("tova", {}, "snapkv", SMALL),
    ("keydiff", {}, "sepllm", {"separators": (3, 8, 13)}),
    ("adakv", SMALL, "expected-attention", {}),
    ("zipcache", {}, "zipcache", {}),
]


@pytest.mark.parametrize(("first", "given", "then", "options"), IN_TURN, ids=[f"{a}-{c}" for a, _, c, _ in IN_TURN])
def test_stages_in_turn(model, first, given, then, options):
    """The second reads what the whole pass was, of what the first has left."""
    inputs = text(40, 48)

    def kept(*stages):
        with ts.sieve(model, ts.Plan([*stages])):
            model.generate(**inputs, **GREEDY, num_beams=2)
            return [held(ts.prefill(model, inputs), i, 2, 2) for i in range(3)]

    before, last = (ts.stage(n, keep=k, every=2, **o) for n, k, o in ((first, 20, given), (then, 12, options)))
    some, both, alone = kept(before), kept(before, last), kept(last)
    for i in range(3):
        for one, all_ in zip(both[i].flatten(0, 1), some[i].flatten(0, 1), strict=True):
            left, were = one[one >= 0].tolist(), all_[all_ >= 0].tolist()
            assert set(left) <= set(were)
            assert then == "zipcache" or len(left) == min(12, len(were))
    if first == then:
        assert all(torch.equal(a, b) for a, b in zip(both, alone, strict=True))


def test_a_layer_remembers_one_sum_of_attention(model):
    plan = ts.Plan([ts.stage("h2o", keep=20), ts.stage("a2sf", keep=12)])
    with pytest.raises(ValueError, match=r"h2o and a2sf read accumulated_attention at rates 1.0 and 0.99"):
        ts.sieve(model, plan)


def test_a_plan_of_the_cache_is_a_file(tmp_path):
    plan = ts.Plan([ts.stage("adakv", keep=0.25, every=64, layers=(0, 0.5)), ts.stage("fastv", keep=20)])
    assert [s.site for s in plan.stages] == ["prefill", "cache"]
    plan.save(tmp_path / "plan.json")
    assert ts.Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    "how", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": decoder(layers=1, seed=3)}], ids=list
)
def test_assisted_decoding(model, how):
    """It takes tokens back, and those of a prompt's pass can only be taken back where none of its entries has left."""
    inputs, more = text(48), {"max_new_tokens": 20, "do_sample": False}
    plain = model.generate(**inputs, **more)
    with ts.sieve(model, "snapkv", keep=500, every=1, **SMALL):
        assert torch.equal(model.generate(**inputs, **more, **how), plain)
    with ts.sieve(model, "snapkv", keep=20, **SMALL), pytest.raises(ValueError, match=r"an assistant.*decode without"):
        model.generate(**inputs, **more, **how)


def test_padding_behind_a_prompt_is_refused(model):
    inputs = text(48, 40)
    flipped = {k: v.flip(1) for k, v in inputs.items()}
    with (
        ts.sieve(model, "tova", keep=12),
        pytest.raises(ValueError, match="row 1 ends in padding; pad prompts on the left"),
    ):
        model(**flipped)
    with ts.sieve(model, "tova", keep=12):
        ts.prefill(model, text(48, 4), chunk=16)  # a row may be all padding so far


def test_two_threads_under_one_sieve_are_told(model):
    inputs, errors, inside = text(48), [], threading.Event()

    def other():
        try:
            model(**inputs)
        except RuntimeError as error:
            errors.append(str(error))
        inside.set()

    def wait(*_):
        if not inside.is_set():
            threading.Thread(target=other).start()
            assert inside.wait(60)

    with ts.sieve(model, "tova", keep=12):
        alone = model.generate(**inputs, **GREEDY)
        handle = model.model.layers[1].register_forward_pre_hook(wait)
        assert torch.equal(model.generate(**inputs, **GREEDY), alone)
        handle.remove()
    assert len(errors) == 1
    assert "running in another thread under the same sieve; let one at a time run it" in errors[0]
