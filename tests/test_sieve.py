"""sieve on a LLaVA: against the plain model, and against the plain model with the dropped tokens masked."""

import copy
import gc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

import tokensieve as ts
from tests.models import IMAGE, SIDE, llava, prompt
from tokensieve.core import method_registry
from tokensieve.core.method import Method
from tokensieve.sites.model import masks
from tokensieve.sites.visual.language_site import LanguageSite
from tokensieve.sites.visual.token_stream import Stream

NEW = 6
GREEDY = {"max_new_tokens": NEW, "do_sample": False}
N = SIDE * SIDE


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return llava(request.param)


@pytest.fixture(scope="module")
def sdpa():
    return llava()


def gone(sieve, inputs):
    """(B, L) bool: the prompt positions that left, from the trace."""
    visual = inputs["input_ids"] == IMAGE
    out = torch.zeros_like(visual)
    reduction = sieve.last.stages[-1].reduction
    for image, row in enumerate(sieve.last.rows):
        before = sum(r == row for r in sieve.last.rows[:image])
        places = visual[row].nonzero()[:, 0][before * reduction.n : (before + 1) * reduction.n]
        dropped = torch.ones(reduction.n, dtype=torch.bool)
        dropped[reduction.kept[image][reduction.mask[image]]] = False
        out[row, places[dropped]] = True
    return out


@torch.no_grad()
def oracle(model, inputs, dropped, ids, layer, positions=None):
    """Logits of the plain model over `ids`, with `dropped` prompt positions masked for every layer from `layer` on."""
    length = ids.shape[1]
    mask = torch.cat([inputs["attention_mask"], torch.ones(len(ids), length - dropped.shape[1], dtype=torch.long)], 1)
    pos = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0) if positions is None else positions
    hide = torch.nn.functional.pad(dropped, (0, length - dropped.shape[1]))
    causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None] & mask[:, None, None].bool()
    keep_self = torch.eye(length, dtype=torch.bool)[None, None]

    def hook(index):
        def pre(module, args, kwargs):
            allowed = causal & ~hide[:, None, None] if index >= layer else causal
            allowed = allowed | keep_self  # a fully masked row would be NaN; those rows are not compared
            bias = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
            return args, {**kwargs, "attention_mask": bias}

        return pre

    layers = model.model.language_model.layers
    handles = [block.register_forward_pre_hook(hook(i), with_kwargs=True) for i, block in enumerate(layers)]
    try:
        rest = {k: v for k, v in inputs.items() if k == "pixel_values"}
        return model(input_ids=ids, attention_mask=mask, position_ids=pos, use_cache=False, **rest).logits
    finally:
        for h in handles:
            h.remove()


SETTINGS = [
    ("fastervlm", {}, 0),
    ("divprune", {}, 0),
    ("fastv", {}, 2),
    ("divprune", {"site": "prefill", "layers": 1}, 1),
]


@pytest.mark.parametrize("images", [(1,), (1, 2), (2, 1)])
@pytest.mark.parametrize("how", ["greedy", "sample", "beam"])
def test_keeping_all_is_the_plain_model(model, images, how):
    inputs = prompt(images)
    extra = {
        "greedy": GREEDY,
        "sample": {"max_new_tokens": NEW, "do_sample": True},
        "beam": {**GREEDY, "num_beams": 3},
    }[how]

    def run():
        torch.manual_seed(0)
        return model.generate(**inputs, **extra)

    plain = run()
    for name, options in (("visionzip", {}), ("fastv", {}), ("tome", {})):
        with ts.sieve(model, name, keep=1.0, **options):
            assert torch.equal(run(), plain), name
    assert torch.equal(run(), plain)


