"""Plans found on calibration batches, against the rules by which they are found."""

from __future__ import annotations

import itertools
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tokensieve as ts
from tests.models import IMAGE, llava, prompt
from tests.test_parity_vlm import unit
from tokensieve.planner import schedule, stages
from tokensieve.planner.quality import answered, quality

LAYERS, N = 6, 64


@pytest.fixture(scope="module")
def model():
    return llava(layers=LAYERS)


# ---- quality


def generated(model, batch, new):
    with torch.no_grad():
        return model.generate(**batch, max_new_tokens=new, do_sample=False)[:, -new:]


@pytest.mark.parametrize("keep", [1.0, 12])
def test_quality_is_that_of_generate(model, keep):
    """Answers of several tokens and different lengths, some right and some wrong."""
    batch = prompt((1, 1, 2))
    with ts.sieve(model, "fastv", keep):
        said = generated(model, batch, 3)
        labels = said.clone()
        labels[1, 2:] = -100
        labels[2, 1] = (labels[2, 1] + 1) % 60
        full = quality(model, [{**batch, "labels": labels}])
        halves = [quality(model, [{**batch, "labels": labels[:, :1]}]), quality(model, [{**batch, "labels": said}])]
    assert full.accuracy == pytest.approx(2 / 3)
    assert [h.accuracy for h in halves] == [1.0, 1.0]
    assert full.likelihood < halves[1].likelihood < 0


def test_likelihood_is_that_of_one_pass(model):
    batch = prompt((1, 1))
    labels = torch.tensor([[9, 11, 13], [20, 21, -100]])
    got = quality(model, [{**batch, "labels": labels}])
    want = []
    for row, answer in enumerate(([9, 11, 13], [20, 21])):
        real = batch["attention_mask"][row].bool()
        ids = torch.cat([batch["input_ids"][row, real], torch.tensor(answer)])[None]
        with torch.no_grad():
            log = model(input_ids=ids, pixel_values=batch["pixel_values"][row : row + 1]).logits[0].log_softmax(-1)
        start = int(real.sum())
        want.append(np.mean([float(log[start - 1 + i, t]) for i, t in enumerate(answer)]))
    assert got.likelihood == pytest.approx(np.mean(want), abs=1e-5)


def test_without_labels_the_model_answers_itself(model):
    batch = prompt((1, 2))
    asked = answered(model, [batch])
    assert torch.equal(asked[0]["labels"], generated(model, batch, 1))
    assert quality(model, asked).accuracy == 1.0
    with pytest.raises(ValueError, match="batches is empty"):
        answered(model, [])


# ---- G-Search


def test_gsearch_finds_the_least_counts(model):
    """Each layer's count meets the floor, and one token less from there on does not."""
    asked = answered(model, [prompt((1,) * 6, seed=s) for s in (0, 1)])
    found = schedule.gsearch(model, asked, floor=0.75)
    assert {s.method.name for s in found.stages} == {"fastv"}
    counts = [N] * LAYERS
    for s in found.stages:
        counts[s.layer :] = [s.keep] * (LAYERS - s.layer)
    assert counts[2] < N
    assert all(a >= b for a, b in itertools.pairwise(counts))

    def accuracy(counts):
        with ts.sieve(model, schedule.scheduled(ts.get_method("fastv"), counts)):
            return quality(model, asked).accuracy

    assert accuracy(counts) >= 0.75
    for layer in range(2, LAYERS):
        if counts[layer] > 1:
            assert accuracy(counts[:layer] + [counts[layer] - 1] * (LAYERS - layer)) < 0.75
    with ts.sieve(model, found) as s, torch.no_grad():
        model(**prompt((1, 1)))
    assert s.last.layer_tokens == counts


def test_searches_begin_where_they_are_told(model):
    asked = [prompt((1, 1))]
    assert schedule.gsearch(model, asked, floor=0.4, first=1).stages[0].layer == 1
    assert {s.layer for s in schedule.gsearch(model, asked, floor=0.4, first=5).stages} <= {5}
    assert stages.adatoken3d(model, asked, cover=0.5, first=1).stages[0].layer == 1
    for first in (0, LAYERS):
        with pytest.raises(ValueError, match=rf"first={first}; .* in front of layers 1 to 5"):
            schedule.gsearch(model, asked, first=first)


def test_searches_name_what_is_wrong(model):
    text = [{"input_ids": torch.tensor([[7, 8, 9]])}]
    with pytest.raises(ValueError, match=r"floor=1\.5; it must be a number above 0, at most 1"):
        schedule.gsearch(model, [prompt((1,))], floor=1.5)
    with pytest.raises(ValueError, match="no visual token"):
        schedule.gsearch(model, text)
    with pytest.raises(ValueError, match="no visual token"):
        stages.change(model, text)


# ---- P-Sigmoid


