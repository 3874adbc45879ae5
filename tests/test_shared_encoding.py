"""What the encoder says is computed once an image for all plans, and each is told what it would have heard."""

import pytest
import torch

import tokensieve as ts
from tests.models import llava, prompt
from tokensieve.bench.compat.check import Case
from tokensieve.sites.model.structure import find
from tokensieve.sites.visual.encoder_listener import SHARED
from tokensieve.sites.visual.shared_encoding import SharedEncoding

GREEDY = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
HANDOFF = ("visionzip", "fastervlm", "divprune", "vtc-cls", "random", "hiprune")
PLANS = [*(ts.plan(name, 16) for name in (*HANDOFF, "fastv")), ts.plan("snapkv", 40)]


@pytest.fixture(scope="module")
def model():
    return llava()


def said(model, inputs, plan=None):
    """The logits of an answer, and the trace."""
    if plan is None:
        return torch.stack(model.generate(**inputs, **GREEDY).logits), None
    with ts.sieve(model, plan, seed=1) as sieve:
        return torch.stack(model.generate(**inputs, **GREEDY).logits), sieve.last


def counted(model):
    """How often each picture passes the encoder."""
    rows, root = [], find(model).vision.root
    handle = root.register_forward_pre_hook(
        lambda m, args, kwargs: rows.append(len(kwargs.get("pixel_values", args[0] if args else None))),
        with_kwargs=True,
    )
    return rows, handle


def test_each_plan_answers_as_without_sharing_and_each_picture_is_encoded_once(model):
    batches = [prompt((1, 2)), prompt((1, 1, 0), seed=4)]
    expected = [[said(model, inputs, plan) for plan in (None, *PLANS)] for inputs in batches]
    rows, handle = counted(model)
    with SharedEncoding(model, PLANS) as shared:
        for inputs, known in zip(batches, expected, strict=True):
            for plan, (logits, trace) in zip((None, *PLANS), known, strict=True):
                ours, last = said(model, inputs, plan)
                assert torch.equal(ours, logits)
                if plan is not None and trace.stages:
                    assert torch.equal(last.stages[0].reduction.kept, trace.stages[0].reduction.kept)
            shared.forget()
    handle.remove()
    assert rows == [3, 2]
    assert SHARED not in find(model).base.__dict__
    assert "get_image_features" not in find(model).base.__dict__


def test_plans_that_come_first_encode_for_the_others(model):
    inputs = prompt((1,))
    plain, _ = said(model, inputs)
    alone, _ = said(model, inputs, PLANS[1])
    rows, handle = counted(model)
    with SharedEncoding(model, PLANS):
        assert torch.equal(said(model, inputs, PLANS[1])[0], alone)
        assert torch.equal(said(model, inputs)[0], plain)
    handle.remove()
    assert rows == [1]


def test_plans_inside_the_encoder_run_their_own(model):
    tome, inputs = ts.plan("tome", 16), prompt((1,))
    alone, _ = said(model, inputs, tome)
    rows, handle = counted(model)
    with SharedEncoding(model, [*PLANS, tome]):
        plain, _ = said(model, inputs)
        assert torch.equal(said(model, inputs, tome)[0], alone)
        assert torch.equal(said(model, inputs)[0], plain)
    handle.remove()
    assert rows == [1, 1]


def test_listening_is_timed_for_the_plan_that_asks_and_the_encoder_by_itself(model):
    inputs = prompt((1,))
    with SharedEncoding(model, [ts.plan("fastervlm", 8), ts.plan("random", 8)]) as shared:
        said(model, inputs)
        assert shared.seconds > 0
        heard = {needs: seconds for needs, (_, seconds) in shared._calls[0].known.items()}
        assert max(heard.values()) > 0
        with ts.sieve(model, "fastervlm", keep=8) as sieve:
            sieve.timed = True
            model.generate(**inputs, **GREEDY)
            assert sieve.seconds > max(heard.values())


def test_a_plan_that_was_not_named_is_refused(model):
    with (
        SharedEncoding(model, [ts.plan("random", 8)]),
        ts.sieve(model, "fastervlm", keep=8),
        pytest.raises(ValueError, match="name all of them"),
    ):
        model.generate(**prompt((1,)), **GREEDY)
    with (
        SharedEncoding(model, PLANS),
        pytest.raises(RuntimeError, match="shared already"),
        SharedEncoding(model, PLANS),
    ):
        pass


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_next", "llava_onevision", "internvl", "idefics3"])
def test_other_architectures(name):
    case = Case(name)
    model, given = case.model, case.inputs
    plans = [ts.plan(m, 4) for m in ("divprune", "random")]
    expected = [said(model, given, plan)[0] for plan in (None, *plans)]
    with SharedEncoding(model, plans):
        for plan, logits in zip((None, *plans), expected, strict=True):
            assert torch.equal(said(model, given, plan)[0], logits)
