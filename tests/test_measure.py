"""What the bench measures: tokens, FLOPs, seconds and bytes, each of what its name says."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import tokensieve as ts
from tests.asking import FakeProcessor, Inputs, fake_subject, noise
from tokensieve.bench import clocks
from tokensieve.bench import floor as flooring
from tokensieve.bench.compat import tiny_models
from tokensieve.bench.compat.prompts import Prompts
from tokensieve.bench.data import Sample, from_testbed
from tokensieve.bench.measure import encoded, kv_bytes, measure
from tokensieve.bench.subject import Subject, prepare
from tokensieve.sites.cost import merged
from tokensieve.sites.model.structure import find


@pytest.fixture(scope="module")
def subject():
    return fake_subject()


@pytest.fixture
def samples():
    return noise(4)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen2_vl", "internvl", "idefics3", "gemma3", "mistral3"])
def test_the_encoder_is_counted_by_its_own_tokens(name):
    model = tiny_models.model(name, "eager")
    given, anatomy = Prompts(model).batch((1,)), find(model)
    with FlopCounterMode(display=False, depth=None) as counter, torch.no_grad(), encoded(anatomy.vision) as shapes:
        model(**given)
    tokens, rows = int((given["input_ids"] == tiny_models.IMAGE).sum()), sum(torch.Size(s).numel() for s in shapes)
    assert tokens * merged(anatomy) == rows
    path = next(n for n, m in model.named_modules() if m is anatomy.vision.layers[-1])  # no window
    counted = [v for k, v in counter.get_flop_counts().items() if k.endswith("." + path)]
    patches = [rows] if len(shapes[0]) == 1 else [shapes[0][1]] * shapes[0][0]
    cost = ts.cost(model, ts.stage("uniform", keep=1.0), tokens, patches=patches)
    block = cost.full_encoder_flops / len(anatomy.vision.layers)
    whole = sum(counted[0].values())
    assert block == pytest.approx(whole, rel=0.01)


def test_tokens_are_those_of_a_prompt_not_of_a_tile():
    model = tiny_models.model("idefics3")
    prompts = Prompts(model)

    class Tiles(FakeProcessor):
        def __call__(self, images, text, padding, return_tensors):
            return Inputs(prompts.batch((1,) * len(images)))

    tiled = Subject("tiled", model, Tiles())
    picture = Image.new("RGB", (8, 8))
    batches = prepare(tiled, [Sample(picture, "what ?", name=str(i)) for i in range(3)], 2)
    tiles = 2
    row, full = measure(tiled, batches, None, None, 2, 0)
    ids = batches[0].inputs["input_ids"]
    whole = int((ids[0] == tiny_models.IMAGE).sum())
    assert row["layer_tokens"] == [whole] * 4
    for method, want in (("uniform", [3 * tiles] * 4), ("fastv", [whole, whole, 3 * tiles, 3 * tiles])):
        kept, _ = measure(tiled, batches, ts.Plan(ts.stage(method, keep=3)), full, 2, 0)
        assert kept["layer_tokens"] == want
        assert kept["flops_share"] < row["flops_share"] == 1


def test_readings_wait_for_the_models_device_and_no_other(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    clocks.now(torch.device("cpu"))
    assert not waited
    clocks.now(torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)]


def test_selection_holds_all_that_the_sieve_counted(subject, samples):
    """Also what it does between the encoder and the language model."""
    inputs = subject.inputs(samples[:2])
    watch, sieve = clocks.Watchmaker(subject.anatomy), ts.sieve(subject.model, "fastervlm", keep=16)
    with watch.attached(), sieve, watch.watching(sieve) as split:
        subject.ask(inputs, 2)
    assert split.selection == sieve.seconds > 0


def test_memory_is_measured_warm(subject, samples, monkeypatch):
    kept = []

    def lazily(inputs, new_tokens):
        if not kept:
            kept.append(torch.ones(40_000_000))  # 160 MB
        passing = torch.ones(15_000_000)  # 60 MB
        out = ask(inputs, new_tokens)
        return out if len(passing) else None

    ask = subject.ask
    monkeypatch.setattr(subject, "ask", lazily)
    row, _ = measure(subject, prepare(subject, samples, 2), None, None, 2, 0)
    if row["peak_bytes"] is None:
        pytest.skip("no /proc here")
    assert 50e6 < row["peak_bytes"] < 120e6


@pytest.mark.parametrize("name", ["fastervlm", "fastv"])
def test_overhead_is_of_the_same_prompts_in_turns(subject, samples, monkeypatch, name):
    """A machine that slows down meets both alike."""
    turns = []

    def slower(what, batch, seconds):
        turns.append((what, id(batch)))
        return seconds * 2 ** (len(turns) // 2)

    def prefill(subject, batch, plan, seed):
        free = any(isinstance(s.method, flooring.Free) for s in plan.stages)
        split = clocks.Split(prefill=slower("floor" if free else "ours", batch, 1.0 if free else 1.2))
        return split, [16.0] * len(subject.anatomy.language.layers)

    monkeypatch.setattr(flooring, "_prefill", prefill)
    monkeypatch.setattr(flooring, "_short", lambda subject, batch, tokens: slower("floor", batch, 1.0))
    batches = prepare(subject, samples, 2)
    _, full = measure(subject, batches, None, None, 2, 0)
    row, _ = measure(subject, batches, ts.Plan(ts.stage(name, keep=16)), full, 2, 0)
    assert [what for what, _ in turns] == ["ours", *["floor", "ours"] * 4]
    assert len({batch for _, batch in turns}) == 1
    assert row["ms_floor"] == 8000  # the first of 2, 4, 8 and 16 seconds warms up
    assert row["overhead"] == 1.2


def test_bytes_of_a_cache_are_those_it_holds_on_to():
    whole = torch.zeros(1, 2, 100, 8)
    layers = [SimpleNamespace(keys=whole[:, :, :10], values=torch.zeros(1, 2, 10, 8)), SimpleNamespace(keys=whole)]
    assert kv_bytes(SimpleNamespace(layers=layers)) == 4 * (1600 + 160)


@pytest.mark.parametrize(("count", "held"), [(3, [1, 1, 1]), (7, [2, 2, 1, 1, 1]), (10, [2] * 5)])
def test_a_limit_of_questions_is_the_limit(count, held):
    samples = from_testbed(count, 0)
    kinds = [s.kind for s in samples]
    assert len(samples) == count
    assert [kinds.count(k) for k in dict.fromkeys(kinds)] == held


def test_peak_memory_sees_a_large_allocation():
    with clocks.Peak(torch.device("cpu")) as peak:
        torch.ones(40_000_000)  # 160 MB
    if peak.bytes is None:
        pytest.skip("no /proc here")
    assert peak.bytes > 100e6
