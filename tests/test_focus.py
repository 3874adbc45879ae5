"""Layers that see part of what is there, and tokens that come back: against the plain model and loops over pairs."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import tokensieve as ts
from tests.models import IMAGE, SIDE, llava, prompt
from tokensieve.methods.multistage.lvlm_csp import Scatter
from tokensieve.methods.prefill.fastv import FastV
from tokensieve.parts import select
from tokensieve.planner import heads
from tokensieve.testing import features

NEW, N = 4, SIDE * SIDE
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
MIN = torch.finfo(torch.float32).min
CASES = [
    ("cmai", 0.25, {}),
    ("cmai", 7, {"layers": (1, 2)}),
    ("yopo", 9, {}),
    ("yopo", 25, {"off": (0, 3), "layers": (0, 2)}),
    ("yopo", N, {"off": (1, 2)}),
    ("corematching", 0.3, {"site": "focus"}),
    ("corematching", 17, {"site": "focus", "layers": (1, 3)}),
]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return llava(request.param)


def kinds(ids, mask):
    """By row: the positions of each image's tokens, and of text behind the first of them; both in loops."""
    out = []
    for row, real in zip(ids.tolist(), mask.tolist(), strict=True):
        visual = [i for i, token in enumerate(row) if token == IMAGE]
        images = [visual[i : i + N] for i in range(0, len(visual), N)]
        text = [i for i, token in enumerate(row) if token != IMAGE and real[i] and visual and i > visual[0]]
        out.append((images, text))
    return out


def focused(a, here, keep):
    """The pairs that CMAI hides in one row of attention ``(L, L)``: for each text token, all but the ``keep`` of an image."""
    images, text = here
    for place in images:
        for t in text:
            score = {i: sum(float(a[t, j]) * float(a[j, i]) for j in text if j <= t) for i in place}
            for i in sorted(place, key=lambda i: -score[i])[keep:]:
                yield t, i


def neighbours(here, count):
    """The pairs of visual tokens that YOPO hides."""
    images, _ = here
    side = int(count**0.5)
    reach = (side - 1 if side % 2 else side - 2) // 2
    every = [(m, n, i) for m, place in enumerate(images) for n, i in enumerate(place)]
    for m, n, i in every:
        for m2, n2, j in every:
            near = abs(n // SIDE - n2 // SIDE) <= reach and abs(n % SIDE - n2 % SIDE) <= reach
            if m != m2 or not near:
                yield i, j


@contextmanager
def defined(model, name, keep, where, ids, mask, prompted):
    """The plain model, over a whole sequence at once, changed as the method is defined."""
    rows, layers = kinds(ids, mask), where.get("layers", range(4))
    many = keep if isinstance(keep, int) else int(keep * N + 0.5)
    handles = []

    def before(module, args, kwargs):
        x, length = kwargs["hidden_states"], ids.shape[1]
        shape = (len(x), length, -1, module.head_dim)
        q, k = (p(x).view(shape).transpose(1, 2) for p in (module.q_proj, module.k_proj))
        q, k = apply_rotary_pos_emb(q, k, *kwargs["position_embeddings"])
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        seen = torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None, None].bool()
        seen = (seen | torch.eye(length, dtype=torch.bool)).expand(len(x), q.shape[1], -1, -1).clone()
        a = (q @ k.transpose(2, 3) * module.scaling).masked_fill(~seen, MIN).softmax(-1).mean(1)
        for b, here in enumerate(rows):
            pairs = focused(a[b], here, many) if name == "cmai" else neighbours(here, many) if many < N else ()
            for t, i in pairs:
                seen[b, :, t, i] = False
            visual = [i for place in here[0] for i in place]
            for head in where.get("off", ()):
                seen[b, head, :, visual] = False
                seen[b, head] |= torch.eye(length, dtype=torch.bool)
        return args, {**kwargs, "attention_mask": torch.zeros(seen.shape).masked_fill(~seen, MIN)}

    def rest(module, args):
        x = args[0].clone()
        for b, (images, _) in enumerate(rows):
            for i in (i for place in images for i in place):
                for head in where.get("off", ()):
                    x[b, i, head * 12 : head * 12 + 12] = 0
        return (x,)

    def fire(module, args):
        x = args[0].clone()
        held = many if isinstance(keep, int) else int(keep * x.shape[2] + 0.5)
        for b, (images, text) in enumerate(rows):
            often = [sum(float(x[b, t, f]) > 0 for t in text if t < prompted) for f in range(x.shape[2])]
            core = sorted(range(x.shape[2]), key=lambda f: (-often[f], f))[:held]
            if images:
                x[b, prompted:, [f for f in range(x.shape[2]) if f not in core]] = 0
        return (x,)

    for i in layers:
        layer = model.model.language_model.layers[i]
        if name == "corematching":
            handles.append(layer.mlp.down_proj.register_forward_pre_hook(fire))
        else:
            handles.append(layer.self_attn.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(rest))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def whole(model, inputs, sequences):
    """Logits of the plain model over prompt and answer at once."""
    length = sequences.shape[1] - inputs["input_ids"].shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, length), value=1)
    ids = (mask.cumsum(1) - 1).clamp(min=0)
    pixels = {k: v for k, v in inputs.items() if k == "pixel_values"}
    return model(input_ids=sequences, attention_mask=mask, position_ids=ids, use_cache=False, **pixels).logits, mask