@pytest.mark.parametrize(("name", "where", "layer"), SETTINGS)
@pytest.mark.parametrize("images", [(1, 1), (2, 1)])
def test_dropping_equals_masking(model, name, where, layer, images):
    inputs = prompt(images)
    with ts.sieve(model, name, keep=16, **where) as s, torch.no_grad():
        out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
        full = model(**inputs).logits
    assert full.shape[:2] == inputs["input_ids"].shape
    dropped = gone(s, inputs)
    assert dropped.sum() == sum(images) * (N - 16)
    expected = oracle(model, inputs, dropped, out.sequences, layer)
    length = inputs["input_ids"].shape[1]
    stays = ~dropped & inputs["attention_mask"].bool()
    torch.testing.assert_close(full[stays], expected[:, :length][stays], atol=2e-5, rtol=1e-4)
    got = torch.stack(out.logits, 1)
    torch.testing.assert_close(got, expected[:, length - 1 : -1], atol=5e-5, rtol=1e-4)
    assert torch.equal(got.argmax(-1), out.sequences[:, length:])
    for i, held in enumerate(out.past_key_values.layers):
        real = (inputs["attention_mask"].sum(1) - (dropped.sum(1) if i >= layer else 0)).max() + NEW - 1
        assert held.keys.shape[2] == (real if i >= layer else length + NEW - 1), i


@pytest.mark.parametrize(("name", "where"), [("visionzip", {}), ("sparsevlm", {}), ("tome", {}), ("fastv", {})])
def test_a_batch_is_its_rows(sdpa, name, where):
    inputs = prompt((1, 2))
    with ts.sieve(sdpa, name, keep=12, **where):
        batch = sdpa.generate(**inputs, **GREEDY)[:, -NEW:]
        for row, pixels in ((0, slice(0, 1)), (1, slice(1, 3))):
            real = inputs["attention_mask"][row].bool()
            alone = {
                "input_ids": inputs["input_ids"][row : row + 1, real],
                "attention_mask": inputs["attention_mask"][row : row + 1, real],
                "pixel_values": inputs["pixel_values"][pixels],
            }
            assert torch.equal(sdpa.generate(**alone, **GREEDY)[0, -NEW:], batch[row])


@pytest.mark.parametrize(("name", "where", "layer"), SETTINGS)
def test_a_second_turn_on_the_same_cache(sdpa, name, where, layer):
    inputs = prompt((1, 1))
    cache = DynamicCache(config=sdpa.config.text_config)
    more = torch.randint(6, 64, (2, 4), generator=torch.Generator().manual_seed(3))
    with ts.sieve(sdpa, name, keep=16, **where) as s:
        first = sdpa.generate(**inputs, **GREEDY, past_key_values=cache)
        dropped = gone(s, inputs)
        ids = torch.cat([first, more], 1)
        mask = torch.cat(
            [inputs["attention_mask"], torch.ones(2, ids.shape[1] - dropped.shape[1], dtype=torch.long)], 1
        )
        second = sdpa.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            **GREEDY,
            return_dict_in_generate=True,
            output_logits=True,
        )
    expected = oracle(sdpa, inputs, dropped, second.sequences, layer)
    torch.testing.assert_close(torch.stack(second.logits, 1), expected[:, ids.shape[1] - 1 : -1], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["fastervlm", "fastv"])