@pytest.mark.parametrize("slope", [1.0, 8.0, 64.0])
@pytest.mark.parametrize("flops", [0.45, 0.7])
def test_sigmoids_spend_the_budget(model, slope, flops):
    asked = [prompt((1, 1))]
    spent = schedule._spending(model, asked, 2)
    share = schedule.sigmoid(slope, 0.05, spent, flops)
    assert spent(share) == pytest.approx(flops, abs=1e-4)
    counts = schedule.counted(share, N, LAYERS, 2)
    assert counts[:2] == [N, N]
    assert all(a >= b for a, b in itertools.pairwise(counts))
    with ts.sieve(model, schedule.scheduled(ts.get_method("fastv"), counts)) as s, torch.no_grad():
        model(**asked[0])
    assert s.last.layer_tokens == counts
    text = asked[0]["attention_mask"].sum(1).float().mean() - N
    plan = schedule.scheduled(ts.get_method("fastv"), counts)
    cost = ts.cost(model, plan, tokens=N, text=float(text))
    assert cost.flops / cost.full_flops == pytest.approx(flops, abs=0.01)


class Sampler:
    """Stands in for optuna: hands out given parameters and remembers what came of them."""

    def __init__(self, pairs):
        self.pairs, self.told = iter(pairs), []
        self.samplers = SimpleNamespace(GPSampler=lambda seed: None)

    def create_study(self, direction, sampler):
        assert direction == "maximize"
        return self

    def ask(self):
        given = dict(zip(("slope", "low"), next(self.pairs), strict=True))
        return SimpleNamespace(suggest_float=lambda name, *_, **__: given[name])

    def tell(self, trial, value):
        self.told.append(value)


def test_psigmoid_keeps_the_best_schedule(model, monkeypatch):
    asked = answered(model, [prompt((1,) * 4)])
    tried = Sampler([(1.0, 0.9), (64.0, 0.0), (8.0, 0.5)])
    monkeypatch.setitem(sys.modules, "optuna", tried)
    found = schedule.psigmoid(model, asked, 0.6, trials=3)
    with ts.sieve(model, found):
        assert quality(model, asked).likelihood == pytest.approx(max(tried.told), abs=1e-6)
    assert len(set(tried.told)) == 3
    with pytest.raises(ValueError, match=r"flops=0\.2 cannot be met from layer 2 on; the least is 0\.\d+"):
        schedule.psigmoid(model, asked, 0.2)


def test_psigmoid_needs_optuna(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"in the checkout of tokensieve: pip install '\.\[search\]'"):
        schedule.psigmoid(model, [prompt((1,))], 0.6)


def test_psigmoid_with_optuna(model):
    optuna = pytest.importorskip("optuna")
    log, lines = logging.getLogger("optuna"), []
    handler = logging.Handler()
    handler.emit = lines.append
    log.addHandler(handler)
    optuna.logging.set_verbosity(optuna.logging.INFO)
    asked = answered(model, [prompt((1,) * 4)])
    a, b = (schedule.psigmoid(model, asked, 0.6, trials=6, seed=3) for _ in range(2))
    assert a == b
    assert not lines
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    log.removeHandler(handler)
    gentle = schedule.sigmoid(1.0, 0.3, schedule._spending(model, asked, 2), 0.6)
    constant = schedule.scheduled(ts.get_method("fastv"), schedule.counted(gentle, N, LAYERS, 2))
    text = int(asked[0]["attention_mask"].sum(1).float().mean()) - N
    assert ts.cost(model, a, N, text).flops == pytest.approx(ts.cost(model, constant, N, text).flops, rel=0.02)


@pytest.mark.parametrize("flops", [0.4, 0.6, 0.9, 1.0])
def test_the_linear_schedule_falls_by_equal_steps_and_spends_the_budget(model, flops):
    asked = answered(model, [prompt((1,) * 4)])
    plan = schedule.linear(model, asked, flops, first=1)
    with ts.sieve(model, plan) as s, torch.no_grad():
        model(**prompt((1,) * 4))
    counts = s.last.layer_tokens
    above = [n for n in counts if n > 1]
    assert np.ptp(np.diff(above)) <= 1  # rounding
    text = int(asked[0]["attention_mask"].sum(1).float().mean()) - N
    cost = ts.cost(model, plan, N, text)
    assert cost.flops / cost.full_flops == pytest.approx(flops, abs=0.02)
    with pytest.raises(ValueError, match=r"flops=0\.1 cannot be met from layer 1 on"):
        schedule.linear(model, asked, 0.1, first=1)


# ---- stages by change


def test_change_is_what_the_layers_do_to_visual_tokens(model):
    batches = [prompt((1, 1)), prompt((2,), seed=4)]
    got = stages.change(model, batches)
    want, tokens = np.zeros(6), 0
    for batch in batches:
        with torch.no_grad():
            states = model(**batch, output_hidden_states=True).hidden_states
        for row, ids in enumerate(batch["input_ids"]):
            for i in (ids == IMAGE).nonzero()[:, 0].tolist():
                u = [unit(state[row, i]) for state in states]
                want += [1 - float(a @ b) for a, b in itertools.pairwise(u)]
                tokens += 1
    # The last entry of hidden_states is normalised: the last layer's change cannot be read off it.
    np.testing.assert_allclose(got[:-1].numpy(), want[:-1] / tokens, atol=1e-6)
    assert 0 < got[-1] < 2