@pytest.mark.parametrize(("name", "keep", "where"), CASES)
@pytest.mark.parametrize("images", [(1,), (2, 1), (1, 0)])
def test_what_is_seen_is_the_definition(model, name, keep, where, images):
    inputs = prompt(images)
    with ts.sieve(model, name, keep=keep, **where):
        out = model.generate(**inputs, **GREEDY)
    length = inputs["input_ids"].shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW), value=1)
    with defined(model, name, keep, where, out.sequences, mask, length):
        expected, _ = whole(model, inputs, out.sequences)
    plain, _ = whole(model, inputs, out.sequences)
    got = torch.stack(out.logits, 1)
    torch.testing.assert_close(got, expected[:, length - 1 : -1], atol=5e-5, rtol=1e-3)
    assert not torch.allclose(got, plain[:, length - 1 : -1], atol=1e-3)


@pytest.mark.parametrize("name", ["cmai", "yopo", "corematching"])
@pytest.mark.parametrize("keep", [1.0, 1000])
def test_all_is_the_plain_model(model, name, keep):
    inputs = prompt((1, 2))
    plain = model.generate(**inputs, **GREEDY)
    with ts.sieve(model, name, keep=keep, site="focus"):
        out = model.generate(**inputs, **GREEDY)
    assert torch.equal(out.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, plain.logits, strict=True))


@pytest.mark.parametrize("name", ["cmai", "yopo", "corematching"])
def test_one_is_not_all(model, name):
    inputs = prompt((1, 2))
    plain = model.generate(**inputs, **GREEDY)
    with ts.sieve(model, name, keep=1, site="focus"):
        out = model.generate(**inputs, **GREEDY)
    assert not torch.equal(out.logits[-1], plain.logits[-1])


@pytest.mark.parametrize(
    "keep", [1.0, ts.Keep(average=1.0), ts.Keep(share=1.0), N, N + 9, ts.Keep(average=N), ts.Keep(tokens=N)]
)
def test_where_all_stay_none_has_to_come_back(model, keep):
    inputs = prompt((1, 2))
    plain = model.generate(**inputs, **GREEDY)
    with ts.sieve(model, "lvlm-csp", keep=keep) as s:
        out = model.generate(**inputs, **GREEDY)
    assert s.last.layer_tokens == [N] * 4
    assert all(torch.equal(a, b) for a, b in zip(out.logits, plain.logits, strict=True))


@pytest.mark.parametrize(("name", "keep", "where"), [*CASES, ("lvlm-csp", 0.45, {})])
def test_rows_alone_and_the_model_afterwards(model, name, keep, where):
    inputs = prompt((1, 2, 1))
    plain = model.generate(**inputs, **GREEDY)
    config, hooks = model.config.text_config._attn_implementation, count_hooks(model)
    with ts.sieve(model, name, keep=keep, **where):
        both = model.generate(**inputs, **GREEDY)
        first = 0
        for row, images in enumerate((1, 2, 1)):
            real = inputs["attention_mask"][row].bool()
            alone = {k: v[row : row + 1, real] for k, v in inputs.items() if k != "pixel_values"}
            pixels = inputs["pixel_values"][first : first + images]
            out = model.generate(**alone, pixel_values=pixels, **GREEDY)
            first += images
            for a, b in zip(out.logits, both.logits, strict=True):
                torch.testing.assert_close(a[0], b[row], atol=2e-5, rtol=1e-3)
    assert (model.config.text_config._attn_implementation, count_hooks(model)) == (config, hooks)
    assert torch.equal(model.generate(**inputs, **GREEDY).sequences, plain.sequences)


