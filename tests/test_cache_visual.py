"""The cache of a vision-language model: which entries are visual, and budgets that count those alone."""

from dataclasses import dataclass

import pytest
import torch
from transformers import DynamicCache

import tokensieve as ts
from tests.models import IMAGE, llava, prompt
from tokensieve.core.method_registry import get_method
from tokensieve.core.needs import Visual, VisualShare
from tokensieve.core.plan import plan
from tokensieve.sites.cache.evicted_layer import EvictedLayer
from tokensieve.sites.model import taps

GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def model():
    return llava()


def visual(layer, ids):
    """Of each entry of the first head, whether it stands for a visual token, and whether it is padding: (B, N)."""
    columns = layer.entries()[2][:, 0]
    known = torch.nn.functional.pad(ids, (0, int(columns.max()) + 1 - ids.shape[1]))
    return (known.gather(1, columns.clamp(min=0)) == IMAGE) & (columns >= 0), columns < 0


@torch.no_grad()
def walk(model, inputs, new):
    """Run the prompt and decode by hand; the cache behind every step."""
    cache = DynamicCache()
    given, mask = dict(inputs), inputs["attention_mask"]
    for step in range(new):
        out = model(**{**given, "attention_mask": mask}, past_key_values=cache)
        yield step, cache
        given = {"input_ids": out.logits[:, -1:].argmax(-1)}
        mask = torch.cat([mask, torch.ones_like(given["input_ids"])], 1)


def test_the_cache_of_mustdrop_never_grows(model):
    """Prompts of one and two images: a budget for each image beside the prompt's text, kept at every decoded token."""
    inputs = prompt((1, 2))
    shown = inputs["input_ids"] == IMAGE
    text = (inputs["attention_mask"].bool() & ~shown).sum(1)
    with ts.sieve(model, "mustdrop-c", keep=10, every=1):
        for step, cache in walk(model, inputs, 9):
            for layer in cache.layers:
                assert isinstance(layer, EvictedLayer)
                seen, padding = visual(layer, inputs["input_ids"])
                held = (~padding).sum(1)
                assert seen.sum(1).tolist() == [10 - step, 20 - step]
                assert (held - seen.sum(1)).tolist() == (text + step).tolist()


def test_at_least_one_visual_entry_stays(model):
    inputs = prompt((1,))
    with ts.sieve(model, "mustdrop-c", keep=3, every=1):
        counts = [int(visual(c.layers[0], inputs["input_ids"])[0].sum()) for _, c in walk(model, inputs, 7)]
    assert counts == [3, 2, 1, 1, 1, 1, 1]


def test_the_least_attended_visual_entries_leave(model):
    inputs, calls = prompt((1,)), []
    undo = taps.attach(model.model.language_model.layers[0].self_attn, observe=calls.append)
    with torch.no_grad():
        model(**inputs)
    undo()
    (call,) = calls
    k = call.key[0].repeat_interleave(2, 0)
    rows = call.query[0, :, -8:] @ k.transpose(1, 2) * call.scale
    n = rows.shape[2]
    allowed = torch.arange(n) <= torch.arange(n - 8, n)[:, None]
    weight = rows.masked_fill(~allowed, -torch.inf).softmax(-1).mean((0, 1))
    place = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    want = place[weight[place].topk(12).indices]
    with ts.sieve(model, "mustdrop-c", keep=12), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    layer = cache.layers[0]
    seen, _ = visual(layer, inputs["input_ids"])
    assert set(layer.entries()[2][0, 0][seen[0]].tolist()) == set(want.tolist())


def test_a_text_prompt_loses_nothing(model):
    inputs = prompt((0,), before=12)
    plain = model.generate(**inputs, **GREEDY)
    with ts.sieve(model, "mustdrop-c", keep=2, every=1):
        assert torch.equal(model.generate(**inputs, **GREEDY), plain)


def test_a_second_turn_knows_the_images_of_the_first(model):
    inputs, more = prompt((1,)), torch.randint(6, 64, (1, 5), generator=torch.Generator().manual_seed(3))
    with ts.sieve(model, "mustdrop-c", keep=20, every=1), torch.no_grad():
        cache = [c for _, c in walk(model, inputs, 4)][-1]
        mask = torch.ones(1, int(cache.get_seq_length()) + 5, dtype=torch.long)
        model(input_ids=more, attention_mask=mask, past_key_values=cache)
    for layer in cache.layers:
        # What the first turn decoded is text of the prompt now, and has room of its own.
        assert int(visual(layer, inputs["input_ids"])[0].sum()) == 17


