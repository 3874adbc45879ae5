"""What a server and a request of vLLM may ask for, told with no vLLM at hand: plans, refusals, counts and hashes."""

import json

import pytest

import tokensieve as ts
from tokensieve.core.stage import Stage
from tokensieve.integrations.vllm import refusals, stages
from tokensieve.integrations.vllm.anatomies import anatomy_of, kinds, tower_of
from tokensieve.integrations.vllm.refusals import Tower, Unserved, served_methods, why_not
from tokensieve.integrations.vllm.server import Server
from tokensieve.integrations.vllm.stages import count, digest, of_request, of_server

CLIP = Tower(6, 5, True)


def test_a_server_names_a_method_or_a_plan(tmp_path):
    ts.plan("visionzip", 64, contextual=0.5).save(tmp_path / "plan.json")
    named = of_server({"method": "visionzip", "keep": 64, "contextual": 0.5})
    assert named == of_server({"plan": str(tmp_path / "plan.json")})
    assert named == of_server({"plan": json.loads((tmp_path / "plan.json").read_text())})
    assert (named.method.name, named.keep, named.positions) == ("visionzip", 64, "original")


def test_a_server_may_leave_it_to_requests():
    assert of_server({}) is None
    assert of_server({"method": "divprune", "keep": 1.0}) is None