def test_a_second_image_in_a_second_turn(sdpa, name):
    inputs, more = prompt((1, 1)), prompt((1, 1), before=2, seed=9)
    more["input_ids"], more["attention_mask"] = more["input_ids"][:, 1:], more["attention_mask"][:, 1:] * 0 + 1
    more["input_ids"][more["input_ids"] == 0] = 7
    cache = DynamicCache(config=sdpa.config.text_config)
    with ts.sieve(sdpa, name, keep=16) as s, torch.no_grad():
        first = sdpa(
            **inputs, past_key_values=cache, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        )
        gone_first = gone(s, inputs)
        mask = torch.cat([inputs["attention_mask"], more["attention_mask"]], 1)
        second = sdpa(
            input_ids=more["input_ids"], pixel_values=more["pixel_values"], attention_mask=mask, past_key_values=cache,
            position_ids=(mask.cumsum(1) - 1)[:, first.logits.shape[1] :],
        ).logits  # fmt: skip
        gone_both = torch.cat([gone_first, gone(s, more)], 1)
    both = {
        "pixel_values": torch.stack([inputs["pixel_values"], more["pixel_values"]], 1).flatten(0, 1),
        "attention_mask": mask,
    }
    ids = torch.cat([inputs["input_ids"], more["input_ids"]], 1)
    expected = oracle(sdpa, both, gone_both, ids, 0 if name == "fastervlm" else 2)[:, first.logits.shape[1] :]
    stays = ~gone_both[:, first.logits.shape[1] :]
    torch.testing.assert_close(second[stays], expected[stays], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_compact_positions_are_those_of_a_prompt_without_the_dropped_tokens(sdpa, beams):
    # Some releases give the beams of a row with two images each other's.
    inputs = prompt((1, 2) if beams == 1 else (1, 1))
    with ts.sieve(sdpa, "fastervlm", keep=16, positions="compact") as s:
        got = sdpa.generate(**inputs, **GREEDY, num_beams=beams)
        dropped = gone(s, inputs) if beams == 1 else None
    if dropped is None:  # beams repeat the rows
        with ts.sieve(sdpa, "fastervlm", keep=16) as s, torch.no_grad():
            sdpa(**inputs)
            dropped = gone(s, inputs)
    # `generate` numbers positions by the attention mask, so masking the dropped tokens renumbers the rest.
    masked = {**inputs, "attention_mask": inputs["attention_mask"] * ~dropped}
    assert torch.equal(got, sdpa.generate(**masked, **GREEDY, num_beams=beams))


def test_compact_positions_inside_the_language_model_change_its_answers_only_there(sdpa):
    inputs = prompt((1, 1))
    logits = {}
    for policy in ("original", "compact"):
        with ts.sieve(sdpa, "fastv", keep=16, positions=policy):
            out = sdpa.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
            logits[policy] = torch.stack(out.logits)
    assert torch.isfinite(logits["compact"]).all()
    assert not torch.allclose(logits["original"], logits["compact"])


def test_beams_with_original_positions_keep_their_rows_apart(sdpa):
    inputs = prompt((1, 2))
    with ts.sieve(sdpa, "fastv", keep=16):
        both = sdpa.generate(**inputs, **GREEDY, num_beams=3)[:, -NEW:]
        real = inputs["attention_mask"][0].bool()
        alone = sdpa.generate(
            input_ids=inputs["input_ids"][:1, real], attention_mask=inputs["attention_mask"][:1, real],
            pixel_values=inputs["pixel_values"][:1], **GREEDY, num_beams=3,
        )  # fmt: skip
    assert torch.equal(alone[0, -NEW:], both[0])


def test_forward_without_mask_and_cache_does_not_split_the_sequence_at_gaps(sdpa):
    inputs = prompt((1,))
    bare = {k: v for k, v in inputs.items() if k != "attention_mask"}
    with ts.sieve(sdpa, "fastervlm", keep=16), torch.no_grad():
        a = sdpa(**bare, use_cache=False).logits
        b = sdpa(**inputs, use_cache=True).logits
    torch.testing.assert_close(a[:, -1], b[:, -1])


def test_images_may_share_one_budget(sdpa):
    inputs = prompt((2, 1))
    with ts.sieve(sdpa, "fastervlm", keep=ts.Keep(tokens=24, per="prompt")) as s:
        sdpa.generate(**inputs, **GREEDY)
    assert s.last.rows == [0, 1]
    assert s.last.stages[0].reduction.counts.tolist() == [24, 24]


@pytest.mark.parametrize("keep", [ts.Keep(average=40), ts.Keep(flops=0.6)])
def test_budgets_over_layers(sdpa, keep):
    inputs = prompt((1, 1))
    with ts.sieve(sdpa, "fastv", keep=keep) as s:
        sdpa.generate(**inputs, **GREEDY)
    tokens = s.last.layer_tokens
    assert tokens[:2] == [64, 64]
    assert tokens[2] == tokens[3] < 64
    if keep.average:
        assert sum(tokens) / 4 == keep.average
    with (
        pytest.raises(ValueError, match="cannot be met from layer 2"),
        ts.sieve(sdpa, "fastv", keep=ts.Keep(average=20)),
    ):
        sdpa.generate(**inputs, **GREEDY)


def test_stages_compose(sdpa):
    inputs = prompt((1, 1))
    plan = ts.Plan(
        [
            ts.stage("tome", keep=48),
            ts.stage("visionzip", keep=32),
            ts.stage("fastv", keep=16, layers=1),
            ts.stage("divprune", keep=8, site="prefill", layers=3),
        ]
    )
    with ts.sieve(sdpa, plan) as s:
        out = sdpa.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    assert s.last.layer_tokens == [32, 16, 16, 8]
    assert [t.reduction.m for t in s.last.stages] == [48, 32, 16, 8]
    assert all(t.reduction.n == N for t in s.last.stages)
    text = int(inputs["attention_mask"].sum(1).max()) - N
    assert [layer.keys.shape[2] for layer in out.past_key_values.layers] == [
        text + n + NEW - 1 for n in (32, 16, 16, 8)
    ]


def test_prompts_without_images_pass_through(sdpa):
    inputs = prompt((0, 0))
    plain = sdpa.generate(**inputs, **GREEDY)
    with ts.sieve(sdpa, "visionzip", keep=4) as s:
        assert torch.equal(sdpa.generate(**inputs, **GREEDY), plain)
    assert s.last is None


def test_the_model_is_restored_also_after_an_error(sdpa):
    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in sdpa.modules())

    inputs = prompt((1,))
    plain = sdpa.generate(**inputs, **GREEDY)
    before = hooks()

    def fail():
        with ts.sieve(sdpa, "fastv", keep=4):
            sdpa.generate(**inputs, **GREEDY)
            raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        fail()
    assert hooks() == before
    assert sdpa.config.text_config._attn_implementation == sdpa.config.vision_config._attn_implementation == "sdpa"
    assert torch.equal(sdpa.generate(**inputs, **GREEDY), plain)


