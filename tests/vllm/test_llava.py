"""The packaged LLaVA in vLLM answers as `tokensieve.sieve` does in transformers, plan by plan, in one server."""

import pytest
import torch

import tokensieve as ts
from tests.vllm.serving import Expected, differing, engine, expected, kept, questions, said
from tokensieve import testbed
from tokensieve.integrations.vllm.anatomies import anatomy_of, tower_of
from tokensieve.integrations.vllm.refusals import served_methods

FEW = ("divprune", "fastervlm", "visionzip")
DRAWN = ("random", "token-correlation")
"""Methods that draw: their counts are compared."""
FRAGILE = ("vispruner",)
"""It compares tokens at even and odd ranks of attention: where two swap, all behind them do. In transformers noise of 1e-6 on the
pixels changes a third of what it keeps; its counts are compared."""


@pytest.fixture(scope="module")
def asked():
    return questions()


@pytest.fixture(scope="module")
def plain():
    return testbed.load()


@pytest.fixture(scope="module")
def llm():
    with engine(testbed.path(), {}) as made:
        yield made


def every():
    config = testbed.load()[0].config
    return [m for m in served_methods(tower_of(config, anatomy_of(config))) if m not in (*FEW, *DRAWN, *FRAGILE)]


def same(llm, plain, asked, method, keep, positions):
    stage = {"method": method, "keep": keep, "positions": positions, "site": "handoff"}
    wrong, close = differing(said(llm, asked, **stage), expected(*plain, asked, **stage))
    print(
        f"{method} at {keep}, {positions}: {len(asked) - len(wrong) - len(close)} of {len(asked)} alike; {close or ''}"
    )
    assert wrong == []


def test_without_a_plan_it_is_the_model(llm, plain, asked):
    wrong, close = differing(said(llm, asked), expected(*plain, asked))
    assert (wrong, close) == ([], [])


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("method", FEW)
def test_answers_are_those_of_the_sieve(llm, plain, asked, method, positions):
    same(llm, plain, asked, method, 64, positions)


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_every_method(llm, plain, asked, positions):
    failed = {}
    for method in every():
        try:
            same(llm, plain, asked, method, 64, positions)
        except AssertionError as error:
            failed[method] = str(error)
    assert failed == {}


def test_the_same_tokens_are_kept(llm, plain, asked):
    model, processor = plain
    pictures = {id(p.images[0]): p for p in {p.images[0].tobytes(): p for p in asked}.values()}
    few = list(pictures.values())
    for method in FEW:
        with ts.sieve(model, method, keep=48) as sieve:
            inputs = processor(
                text=[p.text for p in few], images=[p.images[0] for p in few], padding=True, return_tensors="pt"
            )
            with torch.no_grad():
                model(**inputs)
            wanted = sieve.last.stages[0].reduction.kept.tolist()
        for prompt, places in zip(few, wanted, strict=True):
            said(llm, [prompt], method=method, keep=48)
            assert kept(llm) == [places], method


def test_drawn_tokens_are_as_many(llm, asked):
    for method in (*DRAWN, *FRAGILE):
        said(llm, asked[:1], method=method, keep=40)
        assert [len(places) for places in kept(llm)] == [40]


def test_an_answer_as_good_as_another_is_told_apart():
    wanted = [Expected([1, 2], [3.0, 1e-5]), Expected([1, 2], [3.0, 1e-5])]
    wrong, close = differing([[1, 3], [4, 2]], wanted)
    assert (len(wrong), len(close)) == (1, 1)