def count_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize(("name", "where"), [("cmai", {}), ("corematching", {"site": "focus"})])
def test_beams_carry_what_they_saw(name, where):
    model, inputs = llava(), prompt((1, 1))
    with ts.sieve(model, name, keep=0.3, **where):
        both = model.generate(**inputs, max_new_tokens=NEW, num_beams=3)[:, -NEW:]
        real = inputs["attention_mask"][0].bool()
        alone = {k: v[:1, real] for k, v in inputs.items() if k != "pixel_values"}
        out = model.generate(**alone, pixel_values=inputs["pixel_values"][:1], max_new_tokens=NEW, num_beams=3)
    assert torch.equal(out[0, -NEW:], both[0])


def test_a_second_turn_goes_on_and_new_images_are_refused():
    model, inputs = llava(), prompt((1,))
    with ts.sieve(model, "cmai", keep=0.3), torch.no_grad():
        cache = model.generate(**inputs, **GREEDY).past_key_values
        more = torch.randint(6, 64, (1, 3), generator=torch.Generator().manual_seed(1))
        held = cache.get_seq_length()
        ids = torch.cat([inputs["input_ids"], torch.zeros(1, held - inputs["input_ids"].shape[1], dtype=torch.long)], 1)
        logits = model(input_ids=more, past_key_values=cache).logits
        assert logits.shape[:2] == (1, 3)
        assert cache.layers[0].seen.text.shape[1] == 6 + 2 + held - ids.shape[1] + NEW - 1 + 3
        with pytest.raises(ValueError, match="start with an empty cache"):
            model(**{**inputs, "attention_mask": None}, past_key_values=cache)


def test_two_stages_of_a_layer_do_not_disturb_each_other():
    model, inputs = llava(), prompt((1, 2))
    heads_off = ts.stage("yopo", 9, off=(1, 2))
    with ts.sieve(model, ts.Plan([heads_off, ts.stage("cmai", 10_000), ts.stage("corematching", 96, site="focus")])):
        out = model.generate(**inputs, **GREEDY)
    with ts.sieve(model, heads_off):
        alone = model.generate(**inputs, **GREEDY)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, alone.logits, strict=True))


def test_it_goes_together_with_tokens_that_leave():
    model, inputs = llava(), prompt((1, 2))
    plan = ts.Plan([ts.stage("divprune", 32), ts.stage("cmai", 0.5), ts.stage("yopo", 9, layers=(0,), off=(1,)),
                    ts.stage("fastv", 8)])  # fmt: skip
    assert ts.Plan.from_json(plan.to_json()) == plan
    with ts.sieve(model, plan) as s:
        out = model.generate(**inputs, **GREEDY)
    assert s.last.layer_tokens == [32, 32, 8, 8]
    with ts.sieve(model, ts.Plan([s for s in plan.stages if s.site != "focus"])):
        other = model.generate(**inputs, **GREEDY)
    assert not torch.allclose(out.logits[0], other.logits[0], atol=1e-3)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "llava_next", "qwen3_5"])
def test_other_architectures(name):
    from tokensieve.bench.compat.check import Case

    case = Case(name)
    plain = case.generate()
    for method in ("cmai", "yopo", "corematching"):
        with ts.sieve(case.model, method, keep=0.4, site="focus") as s:
            out = case.generate()
        assert out.shape == plain.shape
        assert s.last is not None
        with ts.sieve(case.model, method, keep=10_000, site="focus"):
            assert torch.equal(case.generate(), plain)
    assert torch.equal(case.generate(), plain)


def test_errors_name_the_way_out():
    with pytest.raises(ValueError, match="pass keep=64"):
        ts.stage("cmai", keep=ts.Keep(average=4))
    model = llava()
    with pytest.raises(ValueError, match="two stages"):
        ts.sieve(model, ts.Plan([ts.stage("cmai", 3), ts.stage("cmai", 4, layers=(1,))]))
    model.config.text_config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'sdpa' or 'eager'"):
        ts.sieve(model, "cmai", keep=3)
    with pytest.raises(ValueError, match="use 'original'"):
        ts.sieve(llava(), "lvlm-csp", keep=0.45, positions="compact")