def test_a_cache_filled_elsewhere_is_refused(model):
    inputs = prompt((1,))
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    mask = torch.ones(1, int(cache.get_seq_length()) + 1, dtype=torch.long)
    with (
        ts.sieve(model, "mustdrop-c", keep=4, every=1),
        torch.no_grad(),
        pytest.raises(ValueError, match="which is not known of all; fill the cache under this sieve"),
    ):
        model(input_ids=torch.tensor([[7]]), attention_mask=mask, past_key_values=cache)


def test_mustdrop_in_all_its_stages(model):
    """Early layers hold no more of the image than the mean that was asked for; beams and batches go through."""
    inputs = prompt((1, 1))
    text = int((inputs["attention_mask"].bool() & (inputs["input_ids"] != IMAGE)).sum(1).max())
    made = plan("mustdrop", 16)
    with ts.sieve(model, made):
        for _, cache in walk(model, inputs, 5):
            assert all(layer.places.shape[2] + layer.columns.shape[1] <= 16 + text + 1 for layer in cache.layers)
        assert model.generate(**inputs, **GREEDY, num_beams=3).shape[1] == inputs["input_ids"].shape[1] + 6
    alone = {k: v[1:] for k, v in inputs.items()}
    with ts.sieve(model, made):
        both, one = model.generate(**inputs, **GREEDY), model.generate(**alone, **GREEDY)
    assert torch.equal(both[1:, inputs["input_ids"].shape[1] :], one[:, alone["input_ids"].shape[1] :])
    with ts.sieve(model, plan("mustdrop", 1.0)):
        whole = model.generate(**inputs, **GREEDY)
    assert torch.equal(whole, model.generate(**inputs, **GREEDY))


@pytest.mark.parametrize("chunked", [False, True])
def test_what_each_token_looked_at_is_told(model, chunked):
    """The visual share of every entry, against whole attention maps; with padding, and in two passes."""
    inputs, calls, given = prompt((1, 1)), [], []
    attention = model.model.language_model.layers[1].self_attn
    undo = taps.attach(attention, observe=calls.append)
    with torch.no_grad():
        model(**inputs)
    undo()
    (call,) = calls
    real, shown = inputs["attention_mask"].bool(), inputs["input_ids"] == IMAGE
    n = real.shape[1]
    k = call.key.repeat_interleave(2, 1)
    allowed = torch.ones(n, n).tril().bool() & real[:, None, None]
    rows = (call.query @ k.transpose(2, 3) * call.scale).masked_fill(~allowed, -1e30).softmax(-1)
    want = (rows * shown[:, None, None]).sum(3).unflatten(1, (2, -1)).mean(2)

    @dataclass(frozen=True)
    class Told(ts.Method):
        name = "told"
        site, sites, unit = "cache", ("cache",), "token"

        @property
        def needs(self):
            return (VisualShare, Visual)

        def score(self, s):
            given.append(s)
            return torch.arange(s.n).expand(s.batch, -1).float()

    with ts.sieve(model, ts.Stage(Told(), 0.5, layers=(1,), prefill=not chunked, every=int(chunked))), torch.no_grad():
        out = model(**inputs)
        if chunked:
            mask = torch.cat([real.long(), torch.ones(2, 1, dtype=torch.long)], 1)
            model(input_ids=torch.tensor([[7], [8]]), attention_mask=mask, past_key_values=out.past_key_values)
    (s,) = given
    for b in range(2):
        torch.testing.assert_close(s.visual_share[b][:, :n][:, real[b]], want[b][:, real[b]], rtol=1e-4, atol=1e-5)
        assert torch.equal(s.visual[b, :n][real[b]] > 0, shown[b][real[b]])
        assert not bool(s.visual[b, n:].any())


def test_vasparse_ranks_as_defined():
    g = torch.Generator().manual_seed(0)
    window, share = torch.rand(1, 2, 1, 9, generator=g).softmax(-1), torch.rand(1, 2, 9, generator=g)
    visual = torch.tensor([[0, 1, 1, 0, 1, 0, 0, 1, 0.0]])
    x = torch.randn(1, 9, 4, generator=g)
    s = ts.Signals(x, window_attention=window, visual_share=share, visual=visual)
    a, looked = window[0, :, 0].mean(0).tolist(), share[0].mean(0).exp()
    most = max(p for p, v in zip(a, visual[0].tolist(), strict=True) if v)
    capped = [p if v else min(p, most) for p, v in zip(a, visual[0].tolist(), strict=True)]
    want = [p**2 + 0.3 * float(q / looked.sum()) for p, q in zip(capped, looked, strict=True)]
    torch.testing.assert_close(get_method("vasparse", weight=0.3).score(s)[0], torch.tensor(want))
    assert (
        ts.reduce(x, get_method("vasparse"), 3, window_attention=window, visual_share=share, visual=visual).kept[0, -1]
        == 8
    )
