"""The cache methods against plain loops written from the papers' definitions, on arrays and on a model's own attention maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokensieve as ts
from tests.models import decoder, text
from tokensieve.parts import budget
from tokensieve.parts.attention import pages
from tokensieve.parts.attention import rows as attention_rows
from tokensieve.testing import features

SIZES = [(1, 2, 1), (2, 7, 3), (3, 40, 13), (2, 100, 33), (2, 100, 60)]
W = 5


def attention(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def best(score, count, candidates):
    """The ``count`` members of ``candidates`` with the highest score, earlier ones first among equals."""
    return sorted(candidates, key=lambda i: (-float(score[i]), i))[:count]


def kept(r):
    return [row[mask].tolist() for row, mask in zip(r.kept, r.mask, strict=True)]


def pooled(score, width, how):
    """Over the neighbours that exist; what does not counts as zero in a mean."""
    out = []
    for i in range(len(score)):
        near = [score[j] for j in range(i - width // 2, i + width // 2 + 1) if 0 <= j < len(score)]
        out.append(sum(near) / width if how == "mean" else max(near))
    return out


def snapkv(rows, keep, window, kernel, how):
    """rows: (heads, W, N), one row of the batch."""
    n = rows.shape[-1]
    window = min(window, n)
    if keep <= window:
        return list(range(n - keep, n))
    votes = [float(rows[:, :, i].double().mean()) for i in range(n - window)]
    return sorted(best(pooled(votes, kernel, how), keep - window, range(n - window))) + list(range(n - window, n))


@pytest.mark.parametrize(("b", "n", "keep"), SIZES)
@pytest.mark.parametrize(("kernel", "how"), [(5, "mean"), (7, "max"), (1, "mean")])
@pytest.mark.parametrize("name", ["snapkv", "pyramidkv", "adakv"])
def test_snapkv(name, b, n, keep, kernel, how):
    """PyramidKV and AdaKV choose likewise, where there is one layer and one head."""
    rows = attention(b, 3, W, n)
    options = {"window": W, "kernel": kernel, "pooling": how} | ({"floor": 0.0} if name == "adakv" else {})
    got = ts.reduce(features(b, n), ts.get_method(name, **options), keep, window_attention=rows)
    assert kept(got) == [snapkv(rows[i], keep, W, kernel, how) for i in range(b)]


def adakv(rows, head, keep, window, kernel, floor):
    """rows: (heads, W, N) over the entries of all key-value heads, one row of the batch."""
    groups = sorted(set(head))
    even = {g: keep // len(groups) + (g < keep % len(groups)) for g in groups}
    vote = rows.double().mean((0, 1)).tolist()
    score, always_keep = {}, []
    for g in groups:
        own = [i for i, h in enumerate(head) if h == g]
        late = own[-min(window, even[g], len(own)) :]
        early = [i for i in own if i not in own[-window:]]
        score |= dict(zip(early, pooled([vote[i] for i in early], kernel, "max"), strict=True))
        score |= dict.fromkeys(own[-window:], 0.0)
        rest = [i for i in own if i not in late]
        always_keep += late + best(score, math.floor(max(even[g] - window, 0) * floor), rest)
    return sorted(
        always_keep + best(score, keep - len(always_keep), [i for i in range(len(head)) if i not in always_keep])
    )


@pytest.mark.parametrize(("n", "heads", "keep"), [(20, 2, 13), (30, 3, 40), (30, 3, 16), (12, 4, 30), (40, 1, 9)])
def test_adakv(n, heads, keep):
    rows = attention(2, 2, W, heads * n)
    rows = rows * torch.rand(heads, generator=torch.Generator().manual_seed(3)).repeat_interleave(n)  # unequal heads
    head = torch.arange(heads).repeat_interleave(n).expand(2, -1)
    made = ts.get_method("adakv", window=4, kernel=3, floor=0.3)
    got = ts.reduce(features(2, heads * n), made, keep, window_attention=rows, head=head)
    assert kept(got) == [adakv(rows[i], head[i].tolist(), keep, 4, 3, 0.3) for i in range(2)]


@pytest.mark.parametrize("name", ["snapkv", "keydiff", "expected-attention", "caote", "h2o"])
def test_adakv_over_others_ranks_what_they_give_each_head_alone(name):
    """Of a row whose heads hold different numbers."""
    n, keep = (17, 12, 9), 20
    head = torch.cat([torch.full((m,), h) for h, m in enumerate(n)]).expand(2, -1)
    total = sum(n)
    x, given = features(2, total), {"window_attention": attention(2, 2, W, total), "values": features(2, total, seed=9)}
    given |= {"accumulated_attention": attention(2, 2, total), "expected_logits": attention(2, 2, total).log()}
    options = {"window": 3} if name == "snapkv" else {}
    made, inner = ts.get_method("adakv", floor=0.25, scorer=name, options=options), ts.get_method(name, **options)
    got = kept(ts.reduce(x, made, keep, head=head, **given))
    for row in range(2):
        even = [7, 7, 6]
        always_keep, rank = [], {}
        for h, m in enumerate(n):
            own = (head[row] == h).nonzero()[:, 0]
            s = ts.Signals(x[row : row + 1, own], **{
                k: v[row : row + 1][:, own] if k == "values" else v[row : row + 1][..., own] for k, v in given.items()
            })  # fmt: skip
            score, always = inner.score(s)[0], inner.always_keep(s, torch.tensor([even[h]]))[0]
            rest = [i for i in range(m) if not always[i]]
            floor = best(score, math.floor((even[h] - inner.min_kept) * 0.25), rest)
            always_keep += [int(own[i]) for i in range(m) if always[i] or i in floor]
            rank |= {int(own[i]): float(score[i]) for i in range(m)}
        rest = [i for i in range(total) if i not in always_keep]
        assert got[row] == sorted(always_keep + best(rank, keep - len(always_keep), rest))


def test_adakv_over_what_ranks_no_heads_is_refused():
    for name in ("tova", "adakv", "ems", "first-k"):
        with pytest.raises(ValueError, match=f"scorer='{name}'; it"):
            ts.get_method("adakv", scorer=name)


@pytest.mark.parametrize(("b", "n", "keep"), SIZES)
def test_h2o(b, n, keep):
    sums = 9 * attention(b, 3, n)
    got = ts.reduce(features(b, n), "h2o", keep, accumulated_attention=sums)
    recent = min(int(keep * 0.5 + 0.5), keep - 1)
    for i in range(b):
        late = list(range(n - recent, n))
        heavy = best(sums[i].double().mean(0), keep - recent, range(n - recent))
        assert kept(got)[i] == sorted(heavy + late)


@pytest.mark.parametrize(("b", "n", "keep"), SIZES)
def test_tova(b, n, keep):
    rows = attention(b, 3, 1, n)
    got = ts.reduce(features(b, n), "tova", keep, window_attention=rows)
    assert kept(got) == [
        sorted([*best(rows[i, :, 0].double().mean(0), keep - 1, range(n - 1)), n - 1]) for i in range(b)
    ]


@pytest.mark.parametrize(("b", "n", "keep"), SIZES)
def test_streamingllm(b, n, keep):
    got = ts.reduce(features(b, n), "streamingllm", keep)
    sinks = min(4, keep - 1)
    assert kept(got) == [[*range(sinks), *range(n - keep + sinks, n)]] * b


@pytest.mark.parametrize(("b", "n", "keep"), SIZES)
def test_keydiff(b, n, keep):
    keys = features(b, n, seed=9)
    got = ts.reduce(features(b, n), "keydiff", keep, keys=keys)
    for i in range(b):
        x = keys[i].double().numpy()
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        anchor = unit.mean(0)
        score = [-float(u @ anchor / np.linalg.norm(anchor)) for u in unit]
        assert kept(got)[i] == sorted(best(score, keep, range(n)))


@pytest.mark.parametrize(("b", "n", "keep"), SIZES)
def test_expected_attention(b, n, keep):
    logits, values = torch.randn(b, 2, n, generator=torch.Generator().manual_seed(4)), features(b, n, seed=8)
    got = ts.reduce(features(b, n), "expected-attention", keep, expected_logits=logits, values=values)
    for i in range(b):
        rest = list(range(min(4, n - 1) if n > 4 else 0, n))
        sinks = list(range(min(4, keep - 1, n)))
        share = logits[i].double()[:, rest].softmax(1).mean(0)
        score = {j: float(s * values[i, j].double().norm()) for j, s in zip(rest, share, strict=True)}
        score = {j: score.get(j, 0.0) for j in range(n)}
        assert kept(got)[i] == sorted(sinks + best(score, keep - len(sinks), [j for j in range(n) if j not in sinks]))


def test_pyramid_budgets():
    keep, held = torch.tensor([100, 100, 40, 20, 8]), torch.tensor([1000, 120, 60, 20, 300])
    counts = budget.pyramid(keep, held, 8, 6, 20.0)
    assert counts.sum(1).tolist() == (6 * keep).tolist()
    assert bool((counts <= held[:, None]).all())
    assert bool((counts[:, 1:] <= counts[:, :-1]).all())
    for row, (k, h) in enumerate(zip(keep.tolist(), held.tolist(), strict=True)):
        base = k - 8
        last = base / 20
        first = min(2 * base - last, h - 8)
        last = 2 * base - first
        line = [first + (last - first) * i / 5 + 8 for i in range(6)]
        assert all(abs(c - x) <= 1 for c, x in zip(counts[row].tolist(), line, strict=True))


@pytest.mark.parametrize("few", [0, 8])
@pytest.mark.parametrize("groups", [1, 3])
def test_attention_over_pages(groups, few, monkeypatch):
    """Against a softmax over each row's own entries."""
    monkeypatch.setattr(pages, "FEW", few)
    g = torch.Generator().manual_seed(1)
    counts = torch.tensor([3, 70, 128, 1, 0])
    real = torch.arange(128) < counts[:, None]
    keys, values = torch.randn(5, 128, 8, generator=g), torch.randn(5, 128, 6, generator=g)
    late_k, late_v = torch.randn(5, 4, 8, generator=g), torch.randn(5, 4, 6, generator=g)
    query = torch.randn(5, groups, 8, generator=g)
    at = torch.stack([torch.randperm(128, generator=g) for _ in range(5)])
    first_keys, first_values = (torch.zeros_like(x).scatter_(1, at[..., None].expand_as(x), x) for x in (keys, values))
    held = pages.Pages.of(first_keys, first_values, at, real)
    assert held.keys.shape[0] == 1 + 9 + 16 + 1
    order = torch.tensor([2, 2, 0, 4, 1, 3])
    for p, index in ((held, torch.arange(5)), (held.rows(order), order)):
        allowed = torch.zeros(1, 1, 4).masked_fill(
            torch.tensor([False, True, False, False]), torch.finfo(torch.float32).min
        )
        got = pages.attend(query[index], p, late_k[index], late_v[index], 0.3, allowed)
        for row, i in enumerate(index.tolist()):
            k = torch.cat([keys[i, : counts[i]], late_k[i, [0, 2, 3]]])
            v = torch.cat([values[i, : counts[i]], late_v[i, [0, 2, 3]]])
            torch.testing.assert_close(got[row], (query[i] @ k.T * 0.3).softmax(-1) @ v)
        every = pages.attend(query[index], p, late_k[index], late_v[index], 0.3)
        shown = pages.attend(query[index], p, late_k[index], late_v[index], 0.3, torch.zeros(len(index), 1, 4))
        torch.testing.assert_close(every, shown)
        many = allowed.expand(len(index), groups, -1)
        long = pages.by_row(query[index][:, None], p, late_k[index], late_v[index], 0.3, many)
        torch.testing.assert_close(long[:, 0], got)
        back_k, back_v = p.padded(130)
        for row, i in enumerate(index.tolist()):
            assert torch.equal(back_k[row][: counts[i]], keys[i, : counts[i]])
            assert torch.equal(back_v[row][: counts[i]], values[i, : counts[i]])
            assert not back_k[row][counts[i] :].any()


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=9))
def test_pages_leave_little_empty(counts):
    """At most one place in 64, but for what no page of 8 can help."""
    page, counts = pages.fitting(torch.tensor(counts)), np.array(counts)
    empty = {size: int((-counts % size).sum()) for size in (8, 16, 32, 64)}
    fine = [size for size, none in empty.items() if none <= counts.sum() / 64]
    assert page == max(fine, default=8)