@pytest.mark.parametrize(("name", "where", "layer"), SETTINGS)
def test_hidden_states_keep_their_shapes(sdpa, name, where, layer):
    inputs = prompt((1, 2))
    with torch.no_grad():
        plain = sdpa(**inputs, output_hidden_states=True).hidden_states
        with ts.sieve(sdpa, name, keep=16, **where) as s:
            fewer = sdpa(**inputs, output_hidden_states=True).hidden_states
    assert [h.shape for h in fewer] == [h.shape for h in plain]
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(fewer[layer][real], plain[layer][real])
    dropped = gone(s, inputs)
    torch.testing.assert_close(fewer[-2][dropped], plain[layer][dropped])


def test_nested_sieves_run_as_one_plan(sdpa):
    inputs = prompt((1,))
    with ts.sieve(sdpa, "fastv", keep=8) as outer:
        alone = sdpa.generate(**inputs, **GREEDY)
        with ts.sieve(sdpa, "divprune", keep=32) as inner:
            sdpa.generate(**inputs, **GREEDY)
        assert inner.last.layer_tokens == [32, 32, 8, 8]
        assert torch.equal(sdpa.generate(**inputs, **GREEDY), alone)
        assert outer.last.layer_tokens == [64, 64, 8, 8]
        with ts.sieve(sdpa, "tome", keep=32), pytest.raises(ValueError, match="one encoder stage"):
            ts.sieve(sdpa, "tome", keep=16).attach()
        assert torch.equal(sdpa.generate(**inputs, **GREEDY), alone)


def test_an_inner_sieve_that_cannot_be_attached_leaves_the_outer_one_as_it_was(sdpa, monkeypatch):
    inputs = prompt((1,))
    attach = LanguageSite.attach
    with ts.sieve(sdpa, "fastv", keep=8) as outer:
        alone = sdpa.generate(**inputs, **GREEDY)

        def fails_once(self):
            monkeypatch.setattr(LanguageSite, "attach", attach)
            raise MemoryError("on purpose")

        monkeypatch.setattr(LanguageSite, "attach", fails_once)
        inner = ts.sieve(sdpa, "divprune", keep=32)
        with pytest.raises(MemoryError, match="on purpose"):
            inner.attach()
        assert torch.equal(sdpa.generate(**inputs, **GREEDY), alone)
        assert outer.last.layer_tokens == [64, 64, 8, 8]
        with inner:
            sdpa.generate(**inputs, **GREEDY)
            assert inner.last.layer_tokens == [32, 32, 8, 8]