# ---- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 8, 9, 24, 25, 48])
def test_windows(count):
    candidates = torch.ones(2, 48, dtype=torch.bool)
    candidates[1, 40:] = False
    got = select.near(candidates, (6, 8), count)
    for b in range(2):
        for i in range(48):
            near = {j for j in range(48) if candidates[b, i] and candidates[b, j]}
            reach = max(r for r in range(4) if (2 * r + 1) ** 2 <= count)
            near = {j for j in near if max(abs(i // 8 - j // 8), abs(i % 8 - j % 8)) <= reach}
            assert set(got[b, i].nonzero()[:, 0].tolist()) == near
    assert int(select.near(candidates, None, 5)[1].sum(1).max()) == 5


def test_the_score_of_cmai_is_the_focus_of_the_last_text_token():
    draw = torch.Generator().manual_seed(0)
    a, t = torch.rand(2, 3, 5, 20, generator=draw), torch.rand(2, 5, 5, generator=draw)
    real = torch.ones(2, 5, dtype=torch.bool)
    real[1, :2] = False
    s = ts.Signals(features=features(2, 20), text_attention=a, text_text=t, text_mask=real)
    method = ts.get_method("cmai")
    seen, score_of = method.focus(s, 6).text[:, -1], method.score(s)
    for b in range(2):
        score = [
            sum(float(t[b, 4, j]) * float(a[b, :, j, i].mean()) for j in range(5) if real[b, j]) for i in range(20)
        ]
        torch.testing.assert_close(score_of[b], torch.tensor(score))
        assert seen[b].nonzero()[:, 0].tolist() == sorted(sorted(range(20), key=lambda i: -score[i])[:6])


# ---- heads ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_heads_inactive_on_vision_are_those_of_least_attention_to_it():
    model, batches = llava("eager"), [prompt((1, 2)), prompt((1,), seed=1)]
    total, count = torch.zeros(4, 4), 0
    for inputs in batches:
        weights = model(**inputs, output_attentions=True).attentions
        for b, (images, text) in enumerate(kinds(inputs["input_ids"], inputs["attention_mask"])):
            visual = [i for place in images for i in place]
            for t in text:
                total += torch.stack([a[b, :, t, visual].sum(1) for a in weights])
                count += 1
    found = heads.activity(model, batches)
    torch.testing.assert_close(found, total / count, atol=1e-5, rtol=1e-4)
    made = heads.yopo(model, batches, keep=9, heads=0.5, skip=0.5)
    least = [tuple(sorted(row.argsort()[:2].tolist())) for row in total]
    stages = {s.layers: s for s in made.stages}
    assert [stages[(i,)].method.off for i in range(2)] == least[:2]
    assert (stages[(2,)].site, stages[(2,)].keep, len(stages)) == ("prefill", 1, 3)
    with ts.sieve(model, made) as s:
        model(**batches[0])
    assert s.last.layer_tokens == [N, N, 1, 1]
    with pytest.raises(ValueError, match="heads=1"):
        heads.yopo(model, batches, heads=1.0)
    with pytest.raises(ValueError, match="prompts with images"):
        heads.activity(model, [prompt((0,))])


# ---- tokens that come back ------------------------------------------------------------------------------------------

BACK = [
    ts.Plan([ts.stage("divprune", 10), ts.Stage(Scatter(), 1.0, layers=(2,))]),
    ts.Plan([ts.stage("divprune", 10), ts.Stage(Scatter(), 20, layers=(1,)), ts.stage("fastv", 5, layers=3)]),
    ts.Plan(
        [ts.Stage(FastV(), 9, layers=(1,)), ts.Stage(Scatter(), 1.0, layers=(2,)), ts.Stage(FastV(), 4, layers=(3,))]
    ),
]


@contextmanager
def coming_and_going(model, present):
    """The plain model over a whole sequence, where ``present[i]`` ``(B, L)`` bool are there in layer i: what is absent is
    seen by none, and its state stays as it is."""
    handles, states = [], {}

    def before(index):
        def hook(module, args, kwargs):
            here = present[index]
            length = here.shape[1]
            seen = torch.ones(length, length, dtype=torch.bool).tril() & here[:, None, None]
            seen = seen | torch.eye(length, dtype=torch.bool)
            states[index] = args[0]
            return args, {**kwargs, "attention_mask": torch.zeros(seen.shape).masked_fill(~seen, MIN)}

        return hook

    def after(index):
        def hook(module, args, output):
            return torch.where(present[index][..., None], output, states[index])

        return hook

    for i, layer in enumerate(model.model.language_model.layers):
        handles.append(layer.register_forward_pre_hook(before(i), with_kwargs=True))
        handles.append(layer.register_forward_hook(after(i)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("plan", [*BACK, "lvlm-csp"])
@pytest.mark.parametrize("images", [(1,), (2, 1)])
def test_tokens_come_back_as_they_left(model, plan, images):
    inputs = prompt(images)
    made = ts.sieve(model, plan) if isinstance(plan, ts.Plan) else ts.sieve(model, plan, keep=0.5)
    with made as s:
        out = model.generate(**inputs, **GREEDY)
        with torch.no_grad():
            full = model(**inputs, use_cache=False).logits
    length = inputs["input_ids"].shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW), value=1).bool()
    text = mask & (out.sequences != IMAGE)
    start = {0 if t.stage.site == "handoff" else model_layer(t.stage): t for t in s.last.stages}
    present, here = [], mask
    for i in range(4):
        if i in start:
            here = text.clone()
            for row, place, kept, real in zip(s.last.rows, s.last.places, start[i].reduction.kept, start[i].reduction.mask,
                                              strict=True):  # fmt: skip
                here[row, place[kept[real]]] = True
        present.append(here)
    with coming_and_going(model, present):
        expected, _ = whole(model, inputs, out.sequences)
    torch.testing.assert_close(torch.stack(out.logits, 1), expected[:, length - 1 : -1], atol=5e-5, rtol=1e-3)
    stays = mask[:, :length]
    torch.testing.assert_close(full[stays], expected[:, :length][stays], atol=5e-5, rtol=1e-3)
    for i, (held, there) in enumerate(zip(out.past_key_values.layers, present, strict=True)):
        if all(bool(p.equal(mask)) for p in present[: i + 1]):
            continue
        for row in range(len(there)):  # where all are back, the places are the original ones
            got = [c for c in held.columns[row].tolist() if c >= 0 and mask[row, c]]
            assert got == there[row, :-1].nonzero()[:, 0].tolist()


def model_layer(stage):
    layer = stage.layer
    return round(layer * 4) if isinstance(layer, float) else layer


def test_more_tokens_come_back_in_models_with_positions_of_their_own():
    from tokensieve.bench.compat.check import Case

    for name in ("qwen2_5_vl", "qwen3_vl", "gemma3"):
        case = Case(name)
        with ts.sieve(case.model, BACK[0]) as s:
            case.generate()
        assert s.last.layer_tokens[2:] == [float(s.last.places.ge(0).sum(1).float().mean())] * 2


def test_the_cost_knows_what_comes_back():
    model = llava()
    for plan in BACK:
        with ts.sieve(model, plan) as s, torch.no_grad():
            model(**prompt((1,)))
        assert ts.cost(model, plan, tokens=N).mean == sum(s.last.layer_tokens) / 4


def test_the_cost_counts_pairs_in_loops():
    model, text = llava(), 7
    plan = ts.Plan([ts.stage("yopo", 9, layers=(1, 2), off=(0, 1)), ts.stage("cmai", 16, layers=(2,))])
    found = ts.cost(model, plan, tokens=N, text=text)
    assert found.flops == found.full_flops
    width, head, inner = 48, 12, 96
    total = 0
    for layer in range(4):
        for token in range(N + text):
            visual = token < N
            heads = [h for h in range(4) if not (visual and layer in (1, 2) and h < 2)]
            groups = {h // 2 for h in heads}
            total += 2 * width * head * 2 * len(heads) + 2 * width * head * 2 * len(groups) + 2 * width * inner * 3
            for h in range(4):
                resting = layer in (1, 2) and h < 2
                if visual:
                    window = [abs(token // SIDE - j // SIDE) < 2 and abs(token % SIDE - j % SIDE) < 2 for j in range(N)]
                    seen = 0 if resting else text + (sum(window) if layer in (1, 2) else N)
                else:
                    seen = text + (0 if resting else 16 if layer == 2 else N)
                total += 4 * head * seen
    assert found.seen_flops == pytest.approx(total)