BAD = {
    "text": ("64 tokens", "write {"),
    "no method": ({"keep": 64}, "method=None"),
    "no budget": ({"method": "divprune"}, "keep is missing"),
    "unknown method": ({"method": "divprun", "keep": 64}, "did you mean divprune"),
    "unknown option": ({"method": "divprune", "keep": 64, "alpha": 1}, "divprune has no option alpha"),
    "an option out of range": ({"method": "visionzip", "keep": 64, "contextual": 2.0}, "contextual=2.0"),
    "none": ({"method": "divprune", "keep": 0}, "keep=0"),
    "fewer than none": ({"method": "divprune", "keep": -3}, "keep=-3"),
    "no number": ({"method": "divprune", "keep": float("nan")}, "keep=nan"),
    "more than all": ({"method": "divprune", "keep": 1.5}, "keep=1.5"),
    "a word": ({"method": "divprune", "keep": "half"}, "keep='half'"),
    "a missing file": ({"plan": "nowhere.json"}, "nowhere.json.*No such file"),
    "no plan": ({"plan": {"format": "x"}}, "not a plan"),
    "a plan and more": ({"plan": "plan.json", "keep": 3}, "a plan says all of it"),
    "an unknown unit": ({"method": "divprune", "keep": {"Keep": {"words": 3}}}, "words"),
    "a policy": ({"method": "divprune", "keep": 64, "positions": "none"}, "positions='none'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_told_by_name(name):
    given, said = BAD[name]
    with pytest.raises(ValueError, match=said):
        of_server(given)


def test_a_file_that_is_no_json(tmp_path):
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json"):
        of_server({"plan": str(tmp_path / "plan.json")})


def test_a_request_says_what_is_other_than_the_servers():
    server = of_server({"method": "visionzip", "keep": 64, "contextual": 0.5, "positions": "compact"})
    assert of_request(server, {"size": 3}) is server
    fewer = of_request(server, {"sieve_keep": 16})
    assert (fewer.keep, fewer.method, fewer.positions) == (16, server.method, "compact")
    other = of_request(server, {"sieve_method": "divprune"})
    assert (other.method.name, other.keep, other.positions) == ("divprune", 64, "compact")
    assert of_request(server, {"sieve_keep": 1.0}) is None
    alone = of_request(None, {"sieve_method": "divprune", "sieve_keep": 0.5})
    assert (alone.method.name, alone.keep) == ("divprune", 0.5)
    with pytest.raises(ValueError, match="a plan is the server's"):
        of_request(server, {"sieve_plan": "/etc/passwd"})
    with pytest.raises(ValueError, match="method=None"):
        of_request(None, {"sieve_keep": 3})


SITES = {
    "fastv": "site='prefill'.*one block table",
    "snapkv": "site='cache'.*one block table",
    "tome": "site='encoder'",
    "visiondrop": 'site=\'prefill\'.*{"site": "handoff"}',
}


@pytest.mark.parametrize("method", SITES)
def test_stages_elsewhere_are_refused_with_the_reason(method):
    with pytest.raises(Unserved, match=SITES[method]):
        of_server({"method": method, "keep": 32})


def refusal(method, keep=32, tower=None, **options):
    return why_not(ts.plan(method, keep, site="handoff", **options), tower) or ""


def test_counts_that_the_encoder_decides_are_refused():
    assert "chooses how many tokens stay" in refusal("prumerge")
    assert refusal("prumerge", plus=True) == ""
    assert "shares a budget among the pictures" in refusal("divprune", ts.Keep(tokens=64, per="prompt"))
    assert "depends on the text" in refusal("divprune", ts.Keep(flops=0.3))


@pytest.mark.parametrize("method", ["cdpruner", "simignore", "mmtok", "text-attention", "greedyprune"])
def test_methods_that_read_text_are_refused(method):
    assert f"{method} reads the text" in refusal(method)


def test_layers_that_are_not_built_are_refused():
    assert refusal("fastervlm", tower=CLIP, encoder_layer=-2) == ""
    assert "layer -1, which vLLM does not build: features leave the encoder behind layer -2" in refusal(
        "fastervlm", tower=CLIP, encoder_layer=-1
    )


def test_a_blind_encoder_serves_what_reads_features():
    blind = Tower(6, 5, True, "nobody looks")
    assert "nobody looks" in refusal("fastervlm", tower=blind)
    assert refusal("divprune", tower=blind) == ""
    assert "fastervlm" not in served_methods(blind)
    assert {"divprune", "uniform", "random"} <= set(served_methods(blind))


def test_the_way_out_is_named():
    assert "`tokensieve advise MODEL ... --runtime vllm` gives a plan that can be served" in refusal("trim")


def test_every_served_method_keeps_what_it_should():
    names = served_methods()
    assert {"divprune", "fastervlm", "visionzip", "uniform"} <= set(names)
    assert not {"trim", "prumerge", "cdpruner", "fastv", "snapkv"} & set(names)


def test_a_method_that_fails_is_found_before_it_is_served(monkeypatch):
    stage = of_server({"method": "divprune", "keep": 4})

    def failing(self, s, keep):
        raise RuntimeError("out of order")

    monkeypatch.setattr(type(stage.method), "reduce", failing)
    assert "divprune does not run on a picture alone: out of order" in refusal("divprune")


@pytest.mark.parametrize("n", [1, 7, 98, 576])
@pytest.mark.parametrize("keep", [1, 64, 0.25, 1.0, ts.Keep(average=40), ts.Keep(share=0.5), ts.Keep(tokens=9)])
def test_counts_are_those_of_the_budget(n, keep):
    stage = Stage(ts.get_method("divprune"), keep)
    direct = {ts.Keep(average=40): 40, ts.Keep(share=0.5): 0.5, ts.Keep(tokens=9): 9}.get(keep, keep)
    wanted = min(n, direct) if isinstance(direct, int) else max(1, int(n * direct + 0.5))
    assert count(stage, n) == wanted


def test_no_stage_keeps_all():
    assert count(None, 576) == 576


def test_plans_are_told_apart_in_caches():
    made = [
        of_server({"method": "divprune", "keep": 64}),
        of_server({"method": "divprune", "keep": 65}),
        of_server({"method": "divprune", "keep": 64, "positions": "compact"}),
        of_server({"method": "fastervlm", "keep": 64}),
        of_server({"method": "fastervlm", "keep": 64, "encoder_layer": -3}),
    ]
    assert len({digest(s) for s in made}) == len(made)
    assert digest(made[0]) == digest(of_request(None, {"sieve_method": "divprune", "sieve_keep": 64}))
    assert len(digest(made[0])) == 16


# ---- what a model's config tells ------------------------------------------------------------------------------------------


def config():
    from tests.models import llava

    made = llava().config
    made.tokensieve = {"method": "divprune", "keep": 4}
    return made


def test_an_anatomy_is_read_off_a_config():
    from tests.models import llava

    model = llava()
    found = anatomy_of(model.config)
    assert all(p.is_meta for p in found.model.parameters())
    tower = tower_of(model.config, found)
    assert tower.depth == len(found.vision.layers)
    assert tower.built == found.feature_layer + 1
    assert tower.cls == found.vision.cls
    assert tower_of(model.config, None).blind
    assert model.config.model_type in kinds(model.config)


def test_a_server_reads_a_request_once():
    server = Server(config())
    given = {"sieve_method": "uniform", "sieve_keep": 3, "sieve_positions": "compact"}
    assert server.of_request(given) is server.of_request(dict(given))
    assert server.of_request({}) is server.stage


def test_positions_that_tables_cannot_give_are_refused():
    server = Server(config())
    with pytest.raises(Unserved, match="pass positions='compact'"):
        server.of_request({"sieve_method": "uniform", "sieve_keep": 3})


def test_rows_between_line_breaks_are_refused():
    assert "line breaks" in refusals.refused_model(config(), ["llava", "pixtral"])
    assert refusals.refused_model(config(), ["llava", "clip_vision_model"]) is None


def test_names_are_exported():
    import tokensieve.integrations.vllm as integration

    assert all(hasattr(integration, name) for name in integration.__all__)
    assert stages.KEY == "tokensieve"
