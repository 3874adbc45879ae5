"""Published cache methods against plain loops, on arrays and in a model."""

from __future__ import annotations

import pytest
import torch

import tokensieve as ts
from tests.models import decoder, text
from tests.test_cache import masked, steps
from tests.test_parity_cache import SIZES, W, attention, best, kept, places
from tokensieve.methods.cache.sepllm import separators
from tokensieve.parts import score
from tokensieve.parts.budget import across_layers
from tokensieve.testing import features

# ---- A2SF


@pytest.mark.parametrize(("b", "n", "keep"), SIZES)
def test_a2sf(b, n, keep):
    sums = 9 * attention(b, 3, n)
    got = ts.reduce(features(b, n), "a2sf", keep, accumulated_attention=sums)
    assert kept(got) == kept(ts.reduce(features(b, n), "h2o", keep, accumulated_attention=sums))


def test_a2sf_in_a_model():
    """The forgetting sum over the plain model's maps; a factor of 1 is h2o; the smaller it is, the later what is kept."""
    inputs, means = text(33, 48), []
    with torch.no_grad():
        maps = decoder("eager")(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0),
                                output_attentions=True).attentions[1]  # fmt: skip
    for factor in (1.0, 0.9, 0.5):
        got = places("a2sf", inputs, 14, factor=factor)
        for b, n in enumerate((33, 48)):
            for g in range(2):
                total = torch.zeros(n, dtype=torch.float64)
                for q in range(n):
                    total += factor ** (n - 1 - q) * maps[b, 2 * g : 2 * g + 2, q - n, -n:].double().sum(0)
                assert got[b][g] == sorted(best(total, 7, range(n - 7))) + list(range(n - 7, n))
        means.append(sum(c for row in got for head in row for c in head))
    assert places("h2o", inputs, 14) == places("a2sf", inputs, 14, factor=1.0)
    assert means[0] < means[1] < means[2]


def test_a2sf_goes_on_from_pass_to_pass():
    inputs = text(40, 40)
    with ts.sieve(decoder(), "a2sf", keep=38, factor=0.8) as s:
        cache = ts.prefill(s.model, {k: v[:, :38] for k, v in inputs.items()}, chunk=5)
        held = [layer.accumulated_attention.clone() for layer in cache.layers]
    with ts.sieve(decoder(), "a2sf", keep=38, factor=0.8) as s:
        whole = ts.prefill(s.model, {k: v[:, :38] for k, v in inputs.items()})
    for one, layer in zip(held, whole.layers, strict=True):
        torch.testing.assert_close(one, layer.accumulated_attention, atol=1e-5, rtol=1e-4)


# ---- VATP and CAOTE over any scorer


@pytest.mark.parametrize(("b", "n", "keep"), SIZES)
@pytest.mark.parametrize("sinks", [0, 2, 20])
def test_vatp(b, n, keep, sinks):
    sums, values = 9 * attention(b, 3, n), features(b, n, seed=8)
    made = ts.get_method("vatp", sinks=sinks)
    got = ts.reduce(features(b, n), made, keep, accumulated_attention=sums, values=values)
    recent = min(int(keep * 0.5 + 0.5), keep - 1)
    for i in range(b):
        stay = list(range(n - recent, n))
        stay += [j for j in range(min(sinks, keep - recent)) if j not in stay]
        rank = [float(sums[i, :, j].mean() * values[i, j].abs().sum()) for j in range(n)]
        assert kept(got)[i] == sorted(stay + best(rank, keep - len(stay), [j for j in range(n) if j not in stay]))


def error(a, values):
    """By how much the output of attention ``a`` changes when each entry alone is lost: measured."""
    out = []
    for j in range(len(a)):
        rest = torch.cat([a[:j], a[j + 1 :]])
        others = torch.cat([values[:j], values[j + 1 :]])
        out.append(float(torch.linalg.vector_norm((rest / rest.sum()) @ others - a @ values)) if len(a) > 1 else 0.0)
    return torch.tensor(out, dtype=torch.float64)