# ---- in a model: the same loops over the maps of eager attention


@pytest.fixture(scope="module")
def maps():
    """A prompt batch, the plain model's attention maps, queries in front of their rotation, keys and values."""
    model, inputs, seen = decoder("eager"), text(33, 48), []
    places = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    layer = model.model.layers[1].self_attn
    handle = layer.q_proj.register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        out = model(**inputs, position_ids=places, output_attentions=True)
    handle.remove()
    query = seen[0].unflatten(2, (4, 16)).transpose(1, 2)
    cache = out.past_key_values.layers[1]
    return inputs, out.attentions[1], query, cache.keys, cache.values


def places(name, inputs, keep, **options):
    """Columns that each head of layer 1 keeps, under SDPA, counted from the row's first token."""
    model = decoder()
    with ts.sieve(model, name, keep=keep, **options):
        cache = ts.prefill(model, inputs)
    pad = (inputs["attention_mask"] == 0).sum(1)
    found = cache.layers[1].entries()[2]
    return [[[c - int(pad[b]) for c in head.tolist() if c >= 0] for head in row] for b, row in enumerate(found)]


def test_snapkv_in_a_model(maps):
    inputs, attention, *_ = maps
    got = places("snapkv", inputs, 14, window=W)
    for b, n in enumerate((33, 48)):
        for g in range(2):
            rows = attention[b, 2 * g : 2 * g + 2, -W:, -n:]
            assert got[b][g] == snapkv(rows, 14, W, 5, "mean")