def test_stages_stand_behind_the_largest_changes():
    change = torch.tensor([9.0, 0.1, 0.5, 0.2, 0.1, 0.4, 0.3, 0.2, 0.6])
    assert stages.peaks(change, 1, 2) == [3]
    assert stages.peaks(change, 2, 2) == [3, 6]
    assert stages.peaks(change, 2, 1) == [1, 3]
    # No peak is left that a stage can stand behind: the largest slope is next.
    assert stages.peaks(change, 3, 2) == [3, 6, 7]
    with pytest.raises(ValueError, match="count=8 stages do not fit"):
        stages.peaks(change, 8, 2)


@pytest.mark.parametrize("depth", [3, LAYERS])
def test_btp_is_calibrated(depth):
    model, batches = llava(layers=depth), [prompt((1, 1))]
    assert stages.btp(model, answered(model, batches), 0.6) == stages.btp(model, batches, 0.6)
    found = stages.btp(model, batches, 0.6)
    assert [s.layer for s in found.stages] == stages.peaks(stages.change(model, batches), min(4, depth - 1), 1)
    assert [s.method.balance for s in found.stages] == ([0.3, 0.9, 1.0, 1.0] if depth == 6 else [0.3, 1.0])
    with ts.sieve(model, found) as s, torch.no_grad():
        model(**batches[0])
    assert sum(s.last.layer_tokens) / depth == pytest.approx(0.6 * 64, abs=0.7)


# ---- AdaToken-3D: stages by flow


def eager_flow(model, batch):
    """(depth, images, 64): the mean over heads and text rows behind the image, from the model's own attention maps."""
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = model(**batch, output_attentions=True).attentions
    finally:
        model.set_attn_implementation("sdpa")
    out = []
    for a in maps:
        rows = []
        for row, ids in enumerate(batch["input_ids"]):
            seen = (ids == IMAGE).nonzero()[:, 0]
            text = [i for i in range(int(seen[0]), len(ids)) if ids[i] != IMAGE]
            rows += [a[row][:, text][:, :, group].mean((0, 1)) for group in seen.split(N)]
        out.append(torch.stack(rows))
    return torch.stack(out)


def test_flows_are_those_of_the_attention_maps(model):
    batches = [prompt((1, 1)), prompt((2,), seed=4)]
    want = torch.cat([eager_flow(model, b) for b in batches], 1)
    got = stages.flows(model, batches)
    torch.testing.assert_close(got[:-1], want[:-1], atol=1e-5, rtol=1e-4)
    assert torch.equal(stages.flows(model, answered(model, batches)), got)
    assert torch.equal(got[-1], got[-2])


def test_needed_is_the_fewest_tokens_that_carry_the_flow():
    flow = torch.tensor([[0.5, 0.1, 0.1, 0.3], [1.0, 0.0, 0.0, 0.0], [0.25] * 4])
    assert stages.needed(flow, 0.8).tolist() == [2, 1, 4]
    assert stages.needed(flow, 0.5).tolist() == [1, 1, 2]
    assert stages.needed(flow, 1.0).tolist() == [4, 1, 4]
    random = torch.rand(5, 40, generator=torch.Generator().manual_seed(0)) ** 3
    for row, count in zip(random, stages.needed(random, 0.9).tolist(), strict=True):
        ranked = sorted(row.tolist(), reverse=True)
        assert sum(ranked[: count - 1]) < 0.9 * sum(ranked) <= sum(ranked[:count]) + 1e-6


def test_adatoken3d_keeps_what_any_later_layer_needs(model):
    batches = [prompt((1, 1)), prompt((2,), seed=4)]
    flow = stages.flows(model, batches)
    found = stages.adatoken3d(model, batches, cover=0.8)
    with ts.sieve(model, found) as s, torch.no_grad():
        model(**batches[0])
    need = [int(np.ceil(np.mean([int(stages.needed(f, 0.8)) for f in layer]))) for layer in flow]
    want = [N, N] + [max(need[i:]) for i in range(2, LAYERS)]
    assert s.last.layer_tokens == want
    assert want[-1] < N
    assert all(
        a <= b
        for a, b in zip(want, ts_layers(model, stages.adatoken3d(model, batches, cover=0.95), batches[0]), strict=True)
    )
    with pytest.raises(ValueError, match=r"cover=0; it must be a number above 0, at most 1"):
        stages.adatoken3d(model, batches, cover=0)


def ts_layers(model, plan, batch):
    with ts.sieve(model, plan) as s, torch.no_grad():
        model(**batch)
    return s.last.layer_tokens