def test_the_predicted_error_is_the_measured_one():
    rows, values = attention(3, 4, 9).double(), features(3, 9).double()
    candidates = torch.ones(3, 9, dtype=torch.bool)
    got = score.eviction_error(rows, values, candidates)
    for b in range(3):
        for h in range(4):
            torch.testing.assert_close(got[b, h], error(rows[b, h], values[b]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("b", "n", "keep"), SIZES)
@pytest.mark.parametrize("scorer", ["", "h2o", "keydiff"])
def test_caote(b, n, keep, scorer):
    values = features(b, n, seed=8)
    rows, keys = attention(b, 3, 1, n), features(b, n, seed=9)
    made = ts.get_method("caote", scorer=scorer)
    given = {
        "": {"window_attention": rows},
        "h2o": {"accumulated_attention": 7 * rows[:, :, 0]},
        "keydiff": {"keys": keys},
    }
    got = ts.reduce(features(b, n), made, keep, values=values, **given[scorer])
    recent = {"": 1, "h2o": min(int(keep * 0.5 + 0.5), keep - 1), "keydiff": 0}[scorer]
    for i in range(b):
        if scorer == "":
            shares = rows[i, :, 0].double()
        elif scorer == "h2o":
            shares = rows[i, :, 0].double().mean(0, keepdim=True)
        else:
            like = ts.get_method("keydiff").score(ts.Signals(features(b, n), keys=keys))[i].double()
            shares = (like - min(float(like.min()), 0.0))[None]
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-12)
        rank = torch.stack([error(one, values[i].double()) for one in shares]).mean(0)
        stay = list(range(n - recent, n))
        assert kept(got)[i] == sorted(stay + best(rank.round(decimals=9), keep - recent, range(n - recent)))


def test_fast_caote():
    rows, values = attention(2, 1, 9), features(2, 9)
    got = score.eviction_error(rows, values, torch.ones(2, 9, dtype=torch.bool), fast=True)
    for b in range(2):
        for j in range(9):
            a = float(rows[b, 0, j])
            want = a / (1 - a) * float(torch.linalg.vector_norm(values[b].mean(0) - values[b, j]))
            assert float(got[b, 0, j]) == pytest.approx(want, rel=1e-5)


def test_wrappers_take_scorers_only_and_are_values():
    with pytest.raises(
        ValueError, match="scorer='streamingllm'; it must be a cache method that keeps entries by a score"
    ):
        ts.get_method("vatp", scorer="streamingllm")
    with pytest.raises(ValueError, match="snapkv has no option width"):
        ts.get_method("caote", scorer="snapkv", options={"width": 3})
    plan = ts.Plan([ts.stage("caote", keep=20, scorer="snapkv", options={"window": 4, "kernel": 3})])
    assert ts.Plan.from_json(plan.to_json()) == plan
    assert plan.stages[0].method.min_kept == 4


# ---- EMS


def ems(rank, keys, keep, window, middle, alike):
    """Weights with which one row's entries go into those that stay: {slot: {entry: weight}}."""
    n = len(rank)
    late = list(range(n - min(window, keep), n))
    stay = sorted(late + best(rank, keep - len(late), [i for i in range(n) if i not in late]))
    middling = best(rank, round(keep * middle), [i for i in range(n) if i not in stay])
    out = {i: {i: float(rank[i])} for i in stay}
    for j in middling:
        like = [float(torch.cosine_similarity(keys[j], keys[i], dim=0)) for i in stay]
        if max(like) >= alike:
            out[stay[like.index(max(like))]][j] = float(rank[j])
    return {i: {j: w / sum(slot.values()) for j, w in slot.items()} for i, slot in out.items()}


