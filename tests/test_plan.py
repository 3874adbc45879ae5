"""Plan, stages, the registry and the public names."""

import pytest

import tokensieve as ts
from tokensieve.catalog import table


def test_functions_keep_their_names_after_the_packages_are_imported():
    assert ts.list_methods()
    assert ts.list_methods(site="handoff")
    assert ts.stage("tome", keep=0.5).keep == 0.5


def test_every_method_of_the_first_release_is_there():
    wanted = {
        "random", "uniform", "pool", "fastv", "tome", "visionzip", "fastervlm", "vtc-cls", "hiprune", "divprune", "dart",
        "sparsevlm", "token-transforming", "atc", "ficoco",
    }  # fmt: skip
    assert wanted <= set(ts.list_methods())


def test_each_system_of_the_first_release_has_an_entry():
    by_entry = {
        380: "visionzip",
        57: "fastervlm",
        6: "vtc-cls",
        27: "hiprune",
        67: "divprune",
        279: "dart",
        270: "sparsevlm",
    }
    by_entry |= {62: "token-transforming", 345: "atc", 357: "ficoco"}
    for system, name in by_entry.items():
        assert name in table.entries(system)
    assert len(table.systems()) == 400
    assert [s.id for s in table.systems()] == list(range(400))


def test_a_plan_goes_through_json(tmp_path):
    plan = ts.Plan(
        [
            ts.stage("fastv", keep=ts.Keep(average=128), layers=1, positions="compact"),
            ts.stage("tome", keep=0.5, layers=(0, 2)),
            ts.stage("visionzip", keep=64, contextual=0.25),
        ]
    )
    assert [s.site for s in plan.stages] == ["encoder", "handoff", "prefill"]
    plan.save(tmp_path / "plan.json")
    assert ts.Plan.load(tmp_path / "plan.json") == plan
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", ts.list_methods())
def test_every_method_goes_through_json(name):
    stage = ts.stage(name, keep=8)
    assert ts.Stage.from_json(stage.to_json()) == stage


def test_plans_refuse_what_makes_no_sense(tmp_path):
    with pytest.raises(ValueError, match="one encoder stage"):
        ts.Plan([ts.stage("tome", keep=8), ts.stage("tome", keep=4)])
    with pytest.raises(ValueError, match="not a plan"):
        ts.Plan.from_json({"stages": []})
    with pytest.raises(ValueError, match="unknown entries"):
        ts.Stage.from_json({**ts.stage("tome", keep=8).to_json(), "colour": 1})
    with pytest.raises(ValueError, match="no option temperature; its options are"):
        ts.stage("visionzip", keep=8, temperature=2)
    with pytest.raises(ValueError, match="one layer"):
        ts.stage("fastv", keep=8, layers=(1, 2))


@pytest.mark.parametrize("keep", [0, -1, float("nan"), 1.5, "64", None, True, 0.0])
def test_budgets_outside_their_range_are_refused(keep):
    with pytest.raises(ValueError, match=r"keep=.*int of at least 1 .tokens. or a float in \(0, 1\]"):
        ts.stage("random", keep=keep)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one"),
        ({"tokens": 4, "share": 0.5}, "exactly one"),
        ({"tokens": 0}, "tokens=0"),
        ({"share": 2.0}, "share=2.0"),
    ],
)
def test_keep_has_one_unit(given, message):
    with pytest.raises(ValueError, match=message):
        ts.Keep(**given)


def test_a_name_cannot_be_taken_twice():
    with pytest.raises(ValueError, match="is taken by"):
        ts.register_method("random")(type("Other", (ts.Method,), {}))