@pytest.mark.parametrize(("name", "where"), [("fastervlm", {}), ("fastv", {}), ("tome", {"site": "encoder"})])
def test_scores_are_computed_a_second_time_only_where_they_are_asked_for(sdpa, monkeypatch, name, where):
    calls = []
    cls = method_registry.method_class(name)
    ranked = cls.score
    monkeypatch.setattr(cls, "score", lambda self, s: calls.append(1) or ranked(self, s))
    for asked in (False, True):
        calls.clear()
        with ts.sieve(sdpa, name, keep=8, scores=asked, **where) as s, torch.no_grad():
            sdpa(**prompt((1,)))
        one = 0 if ranked is Method.score else 1
        assert len(calls) == one + asked
        assert (s.last.stages[0].score is not None) == (asked and bool(one))


@pytest.mark.parametrize("name", ["visionzip", "fastv", "dart", "mustdrop"])
def test_what_was_recorded_goes_with_the_pass(sdpa, name):
    """However the pass ends, and wherever in it: in the encoder, in a layer, or where it should."""

    def left(s):
        site = s._sites.sites[0]
        return [site.now, site.asked.prompt, *(w.seen for w in site.listener.watches), len(site.listener.remembered)]

    def fails(module, args):
        raise KeyError("on purpose")

    places = (sdpa.model.language_model.layers[1], sdpa.model.vision_tower, sdpa.model.language_model.layers[3].mlp)
    with ts.sieve(sdpa, name, keep=24) as s, torch.no_grad():
        expected = sdpa.generate(**prompt((1,)), **GREEDY)
        gc.collect()
        assert not any(left(s))
        for place in places:
            handle = place.register_forward_pre_hook(fails)
            with pytest.raises(KeyError, match="on purpose"):
                sdpa.generate(**prompt((1, 2)), **GREEDY)
            handle.remove()
            gc.collect()
            assert not any(left(s))
            assert torch.equal(sdpa.generate(**prompt((1,)), **GREEDY), expected)
            text = sdpa.generate(**prompt((0,)), **GREEDY)
    assert torch.equal(sdpa.generate(**prompt((0,)), **GREEDY), text)
    with ts.sieve(sdpa, "tome", keep=16, site="encoder") as s, torch.no_grad():
        sdpa(**prompt((1,)))
        assert not s._sites.sites[0].encoder.watch.seen
        assert s._sites.sites[0].encoder.now is None


def test_text_is_looked_for_only_where_a_method_reads_it(sdpa, monkeypatch):
    monkeypatch.setattr(Stream, "text", lambda self: pytest.fail("text was looked for"))
    for where in ({"site": "handoff"}, {"site": "prefill", "layers": 2}):
        with ts.sieve(sdpa, "divprune", keep=8, **where), torch.no_grad():
            sdpa(**prompt((1,)))


def forgets() -> bool:
    """Whether plain cache layers drop their entries at a reset; in some releases they stay, as zeros."""
    layer = DynamicLayer()
    layer.update(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4))
    layer.reset()
    return layer.get_seq_length() == 0


@pytest.mark.parametrize(("name", "where", "layer"), SETTINGS)
def test_a_cache_that_was_reset_begins_anew(sdpa, name, where, layer):
    if layer and not forgets():
        pytest.skip("the layers that nothing leaves are plain ones, and those of this release keep their length")
    cache, inputs, other = DynamicCache(config=sdpa.config.text_config), prompt((1, 1)), prompt((2,), seed=3)
    with ts.sieve(sdpa, name, keep=16, **where):
        sdpa.generate(**inputs, **GREEDY, past_key_values=cache)
        fresh = sdpa.generate(**other, **GREEDY)
        cache.reset()
        assert torch.equal(sdpa.generate(**other, **GREEDY, past_key_values=cache), fresh)
        text = prompt((0,), seed=4)
        plain = sdpa.generate(**text, **GREEDY)
        cache.reset()
        assert torch.equal(sdpa.generate(**text, **GREEDY, past_key_values=cache), plain)
    cache.reset()
    assert torch.equal(sdpa.generate(**text, **GREEDY, past_key_values=cache), plain)