@pytest.mark.parametrize(("b", "n", "keep"), SIZES)
def test_ems(b, n, keep):
    sums, rows, keys = 9 * attention(b, 3, n), attention(b, 3, W, n, seed=6), features(b, n, 4, seed=9)
    made = ts.get_method("ems", window=W, middle=1.0, cosine_threshold=0.5)
    got = ts.reduce(keys, made, keep, accumulated_attention=sums, window_attention=rows, keys=keys)
    for i in range(b):
        glob, local = sums[i].double().mean(0), rows[i].double().mean((0, 1))
        rank = torch.maximum(glob / glob.mean(), local / local.mean())
        want = torch.zeros(keep, n)
        for m, (_, slot) in enumerate(sorted(ems(rank, keys[i].double(), keep, W, 1.0, 0.5).items())):
            for j, w in slot.items():
                want[m, j] = w
        torch.testing.assert_close(got.dense()[i], want, atol=1e-5, rtol=1e-4)
    if n > 2 * keep:
        assert not got.drops
        assert bool((got.owner < 0).any())
        assert bool((got.sizes() > 1).any())


def test_ems_in_a_model():
    """What the cache holds are the merged keys and values; keys of the mean length."""
    inputs, plain = text(33, 48), {}
    model = decoder()
    with torch.no_grad():
        cache = model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).past_key_values
    for i in range(3):
        plain[i] = cache.layers[i].keys.double(), cache.layers[i].values.double()
    seen = []
    method = ts.get_method("ems", window=W, cosine_threshold=0.2)
    real = type(method).reduce

    def spy(self, s, keep):
        seen.append(real(self, s, keep))
        return seen[-1]

    type(method).reduce = spy
    try:
        with ts.sieve(model, method, keep=12):
            held = ts.prefill(model, inputs)
    finally:
        type(method).reduce = real
    mix = seen[0].dense().double().unflatten(0, (2, 2))
    keys, values = plain[0]
    torch.testing.assert_close(held.layers[0].values.double(), mix @ values, atol=1e-5, rtol=1e-4)
    want = mix @ keys
    want = want / want.norm(dim=-1, keepdim=True) * (mix @ keys.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(held.layers[0].keys.double(), want, atol=1e-5, rtol=1e-4)
    assert bool((seen[0].sizes() > 1).any())


# ---- KVCompose


def test_one_budget_for_all_layers():
    g = torch.Generator().manual_seed(2)
    worth = [torch.rand(4, m, generator=g).sort(1, descending=True)[0] for m in (9, 5, 7)]
    most = torch.tensor([[9, 5, 7], [9, 5, 7], [2, 5, 1], [9, 0, 7]])
    total = torch.tensor([10, 21, 6, 30])
    got = across_layers.across(worth, total, torch.full((4,), 2), most)
    for b in range(4):
        slots = [(-float(w[b, i]), la, i) for la, w in enumerate(worth) for i in range(int(most[b, la]))]
        taken = [x for x in slots if x[2] < 2]
        taken += sorted(x for x in slots if x[2] >= 2)[: max(int(total[b]) - len(taken), 0)]
        assert got[b].tolist() == [sum(x[1] == la for x in taken) for la in range(3)]
    assert got.sum(1).tolist() == [10, 21, 6, 16]


@pytest.mark.parametrize(("b", "n", "keep"), SIZES)
def test_kvcompose(b, n, keep):
    rows = attention(b, 3, W, n)
    got = ts.reduce(features(b, n), ts.get_method("kvcompose", window=W), keep, window_attention=rows)
    for i in range(b):
        late = list(range(max(n - W, 0), n))
        rank = rows[i].amax(1).mean(0)
        top = best(rank, min(keep, len(late)), late) + best(rank, max(keep - len(late), 0), range(max(n - W, 0)))
        assert kept(got)[i] == sorted(top)


def test_kvcompose_in_a_model():
    """Layers share one budget by the worth of their slots; heads keep equally many, each its own; one tensor each."""
    inputs, keep, window = text(33, 48), 12, 4
    models = [decoder("eager"), decoder()]
    for model in models:  # one layer that looks everywhere is worth less
        model.model.layers[1].self_attn.q_proj.weight.data.mul_(0.1)
    ids = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        maps = models[0](**inputs, position_ids=ids, output_attentions=True).attentions
    with ts.sieve(models[1], "kvcompose", keep=keep, window=window):
        cache = ts.prefill(models[1], inputs)
    for b, n in enumerate((33, 48)):
        rank = [[maps[i][b, 2 * g : 2 * g + 2, -window:, -n:].amax(1).mean(0) for g in range(2)] for i in range(3)]
        early = [[best(r, n, range(n - window)) for r in layer] for layer in rank]
        slots = []
        for i in range(3):
            for m in range(n - window):
                slots.append((-float(sum(rank[i][g][early[i][g][m]] for g in range(2))) / 2, i))
        taken = [i for _, i in sorted(slots)[: 3 * (keep - window)]]
        counts = [taken.count(i) for i in range(3)]
        assert counts[1] < 8
        for i in range(3):
            found = cache.layers[i].entries()[2][b]
            assert cache.layers[i].pages is None
            for g in range(2):
                want = sorted(early[i][g][: counts[i]]) + list(range(n - window, n))
                assert [c - 48 + n for c in found[g].tolist() if c >= 0] == want


# ---- SepLLM


def sepllm(ids, keep, marks, sinks, share):
    """Places that stay of one row of token ids."""
    n = len(ids)
    stay = list(range(min(sinks, keep - 1)))
    most = max(min(int(keep * share + 0.5), keep - len(stay) - 1), 0)
    stay += list(range(n - (keep - len(stay) - most), n))
    old = [j for j in range(n) if ids[j] in marks and j not in stay]
    stay += old[len(old) - min(most, len(old)) :]
    rest = [j for j in range(n) if j not in stay]
    return sorted(stay + rest[len(rest) - (keep - len(stay)) :])


@pytest.mark.parametrize(("b", "n", "keep"), SIZES)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6])
def test_sepllm(b, n, keep, share):
    ids = torch.randint(0, 9, (b, n), generator=torch.Generator().manual_seed(3))
    made = ts.get_method("sepllm", separators=(2, 5), sinks=2, share=share)
    got = ts.reduce(features(b, n), made, keep, token_ids=ids)
    assert kept(got) == [sepllm(ids[i].tolist(), keep, (2, 5), 2, share) for i in range(b)]