@pytest.mark.parametrize(("past", "step", "block"), [(0, 1, 128), (0, 1, 5), (9, 1, 4), (4, 2, 3)])
def test_gathered_attention(past, step, block):
    """Grouped heads, weighed queries at places of their own, keys that nobody sees, several blocks of queries."""
    g = torch.Generator().manual_seed(7)
    at = past + step * torch.arange(13) + torch.tensor([[0], [step - 1]])
    n = past + 13 * step
    query, key = torch.randn(2, 4, 13, 8, generator=g), torch.randn(2, 2, n, 8, generator=g)
    weight, real = torch.rand(2, 13, generator=g), torch.rand(2, 2, n, generator=g) < 0.7
    real[1, :, : past + 3] = False  # a row's first queries see nothing
    got = attention_rows.gathered(query, key, 0.5, at[:, None].expand(-1, 2, -1), weight, real, block)
    for b, h in np.ndindex(2, 4):
        total = torch.zeros(n, dtype=torch.float64)
        for t in range(13):
            seen = [i for i in range(int(at[b, t]) + 1) if real[b, h // 2, i]]
            if seen:
                each = (key[b, h // 2, seen].double() @ query[b, h, t].double() * 0.5).softmax(0)
                total[seen] += weight[b, t] * each
        torch.testing.assert_close(got[b, h].double(), total, atol=1e-6, rtol=1e-5)
    every = attention_rows.gathered(
        query, key, 0.5, at[:, None].expand(-1, 2, -1), weight, torch.ones_like(real), block
    )
    torch.testing.assert_close(
        attention_rows.gathered(query, key, 0.5, at[:, None].expand(-1, 2, -1), weight, None, block), every
    )


@pytest.mark.parametrize("hides", [False, True])
def test_gathered_attention_of_a_model_in_bfloat16(hides):
    """Logits are rounded, and nothing else: what each key gathers is within what that makes of it, and all weight is gathered."""
    g = torch.Generator().manual_seed(3)
    query, key = (torch.randn(2, h, n, 16, generator=g).bfloat16() for h, n in ((4, 40), (2, 80)))
    at, weight = (2 * torch.arange(40) + 1).expand(2, 2, -1), torch.rand(2, 40, generator=g)
    real = torch.arange(80).expand(2, 2, -1) >= 7 if hides else None
    got = attention_rows.gathered(query, key, 0.25, at, weight, real, 16)
    exact = attention_rows.gathered(query.float(), key.float(), 0.25, at, weight, real, 16)
    seen = at[:, 0] >= 7 if hides else torch.ones(2, 40, dtype=torch.bool)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.sum(2), (weight * seen).sum(1, keepdim=True).expand(-1, 4), atol=1e-4, rtol=1e-5)
    off = (query.float() @ key.float().repeat_interleave(2, 1).transpose(2, 3) * 0.25).abs().max() / 256
    assert bool(((got - exact).abs() <= 2 * off * exact + 1e-6).all())
    assert not torch.equal(got, exact)


@given(st.integers(1, 40), st.integers(1, 50), st.floats(0.7, 1), st.integers(0, 20))
def test_queries_that_stand_for_all(count, length, rate, padding):
    """Every query counts what it weighs, within one stretch; those without weight do not."""
    weight = rate ** torch.arange(length - 1, -1, -1).float()
    weight[: min(padding, length - 1)] = 0
    at, each = attention_rows.sampled(weight[None], count)
    assert at.shape == each.shape
    assert at.shape[1] <= min(count, length)
    counted = torch.zeros(length).scatter_add_(0, at[0], each[0])
    torch.testing.assert_close(counted.sum(), weight.sum())
    stretch = 0 if length <= count else float(weight.sum()) / count
    assert bool(((counted - weight).abs() <= stretch * 1.001 + 1e-6).all())
    assert bool((at[0].diff() > 0).all())
    assert not counted[weight == 0].any()


def test_h2o_of_a_prompt_longer_than_its_queries(maps):
    """A third of the queries find most of what all find, and in the order of their places."""
    inputs, *_ = maps
    whole, some = places("h2o", inputs, 14), places("h2o", inputs, 14, queries=16)
    again = places("h2o", inputs, 14, queries=48)
    assert whole == again
    pairs = [(set(a), set(b)) for x, y in zip(whole, some, strict=True) for a, b in zip(x, y, strict=True)]
    assert whole != some
    assert all(len(a) == len(b) == 14 and len(a & b) >= 10 for a, b in pairs)


def test_h2o_in_a_model(maps):
    inputs, attention, *_ = maps
    got = places("h2o", inputs, 14)
    for b, n in enumerate((33, 48)):
        for g in range(2):
            sums = attention[b, 2 * g : 2 * g + 2, -n:, -n:].double().sum((0, 1))
            assert got[b][g] == sorted(best(sums, 7, range(n - 7))) + list(range(n - 7, n))


def test_tova_in_a_model(maps):
    inputs, attention, *_ = maps
    got = places("tova", inputs, 14)
    for b, n in enumerate((33, 48)):
        mean = attention[b, :, -1, -n:].double().mean(0)
        for g in range(2):
            assert got[b][g] == [*sorted(best(mean, 13, range(n - 1))), n - 1]


def test_expected_attention_in_a_model(maps):
    """Mean and covariance of the prompt's queries, turned by the mean rotation of the next positions."""
    inputs, _, query, keys, values = maps
    got = places("expected-attention", inputs, 14, future=20)
    for b, n in enumerate((33, 48)):
        turn = np.zeros((16, 16))
        for position in range(n, n + 20):
            for i in range(8):
                angle = position * 10000 ** (-i / 8)
                turn[i, i] += math.cos(angle) / 20
                turn[i + 8, i + 8] += math.cos(angle) / 20
                turn[i, i + 8] -= math.sin(angle) / 20
                turn[i + 8, i] += math.sin(angle) / 20
        for g in range(2):
            k, v = (x[b, g, -n:].double().numpy() for x in (keys, values))
            share = np.zeros(n - 4)
            for h in (2 * g, 2 * g + 1):
                q = query[b, h, -n:].double().numpy()[4:]
                mean, spread = turn @ q.mean(0), turn @ np.cov(q.T, bias=True) @ turn.T
                logits = np.array([x @ mean / 4 + x @ spread @ x / 32 for x in k[4:]])
                share += np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum() / 2
            score = np.concatenate([np.zeros(4), share * np.linalg.norm(v[4:], axis=1)])
            assert got[b][g] == [0, 1, 2, 3, *sorted(best(score, 10, range(4, n)))]
