"""One contract for every registered method. A new method is tested here without a line being written."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import pickle

import pytest
import torch

import tokensieve as ts
from tests.strategies import Largest, Live, features, rows, signals, tokens
from tokensieve import registry
from tokensieve.reduction import Reduction

B, H, W = 3, 6, 6
N = H * W
ALL = registry.methods()
IDS = {s.id for s in registry.systems()}
KEEPS = (1, 2, 5, 17, N - 1, 0.25, 0.5, 0.999)

pytestmark = pytest.mark.parametrize("name", ALL)


def run(name: str, x: torch.Tensor, keep, given=None, grid=(H, W), **more) -> Reduction:
    made = registry.make(name)
    given = signals(made, x.shape[0], x.shape[1], x.shape[2]) if given is None else given
    return ts.reduce(x, made, keep, grid=grid if grid and grid[0] * grid[1] == x.shape[1] else None, **given, **more)


def same(a: Reduction, b: Reduction) -> None:
    """Equal but for padding slots, and for rounding in weights."""
    m = max(int(a.counts.max()), int(b.counts.max()))
    assert torch.equal(a.counts, b.counts)
    assert torch.equal(a.kept[:, :m] * a.mask[:, :m], b.kept[:, :m] * b.mask[:, :m])
    assert torch.equal(a.owner, b.owner)
    torch.testing.assert_close(a.dense()[:, :m], b.dense()[:, :m])


def check_slots(r: Reduction) -> None:
    """Kept tokens ascend, padding slots come last, owners are slots in use, and kept tokens own themselves."""
    assert r.kept.shape == r.mask.shape
    assert r.m == int(r.counts.max())
    for kept, mask, owner, count in zip(r.kept, r.mask, r.owner, r.counts.tolist(), strict=True):
        assert bool(mask[:count].all())
        assert not bool(mask[count:].any())
        used = kept[:count]
        assert bool((used[1:] > used[:-1]).all())
        assert bool(((used >= 0) & (used < r.n)).all())
        assert bool(((owner >= -1) & (owner < count)).all())
        if r.matrix is None:
            assert torch.equal(owner[used], torch.arange(count))


@pytest.mark.parametrize("keep", KEEPS)
def test_budget_is_exact(name, keep):
    r = run(name, features(B, N), keep)
    want = keep if isinstance(keep, int) else int(keep * N + 0.5)
    if registry.make(name).adaptive:
        assert bool((r.counts <= want).all())
    else:
        assert r.counts.tolist() == [want] * B
    check_slots(r)
    assert r.apply(features(B, N)).shape == (B, r.m, 16)


@pytest.mark.parametrize("keep", [N, N + 100, 1.0])
def test_keeping_all_is_the_identity(name, keep):
    x = features(B, N)
    r = run(name, x, keep)
    assert r.is_identity
    assert torch.equal(r.apply(x), x)
    assert torch.equal(r.restore(r.apply(x)), x)


@pytest.mark.parametrize("keep", [1, 9, 30])
def test_rows_are_independent(name, keep):
    x = features(B, N)
    given = signals(registry.make(name), B, N)
    together = run(name, x, keep, given)
    for b in range(B):
        same(together.rows(slice(b, b + 1)), run(name, x[b : b + 1], keep, rows(given, slice(b, b + 1))))


@pytest.mark.parametrize("keep", [1, 4, 0.5, 100])
def test_padding_is_as_if_it_were_not_there(name, keep):
    """Rows of different lengths with padding on the left, inside, on the right, and of a single token."""
    mask = torch.zeros(4, 20, dtype=torch.bool)
    mask[0, 6:] = mask[1, :13] = mask[3, 11] = True
    mask[2] = torch.arange(20) % 3 != 1
    x = features(4, 20)
    given = signals(registry.make(name), 4, 20)
    r = run(name, x, keep, given, grid=(4, 5), mask=mask)
    check_slots(r)
    assert bool((r.owner[~mask] == -1).all())
    assert not bool((r.dense() * ~mask[:, None]).any())
    flat = run(name, x, keep, given, grid=None, mask=mask)
    for b in range(4):
        place = mask[b].nonzero()[:, 0]
        assert set(r.kept[b].tolist()) <= set(place.tolist())
        alone = run(name, x[b : b + 1, place], keep, tokens(rows(given, slice(b, b + 1)), place), grid=None)
        padded = flat.rows(slice(b, b + 1))
        count = int(alone.counts)
        assert int(padded.counts) == count
        assert torch.equal(padded.kept[:, :count], place[alone.kept])
        assert torch.equal(padded.owner[:, place], alone.owner)
        torch.testing.assert_close(padded.dense()[:, :count, place], alone.dense())


def test_rows_one_after_the_other_give_what_the_batch_gives(name, monkeypatch):
    """As rows of many tokens are taken where their pairs are compared."""
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[1, -5:], mask[2, -30:] = False, False
    x, given = features(B, N), signals(registry.make(name), B, N)
    for keep in (9, 5):
        monkeypatch.setattr(importlib.import_module("tokensieve.method"), "LONG", N + 1)
        batch = run(name, x, keep, given, mask=mask)
        monkeypatch.setattr(importlib.import_module("tokensieve.method"), "LONG", 1)
        same(run(name, x, keep, given, mask=mask), batch)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precisions(name, dtype):
    x = features(B, N).to(dtype)
    given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in signals(registry.make(name), B, N).items()}
    r = run(name, x, 9, given)
    assert r.m <= 9
    out = r.apply(x)
    assert out.dtype == dtype
    assert bool(out.isfinite().all())


def test_inputs_need_not_be_contiguous(name):
    x, given = features(B, N), signals(registry.make(name), B, N)
    strided = {k: v.transpose(0, -1).contiguous().transpose(0, -1) for k, v in given.items()}
    same(run(name, x.transpose(0, 2).contiguous().transpose(0, 2), 9, strided), run(name, x, 9, given))


def test_inputs_are_left_as_they_were(name):
    x, given = features(B, N), signals(registry.make(name), B, N)
    before = [x.clone(), *(v.clone() for v in given.values())]
    run(name, x, 9, given)
    assert all(torch.equal(a, b) for a, b in zip(before, [x, *given.values()], strict=True))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_tokens(name, n):
    x = features(B, n)
    r = run(name, x, 1, grid=(1, n))
    assert r.counts.tolist() == [1] * B
    assert r.apply(x).shape == (B, 1, 16)


def test_tokens_that_are_all_alike(name):
    """A blank image: ties everywhere, and still an exact budget and finite values."""
    x = torch.ones(B, N, 16)
    given = signals(registry.make(name), B, N)
    given = {k: torch.ones_like(v) / N if v.is_floating_point() else v for k, v in given.items()}
    r = run(name, x, 9, given)
    assert r.counts.tolist() == [9] * B or registry.make(name).adaptive
    check_slots(r)
    torch.testing.assert_close(r.apply(x).isfinite().all(), torch.tensor(True))
    r = run(name, 0 * x, 9, {k: 0 * v for k, v in given.items()})
    assert bool(r.apply(x).isfinite().all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(name, bad):
    x, given = features(B, N), signals(registry.make(name), B, N)
    for spoilt in ("features", *(k for k, v in given.items() if v.is_floating_point())):
        parts = {"features": x.clone(), **{k: v.clone() for k, v in given.items()}}
        parts[spoilt][1, ..., 3] = bad
        with pytest.raises(ValueError, match=rf"{spoilt} holds NaN or infinite values: first in row 1"):
            run(name, parts.pop("features"), 9, parts)


@pytest.mark.parametrize("keep", [0, -3, 0.0, 1.5, float("nan"), float("inf"), "9", True, None, (9,)])
def test_budgets_out_of_range_are_refused(name, keep):
    with pytest.raises(ValueError, match=r"keep=.*it must be an int of at least 1 .* or a float in \(0, 1\]"):
        run(name, features(B, N), keep)


def test_missing_signals_are_named(name):
    made = registry.make(name)
    given = signals(made, B, N)
    for need in made.needs:
        ways = (need.name, *need.instead)
        left = {k: v for k, v in given.items() if k not in ways}
        if "features" in ways:
            assert run(name, features(B, N), 9, left).m <= 9
        else:
            lacking = "|".join(n.name for n in made.needs if not {n.name, *n.instead} & {*left, "features"})
            with pytest.raises(ts.MissingSignal, match=rf"needs the signal '({lacking})'; pass ({lacking})="):
                run(name, features(B, N), 9, left)


def test_stand_ins_serve(name):
    """Each need is met by any one of its stand-ins alone."""
    made = registry.make(name)
    for i, need in enumerate(made.needs):
        for other in need.instead:
            others = [n for j, n in enumerate(made.needs) if j != i]
            stand = dataclasses.replace(need, name=other)
            wanted = [stand, *(n for n in others if n.name != need.name)]
            given = signals(_Asks(wanted), B, N)
            assert run(name, features(B, N), 9, given).m <= 9


class _Asks:
    def __init__(self, needs):
        self.needs = needs


def test_a_seed_repeats(name):
    x = features(B, N)
    a, b = run(name, x, 9, seed=3), run(name, x, 9, seed=3)
    assert torch.equal(a.kept, b.kept)
    assert torch.equal(a.owner, b.owner)
    assert torch.equal(a.apply(x), b.apply(x))


def test_gradients_flow(name):
    x = features(B, N).requires_grad_()
    r = run(name, x, 9)
    r.apply(x).square().sum().backward()
    assert bool(x.grad.isfinite().all())
    held = torch.zeros(B, N, dtype=torch.bool).scatter_(1, r.kept, True)
    assert bool((x.grad.abs().sum(2)[held] > 0).all())
    assert bool((x.grad[r.owner < 0] == 0).all())


def test_restore(name):
    x = features(B, N)
    r = run(name, x, 9)
    y = r.apply(x)
    back = r.restore(y)
    assert back.shape == x.shape
    assert bool((back[r.owner < 0] == 0).all())
    last = r.restore(y, fill=x)
    assert torch.equal(last[r.owner < 0], x[r.owner < 0])
    if r.matrix is None:
        again = r.apply(back) if r.drops else r.take(back)
        assert torch.equal(again[r.mask], y[r.mask])


def test_saved_and_loaded(name, tmp_path):
    x = features(B, N)
    r = run(name, x, 9)
    r.save(tmp_path / "r.safetensors")
    back = Reduction.load(tmp_path / "r.safetensors")
    assert back.n == r.n
    assert torch.equal(back.apply(x), r.apply(x))
    assert torch.equal(back.kept, r.kept)
    assert torch.equal(back.owner, r.owner)
    assert torch.equal(back.mask, r.mask)


def test_memory_is_not_quadratic(name):
    n = 6000
    x, made = features(1, n, dim=8), registry.make(name)
    with Largest() as seen:
        run(name, x, 100, signals(made, 1, n, dim=8), grid=(60, 100))
    # Pairs of tokens are worked on in blocks; those of up to 4,096 tokens may be held whole.
    assert seen.elements < n * n // (2 if made.pairs else 4)


@pytest.mark.slow
def test_memory_of_many_tokens(name):
    n = 20_000
    x, made = features(1, n, dim=8), registry.make(name)
    given = signals(made, 1, n, dim=8)
    with Live() as seen:
        run(name, x, 2, given, grid=(100, 200))
    assert seen.peak < 1e9


def test_methods_are_values(name):
    made = registry.make(name)
    for other in (
        pickle.loads(pickle.dumps(made)),
        copy.deepcopy(made),
        registry.make(name, **dataclasses.asdict(made)),
    ):
        assert other == made
        assert other.adaptive == made.adaptive
        assert hash(other) == hash(made)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "other"
    x, given = features(B, N), signals(made, B, N)
    same(ts.reduce(x, made, 9, **given), ts.reduce(x, copy.deepcopy(made), 9, **given))


def test_score_is_a_map(name):
    made = registry.make(name)
    x = features(B, N)
    score = made.score(ts.Signals(features=x, grid=(H, W), **signals(made, B, N)))
    if score is not None:
        assert score.shape == (B, N)
        assert bool(score.isfinite().all())


def test_card(name):
    card = registry.card(name)
    assert card.summary.endswith(".")
    assert card.site in card.sites
    assert set(card.sites) <= {"encoder", "handoff", "prefill", "focus", "cross", "cache", "vectors"}
    assert set(card.systems) <= IDS
    if card.family != "baseline":
        assert "arXiv" in (registry.get(name).__doc__ or "")


def test_left_padding_with_unequal_counts(name):
    """A row that fills the end of a padded batch keeps as many as alone, and merges into chosen tokens only."""
    x, mask = features(2, 20), torch.ones(2, 20, dtype=torch.bool)
    mask[1, :10] = False
    given = signals(registry.make(name), 2, 20, 16)
    for keep in (19, 5, 1):
        r = run(name, x, keep, given, grid=None, mask=mask)
        check_slots(r)
        if not registry.make(name).adaptive:
            assert r.counts.tolist() == [keep, min(keep, 10)]


def test_rows_that_are_kept_whole(name):
    x, mask = features(2, 6), torch.ones(2, 6, dtype=torch.bool)
    mask[1, 2:] = False
    mask[0, 4:] = False
    r = run(name, x, 5, signals(registry.make(name), 2, 6, 16), grid=None, mask=mask)
    assert r.counts.tolist() == [4, 2]