def test_flash_attention_cannot_weigh_or_hide_keys_in_an_encoder():
    class Fewer(type(ts.get_method("uniform"))):
        name, adaptive = "fewer", True

    model = llava()
    model.config.vision_config._attn_implementation = "flash_attention_2"
    for method in ("tome", Fewer()):
        with pytest.raises(ValueError, match=r"attention mask, which flash_attention_2 does not take.*'sdpa'"):
            ts.sieve(model, method, keep=16, site="encoder")
    ts.sieve(model, "uniform", keep=16, site="encoder")


class NoWaiting(TorchDispatchMode):
    """Fails where a value is read back from the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name() not in ("aten::_local_scalar_dense", "aten::nonzero"), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("width", [6, 4])
def test_masks_of_layers_never_wait_for_the_device(width):
    """A mask of all six columns, or of the last four in a window; the prompt's last token is gone from the first row."""
    full = torch.ones(6, 6, dtype=torch.bool).tril()[None, None].expand(2, -1, -1, -1)
    columns = torch.tensor([[0, 2, 4], [1, 2, 5]])
    like = torch.zeros(2, 3, 1)
    with NoWaiting():
        got = masks.attention(full[..., -width:], columns, columns, 6, False, "sdpa", like)
        plain = masks.attention(None, columns, columns, 6, False, "sdpa", like)
        flat = masks.attention(torch.ones(2, width).long(), columns, columns, 6, False, "flash_attention_2", like)
    assert plain is None
    for b in range(2):
        for i, q in enumerate(columns[b].tolist()):
            for j, k in enumerate(columns[b].tolist()):
                assert bool(got[b, 0, i, j]) == (k <= q and k >= 6 - width)
                assert int(flat[b, j]) == int(k >= 6 - width)


def test_attach_and_detach_and_reuse(sdpa):
    inputs = prompt((1,))
    s = ts.sieve(sdpa, "fastervlm", keep=8)
    with s:
        one = sdpa.generate(**inputs, **GREEDY)
    s.attach()
    with pytest.raises(RuntimeError, match="attached already"):
        s.attach()
    assert torch.equal(sdpa.generate(**inputs, **GREEDY), one)
    s.detach()


def test_two_models_share_nothing(sdpa):
    other = copy.deepcopy(sdpa)
    inputs = prompt((1,))
    plain = other.generate(**inputs, **GREEDY)
    with ts.sieve(sdpa, "fastervlm", keep=8) as s:
        assert torch.equal(other.generate(**inputs, **GREEDY), plain)
        assert s.last is None


def test_seconds_are_counted_only_when_asked(sdpa):
    with ts.sieve(sdpa, "fastv", keep=8) as s:
        sdpa.generate(**prompt((1,)), **GREEDY)
        assert s.seconds == 0
        s.timed = True
        sdpa.generate(**prompt((1,)), **GREEDY)
        assert s.seconds > 0


def test_errors_name_the_way_out(sdpa):
    with pytest.raises(ValueError, match="keep is missing"):
        ts.sieve(sdpa, "fastervlm")
    with pytest.raises(ValueError, match="layers 0 to 3"):
        ts.sieve(sdpa, "fastv", keep=8, layers=4)
    with pytest.raises(ValueError, match="use site='handoff'"):
        ts.sieve(sdpa, "fastv", keep=8, layers=0)
    with pytest.raises(ValueError, match="did you mean"):
        ts.sieve(sdpa, "visonzip", keep=8)
    with pytest.raises(ValueError, match="fastervlm runs at"):
        ts.sieve(sdpa, "fastervlm", keep=8, site="prefill")
    with pytest.raises(ValueError, match="no recognisable vision part"):
        ts.sieve(sdpa.model.language_model, "fastervlm", keep=8)
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        ts.sieve(sdpa, "fastervlm", keep=-3)
    with pytest.raises(ValueError, match="original, compact"):
        ts.sieve(sdpa, "fastervlm", keep=3, positions="sideways")
    with pytest.raises(ValueError, match="not a transformers model"):
        ts.sieve(torch.nn.Linear(2, 2), "fastervlm", keep=3)
