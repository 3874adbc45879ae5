"""Stages that rank by the attention of their own layer, before any token has left: PyramidDrop, and VScan's second stage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import tokensieve as ts
from tests.models import IMAGE, SIDE, llava, prompt
from tests.test_parity_vlm import best
from tokensieve.bench.compat.check import Case
from tokensieve.core.needs import LastAttention, OwnLastAttention
from tokensieve.core.plan import plan
from tokensieve.sites.model import taps
from tokensieve.sites.visual import layer_signals

N = SIDE * SIDE
ROWS = {"own": OwnLastAttention, "before": LastAttention}


class Spy(ts.Method):
    """Keeps what it was given of the last prompt token's attention."""

    name = "spy"
    site = "prefill"
    sites = ("prefill",)

    def __init__(self, *rows):
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "seen", [])

    @property
    def needs(self):
        return tuple(ROWS[r] for r in self.rows)

    def score(self, s):
        self.seen.append(s.last_attention)
        return s.last_attention.mean(1)


@pytest.fixture(scope="module")
def model():
    return llava(layers=8)


# ---- against plain loops over the model's own modules


def own_attention(lm, layer, hidden, at):
    """The last token's attention in a layer, from its norm, projections and rotation, head by head: (tokens,)."""
    attn, x = layer.self_attn, layer.input_layernorm(hidden)
    heads = [m(x).view(x.shape[1], -1, attn.head_dim).transpose(0, 1)[None] for m in (attn.q_proj, attn.k_proj)]
    q, k = apply_rotary_pos_emb(*heads, *lm.rotary_emb(x, at[None]))
    out = np.zeros(x.shape[1])
    for h in range(q.shape[1]):
        key = k[0, h // (q.shape[1] // k.shape[1])].double().numpy()
        logit = key @ q[0, h, -1].double().numpy() / math.sqrt(attn.head_dim)
        weight = np.exp(logit - logit.max())
        out += weight / weight.sum() / q.shape[1]
    return out


@torch.no_grad()
def pruned(model, inputs, counts, compact=False):
    """One prompt through the layers; in front of layer i only counts[i] visual tokens stay. Kept tokens by stage, last logits."""
    lm, seen = model.model.language_model, []
    handle = lm.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(**inputs)
    handle.remove()
    hidden, token = seen[0], torch.arange(seen[0].shape[1])
    at, visual, kept = token, inputs["input_ids"][0] == IMAGE, []
    first = int(visual.nonzero()[0])
    for i, layer in enumerate(lm.layers):
        if i in counts:
            attention = own_attention(lm, layer, hidden, at)
            chosen = best(attention, counts[i], visual.nonzero()[:, 0].tolist())
            stay = torch.tensor([not v or j in chosen for j, v in enumerate(visual.tolist())])
            hidden, token, at, visual = hidden[:, stay], token[stay], at[stay], visual[stay]
            at = torch.arange(len(at)) if compact else at
            kept.append((token[visual] - first).tolist())
        hidden = layer(hidden, position_embeddings=lm.rotary_emb(hidden, at[None]), attention_mask=None)
    return kept, model.lm_head(lm.norm(hidden))[0, -1]


def stages_of(s, image=0):
    return [
        t.reduction.kept[image][t.reduction.mask[image]].tolist() for t in s.last.stages if t.stage.site == "prefill"
    ]


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("seed", range(3))
def test_pyramiddrop_is_its_published_loop(model, seed, positions):
    """Three stages, each by the queries and keys that its own layer makes of what is still there."""
    inputs = prompt((1,), seed=seed)
    with ts.sieve(model, plan("pyramiddrop", 0.46875, positions=positions)) as s, torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    kept, want = pruned(model, inputs, {2: 32, 4: 16, 6: 8}, positions == "compact")
    assert stages_of(s) == kept
    torch.testing.assert_close(logits, want, rtol=1e-4, atol=1e-4)


def test_vscan_prunes_by_its_own_layer(model):
    """The second stage alone, over the tokens that a first one left, against the same loop."""
    inputs, whole = prompt((1,)), plan("vscan", 16)
    late = whole.stages[1]
    with ts.sieve(model, ts.Plan([ts.stage(late.method, 9, layers=(0.5,))])) as s, torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    kept, want = pruned(model, inputs, {4: 9})
    assert stages_of(s) == kept
    torch.testing.assert_close(logits, want, rtol=1e-4, atol=1e-4)
    assert late.layers == (0.5,)


# ---- what the site reads


@pytest.mark.parametrize("rows", ["own", "before"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "internvl"])
def test_rows_are_those_of_the_layer_that_was_asked_for(name, rows):
    """Against the whole attention map, with left padding and several images; each row of the batch by its last token."""
    case = Case(name, "eager")
    layer = 2
    with torch.no_grad():
        maps = case.model(**case.inputs, output_attentions=True).attentions[layer - (rows == "before")]
    case.model.set_attn_implementation("sdpa")
    spy = Spy(rows)
    with ts.sieve(case.model, ts.Stage(spy, 1.0, layers=(layer,)), scores=True) as s, torch.no_grad():
        case.model(**case.inputs)
    for image, row in enumerate(s.last.rows):
        place = s.last.places[image]
        want = maps[row, :, -1, place[place >= 0]]
        torch.testing.assert_close(spy.seen[-1][image][:, place >= 0], want, rtol=1e-3, atol=1e-5)


def test_a_method_may_read_both_layers(model):
    class Both(Spy):
        def score(self, s):
            self.seen.append((s.last_attention, s.text_attention))
            return s.last_attention.mean(1)

        @property
        def needs(self):
            from tokensieve.core.needs import TextAttention

            return (OwnLastAttention, TextAttention)

    eager = llava("eager", layers=8)
    inputs, spy = prompt((1, 1)), Both()
    with torch.no_grad():
        maps = eager(**inputs, output_attentions=True).attentions
    with ts.sieve(model, ts.Stage(spy, 20, layers=(3,))), torch.no_grad():
        model(**inputs)
    own, before = spy.seen[0]
    for row in range(2):
        place = (inputs["input_ids"][row] == IMAGE).nonzero()[:, 0]
        torch.testing.assert_close(own[row], maps[3][row, :, -1, place], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(before[row][:, -1], maps[2][row, :, -1, place], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "stages",
    [[], [("fastv", 16)], [("fastervlm", 20)], [("fastervlm", 40), ("snapkv", 40)], [("fastervlm", 40), ("adakv", 40)]],
)
def test_a_second_image_is_ranked_over_all_that_is_cached(stages):
    """In a second turn, what is read ahead is what the layer's kernel is then called with, whatever has left of the first."""
    model, first, more = llava(), prompt((1,)), prompt((1,), before=2, seed=9)
    cache = DynamicCache(config=model.config.text_config)
    ids = torch.cat([first["input_ids"], more["input_ids"]], 1)
    spy, calls = Spy("own"), []
    plans = [ts.stage(name, keep) for name, keep in stages]
    undo = taps.attach(model.model.language_model.layers[3].self_attn, observe=calls.append)
    with torch.no_grad(), ts.sieve(model, ts.Plan([*plans, ts.Stage(spy, 1.0, layers=(3,))]), scores=True) as s:
        model(**first, past_key_values=cache)
        model(
            input_ids=more["input_ids"], pixel_values=more["pixel_values"], past_key_values=cache,
            attention_mask=torch.ones_like(ids), position_ids=torch.arange(ids.shape[1])[None, first["input_ids"].shape[1] :],
        )  # fmt: skip
        kept = s.last.stages[-1].reduction.kept[0]
    undo()
    call = calls[-1]
    past = call.key.shape[2] - call.query.shape[2]
    last = torch.tensor([[call.query.shape[2] - 1]])
    row = layer_signals.looking(call, last, past, call.scale)[0, :, 0]
    paged = bool(plans) and plans[-1].method.unit == "entry"  # these entries are in no tensor of keys
    assert (past == 0) is paged
    start = past + int((more["input_ids"][0] == IMAGE).nonzero()[0])
    assert len(kept) == (stages[0][1] if stages else N)
    torch.testing.assert_close(spy.seen[-1][0], row[:, start : start + len(kept)])


def test_the_cache_is_filled_once(model):
    """Reading ahead of a layer leaves its cache, and all hooks, as they were: generation is that of the plain model."""
    inputs = prompt((1, 2))
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    plain = model.generate(**inputs, **options)
    with ts.sieve(model, plan("pyramiddrop", 1.0)):
        sieved = model.generate(**inputs, **options)
    assert torch.equal(plain.sequences, sieved.sequences)
    for one, other in zip(plain.past_key_values.layers, sieved.past_key_values.layers, strict=True):
        assert one.keys.shape == other.keys.shape
    with ts.sieve(model, "pyramiddrop", keep=0.5):
        held = model.generate(**prompt((1,)), **options).past_key_values
    assert [layer.keys.shape[2] for layer in held.layers] == [N + 14 + n - N for n in (64, 64, 35, 35, 19, 19, 10, 10)]
    assert not model.model.language_model.layers[2].self_attn.__dict__.get("_tokensieve_taps")


def test_no_attention_map_is_made_to_read_a_row(model):
    """The largest tensor that ranking makes is a row over the tokens, or what a projection gives."""
    from tokensieve.testing import Largest

    inputs = prompt((6,))
    spy = Spy("own")
    with ts.sieve(model, ts.Stage(spy, 0.5, layers=(3,))) as s, torch.no_grad():
        coming = s._sites.sites[0].steps.coming[3]
        run, largest = coming.call, []

        def watched(hidden, kwargs):
            with Largest() as seen:
                out = run(hidden, kwargs)
            largest.append(seen.elements)
            return out

        coming.call = watched
        model(**inputs)
    tokens = inputs["input_ids"].shape[1]
    assert largest
    assert largest[0] < tokens * tokens / 2