def test_sepllm_in_a_model_while_decoding():
    """Separators are known by their ids, of generated tokens too; embeddings have none."""
    model, inputs = decoder(), text(33, 48)
    marks = tuple(range(3, 64, 4))
    with ts.sieve(model, "sepllm", keep=12, every=1, separators=marks, share=0.4, sinks=2):
        out = model.generate(**inputs, max_new_tokens=9, do_sample=False, return_dict_in_generate=True)
        with pytest.raises(ValueError, match="the method reads token ids"):
            model(inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]))
    for b, first in enumerate((15, 0)):
        ids, held = out.sequences[b].tolist(), list(range(first, 48))
        for new in range(48, 57):
            held = [held[i] for i in sepllm([ids[c] for c in held], 12, marks, 2, 0.4)]
            held += [new] if new < 56 else []
        assert any(held[i + 1] - held[i] > 2 for i in range(2, 11))
        for layer in out.past_key_values.layers:
            assert layer.entries()[2][b].tolist() == [held, held]
            assert layer.token_ids[b].tolist() == [[ids[c] for c in held]]


def test_separators_of_a_tokenizer():
    class Tokenizer:
        words = ("a", ".", " .", "\n", "\t ", "..", ",b", "", ";", " ")

        def __len__(self):
            return len(self.words)

        def batch_decode(self, ids):
            return [self.words[i] for (i,) in ids]

    assert separators(Tokenizer()) == (1, 2, 3, 4, 8, 9)


# ---- TidalDecode


