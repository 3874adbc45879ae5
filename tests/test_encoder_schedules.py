"""When tokens leave an encoder, and what is refused."""

import pytest

import tokensieve as ts
from tests.tiny_encoders import made


@pytest.mark.parametrize(
    ("where", "tokens"),
    [
        ({"r": 5}, [64, 59, 54, 49]),
        ({"r": 5, "between": False}, [64, 59, 54, 49]),
        ({"r": 6, "schedule": "decreasing"}, [64, 52, 44, 40]),
        ({"r": 5, "schedule": "once"}, [64, 44, 44, 44]),
        ({"keep": 16, "schedule": "once"}, [64, 16, 16, 16]),
        ({"keep": 16, "schedule": "decreasing"}, [64, 45, 30, 21]),
        ({"keep": 16, "layers": (0, 2)}, [64, 40, 40, 16]),
        ({"r": 40}, [64, 32, 16, 8]),
    ],
)
def test_tokens_leave_by_the_schedule(where, tokens):
    vit = made("ViTModel")
    with ts.sieve(vit.model, "tome", **where) as s:
        vit()
    assert [n - 1 for n in s.last.layer_tokens] == tokens


def test_a_share_of_the_flops_is_reached_and_not_exceeded():
    vit = made("ViTModel")
    for method, schedule in (("tome", "constant"), ("random", "constant"), ("random", "once")):
        plan = ts.Plan(ts.stage(method, ts.Keep(flops=0.7), site="encoder", schedule=schedule))
        share = ts.cost(vit.model, plan, tokens=64).share
        assert 0.68 < share <= 0.7
        with ts.sieve(vit.model, plan) as s:
            vit()
        assert s.last.stages[0].reduction.m == ts.cost(vit.model, plan, tokens=64).final
    said = r"one token of 64 at the end still costs .*schedule='decreasing' or 'once'"
    with ts.sieve(vit.model, "random", keep=ts.Keep(flops=0.05)), pytest.raises(ValueError, match=said):
        vit()


def test_methods_that_score_stand_in_an_encoder_without_being_told():
    vit = made("ViTModel")
    for name in ("fastervlm", "divprune", "random", "uniform", "pool"):
        with ts.sieve(vit.model, name, keep=16) as s:
            vit()
        assert s.last.stages[0].stage.site == "encoder"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"keep": 8, "r": 2}, "give one of them"),
        ({"r": 0}, "an int of at least 1"),
        ({"keep": 8, "schedule": "sudden"}, "'constant', 'decreasing', 'once'"),
        ({"keep": 8, "readout": "whole"}, "'restored', 'merged'"),
        ({"keep": 8, "between": "yes"}, "True, False or None"),
        ({"keep": ts.Keep(average=8)}, "the others are of the language model"),
    ],
)
def test_bad_settings_are_refused(where, said):
    with pytest.raises(ValueError, match=said):
        ts.sieve(made("ViTModel").model, "tome", **where)


def test_an_encoders_keywords_go_with_its_site():
    with pytest.raises(ValueError, match="schedule goes with site='encoder'; this stage stands at site='handoff'"):
        ts.stage("divprune", 0.5, schedule="once")
    with pytest.raises(ValueError, match="r goes with site='encoder'"):
        ts.stage("divprune", ts.Keep(r=3))