def test_tidaldecode_reads_what_the_selecting_layers_attend_to():
    """Logits are those of the plain model with all other entries masked; what is read has the highest attention there."""
    inputs, keep = text(33, 48), 9
    plain, model, seen = decoder("eager", layers=5), decoder(layers=5), []
    method = ts.get_method("tidaldecode", dense=1, again=0.6)
    assert method.layer_roles(5) == ["dense", "select", "read", "select", "read"]
    real = type(method).always_keep

    def spy(self, s, keep):
        seen.append(s)
        return real(self, s, keep)

    with ts.sieve(model, method, keep=keep) as s, pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(method), "always_keep", spy)
        logits, ids, mask, cache, saw = steps(model, inputs, 1, 6)
        assert s.last.layer_tokens == [54, 54, keep, 54, keep]
    assert all(layer.get_seq_length() == 54 for layer in cache.layers)
    assert len(seen) == 2 * 6
    saw = [torch.ones(2, 2, 54, 54).tril().bool() for _ in range(5)]
    for t in range(6):
        for layer, which in ((2, 0), (4, 1)):
            rank = seen[2 * t + which].window_attention.mean(1)[:, 0].view(2, 2, -1)
            for b in range(2):
                for g in range(2):
                    row = 48 + t
                    read = [row, *best(rank[b, g], keep - 1, range((15, 0)[b], row))]
                    saw[layer][b, g, row] = False
                    saw[layer][b, g, row, read] = True
    with torch.no_grad():  # the first layer that selects stands behind dense ones
        rows = plain(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), output_attentions=True)
    for t in range(6):
        want = rows.attentions[1][:, :, 48 + t, : 49 + t].unflatten(1, (2, 2)).flatten(0, 1)
        torch.testing.assert_close(seen[2 * t].window_attention[:, :, 0], want, atol=1e-5, rtol=1e-4)
    expected = masked(plain, ids, mask, saw)
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], atol=5e-5, rtol=1e-4)
    with ts.sieve(model, "tidaldecode", keep=0.2, dense=1):
        both = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, 48:]
        one = model.generate(**{k: v[:1, 15:] for k, v in inputs.items()}, max_new_tokens=6, do_sample=False)
        assert torch.equal(one[0, 33:], both[0])
    for keep in (1.0, 500):
        with ts.sieve(model, "tidaldecode", keep=keep, dense=1):
            got = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        assert torch.equal(got, model.generate(**inputs, max_new_tokens=6, do_sample=False))
    with pytest.raises(ValueError, match="2 stages; tidaldecode, which reads a whole cache, stands alone"):
        ts.sieve(model, ts.Plan([ts.stage("h2o", keep=9), ts.stage("tidaldecode", keep=9)]))


COMPOSED = [
    ("vatp", {"scorer": "tova", "sinks": 2}),
    ("vatp", {"scorer": "caote", "sinks": 2}),
    ("caote", {"scorer": "pyramidkv", "options": {"window": 3, "beta": 4.0}}),
    ("caote", {"scorer": "expected-attention", "options": {"future": 8}}),
    ("caote", {"scorer": "a2sf"}),
]


@pytest.mark.parametrize(("name", "options"), COMPOSED)
def test_scores_over_scores_in_a_model(name, options):
    """The budget, and what the method within keeps safe, hold; behind the prompt and while decoding."""
    model, inputs = decoder(), text(33, 48)
    made = ts.get_method(name, **options)
    with ts.sieve(model, made, keep=14, every=3):
        cache = ts.prefill(model, inputs)
        out = model.generate(**inputs, max_new_tokens=7, do_sample=False, return_dict_in_generate=True)
    for held, last in ((cache, 47), (out.past_key_values, 53)):
        counts = [layer.entries()[2].shape[2] for layer in held.layers]
        assert sum(counts) == 3 * 14
        assert (len(set(counts)) > 1) == (options["scorer"] == "pyramidkv")
        for layer in held.layers:
            columns = layer.entries()[2]
            if options["scorer"] != "expected-attention":
                assert bool((columns[:, :, -1] == last).all())
            if name == "vatp" or options["scorer"] == "expected-attention":
                assert columns[:, :, :2].tolist() == [[[15, 16]] * 2, [[0, 1]] * 2]
