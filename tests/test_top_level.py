"""The top level: what it offers, what importing it loads, and names and paths of before 0.2."""

import ast
import importlib
import subprocess
import sys
import types
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import tokensieve as ts
from tokensieve import _moved
from tokensieve.core import old_hooks
from tokensieve.core.method import CacheMethod
from tokensieve.core.method_registry import METHODS
from tokensieve.core.plan import stages_of

ROOT = Path(__file__).parent.parent
GUIDE = '''
from dataclasses import dataclass

import tokensieve as ts
from tokensieve.parts import budget, merge, score, select
from tokensieve.needs import CLSAttention


@ts.register("half-as-before")
@dataclass(frozen=True)
class HalfHalf(ts.Method):
    """Half the budget by CLS attention, half spread evenly over the rest; every other token joins its nearest."""

    even: float = 0.5
    needs = (CLSAttention(-2),)

    def reduce(self, s: ts.Signals, keep) -> ts.Reduction:
        spread = budget.share(keep, self.even)
        salient = select.top(score.attention(s, self.needs[0]), keep - spread, s.valid)
        chosen = salient | select.evenly(spread, s.valid & ~salient)
        target, _ = merge.nearest(s.features, chosen)
        return ts.Reduction.merge(chosen, target.masked_fill(~s.valid, -1), s.weight)
'''
"""The method that the guide of 0.1 showed, as it stood there."""


def alone(code):
    """What a program says, in an interpreter of its own, where a warning of ours is an error."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_every_public_name_is_there_and_typed():
    tree = ast.parse((ROOT / "tokensieve/__init__.py").read_text(encoding="utf-8"))
    (block,) = (n for n in tree.body if isinstance(n, ast.If))
    typed = {(line.module.removeprefix("tokensieve."), n.name) for line in block.body for n in line.names}
    assert typed == {(home, name) for name, home in ts._HOMES.items()}
    assert set(ts.__all__) == {"__version__", *ts._HOMES}
    assert set(ts.__all__) <= set(dir(ts))
    for name in ts.__all__:
        assert getattr(ts, name) is not None
    with pytest.raises(AttributeError, match="'tokensieve' has no attribute 'sive'"):
        ts.sive  # noqa: B018


def test_subpackages_are_attributes():
    for name in ts._ROOMS:
        assert getattr(ts, name) is importlib.import_module(f"tokensieve.{name}")
    folders = {f.parent.name for f in (ROOT / "tokensieve").glob("*/__init__.py")}
    assert folders - {"cli"} == set(ts._ROOMS), "a subpackage that is no attribute"


def test_importing_loads_no_model_library():
    code = "import sys, tokensieve as ts; ts.__version__; dir(ts); print(*{'torch', 'numpy', 'transformers'} & set(sys.modules))"
    assert alone(code).stdout.strip() == ""


def test_listing_methods_loads_neither_models_nor_scipy():
    code = (
        "import sys, tokensieve as ts; ts.list_methods(); ts.get_method('atc'); import tokensieve.retrieval; "
        "print(*{'sklearn', 'scipy'} & set(sys.modules))"
    )
    assert alone(code).stdout.strip() == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("card", "method_card"),
        ("held_bytes", "cache_bytes"),
        ("make", "get_method"),
        ("method", "stage"),
        ("register", "register_method"),
        ("systems", "catalog.systems"),
    ],
)
def test_old_names_warn_and_work(old, new):
    with pytest.warns(DeprecationWarning, match=rf"^tokensieve\.{old} is now tokensieve\.{new}$") as seen:
        found = getattr(ts, old)
    assert seen[0].filename == __file__
    assert found is (ts.catalog.systems if old == "systems" else getattr(ts, new))


def test_methods_is_the_package_and_may_be_called_still():
    assert isinstance(ts.methods, types.ModuleType)
    with pytest.warns(DeprecationWarning, match=r"tokensieve\.methods\(\) is now tokensieve\.list_methods\(\)"):
        assert ts.methods(site="focus") == ts.list_methods(site="focus") == ["cmai", "corematching", "yopo"]


def test_methods_are_listed_by_pattern_site_and_family():
    assert ts.list_methods("mustdrop*") == ["mustdrop", "mustdrop-c", "mustdrop-l"]
    assert ts.list_methods("mustdrop*", site="cache") == ["mustdrop-c"]
    assert ts.list_methods(family="focus") == ["cmai", "yopo"]


ASKED = "import tokensieve as ts; plan = ts.plan"
BOUGHT = "from tokensieve.plan import plan as was, method, Stage"


@pytest.mark.parametrize("order", [(ASKED, BOUGHT), (BOUGHT, ASKED)])
def test_the_function_plan_stands_whatever_is_imported_first(order):
    code = "\n".join(
        [
            *order,
            "import tokensieve.plan",
            "assert ts.plan is plan is was is tokensieve.plan, ts.plan",
            "assert method is ts.stage and Stage is ts.Stage",
            "assert len(ts.plan('vscan', 64).stages) == 2",
            "assert ts.plan.plan('vscan', 64) == ts.plan('vscan', 64)",
        ]
    )
    done = alone(code)
    assert done.returncode == 0, done.stderr


def test_plan_of_the_module_plan_warns():
    with pytest.warns(DeprecationWarning, match=r"tokensieve\.plan\.plan is now tokensieve\.plan$"):
        assert ts.plan.plan("fastv", 8) == ts.plan("fastv", 8)


@pytest.mark.parametrize("old", _moved.MOVED)
def test_old_paths_lead_to_what_stands_at_the_new_one(old):
    new = importlib.import_module(f"tokensieve.{_moved.MOVED[old]}")
    assert not (ROOT / "tokensieve" / f"{old.replace('.', '/')}.py").exists()
    module = importlib.import_module(f"tokensieve.{old}")
    names = [n for n in vars(new) if not n.startswith("_") and f"{old}.{n}" not in {**_moved.MOVED, **_moved.RENAMED}]
    for name in names[:1]:
        with pytest.warns(DeprecationWarning, match=rf"^tokensieve\.{old}\.{name} is now tokensieve\.") as seen:
            assert getattr(module, name) is getattr(new, name)
        assert seen[0].filename == __file__
    with pytest.raises(AttributeError):
        module.nothing_of_this_name  # noqa: B018


@pytest.mark.parametrize("old", _moved.RENAMED)
def test_old_paths_of_what_is_called_otherwise(old):
    module, _, name = old.rpartition(".")
    with pytest.warns(
        DeprecationWarning, match=rf"^tokensieve\.{old} is now tokensieve\.{_moved.RENAMED[old]}$"
    ) as seen:
        assert callable(getattr(importlib.import_module(f"tokensieve.{module}"), name)) or name.isupper()
    assert seen[0].filename == __file__


@pytest.mark.parametrize("old", _moved.GONE)
def test_what_the_package_no_longer_carries_says_where_it_is(old):
    file = f"benchmarks/reference/{_moved.GONE[old]}.py"
    assert (ROOT / file).is_file()
    with pytest.raises(
        ImportError, match=rf"tokensieve\.{old} is no part of the package any more: {file} of the repository"
    ):
        exec(f"from tokensieve.{old} import Something")


def test_old_paths_are_attributes_where_they_were():
    with pytest.warns(DeprecationWarning, match="sites.anatomy.find is now"):
        assert ts.sites.anatomy.find is ts.sites.model.structure.find
    with pytest.warns(DeprecationWarning, match="search.heads.yopo is now"):
        assert ts.search.heads.yopo is ts.planner.heads.yopo
    with pytest.warns(DeprecationWarning, match="codec.Codec is now"):
        assert ts.codec.Codec is ts.retrieval.storage.VectorFormat
    with pytest.raises(AttributeError, match=r"'tokensieve\.sites' has no attribute 'nowhere'"):
        ts.sites.nowhere  # noqa: B018


def test_every_path_that_the_documentation_of_the_first_release_showed():
    code = """
from tokensieve.modules.contrast import chamfer, fit, in_batch, pad
from tokensieve.modules.crisp import Crisp
from tokensieve.modules.projection import Projection
from tokensieve.needs import CLSAttention
from tokensieve.retrieval import Index, Store, maxsim
from tokensieve.retrieval.encode import load
from tokensieve.retrieval.encode_head import Headed
from tokensieve.retrieval.fde import Fde
from tokensieve.retrieval.folder import Text
from tokensieve.retrieval.library import Library
from tokensieve.retrieval.recipe import Recipe
from tokensieve.retrieval.reduce import Frequencies, reduce
from tokensieve.retrieval.shards import Collection, Shards, mirror
from tokensieve.search import schedule, stages
from tokensieve.search.heads import yopo
from tokensieve.search.schedule import gsearch, linear, psigmoid
from tokensieve.search.stages import adatoken3d, btp
from tokensieve.sites.anatomy import find
from tokensieve.plan import plan
from tokensieve.methods.cache.sepllm import separators
import tokensieve as ts
ts.retrieval.reduce.reduce, ts.parts.budget, ts.sites.anatomy.find
"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        exec(code, {})


def test_the_method_of_the_first_guide_still_runs(monkeypatch):
    module = types.ModuleType("first_guide")
    monkeypatch.setitem(sys.modules, "first_guide", module)
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            exec(GUIDE, vars(module))
            r = ts.reduce(torch.randn(2, 576, 64), "half-as-before", keep=64, cls_attention=torch.rand(2, 8, 576))
        assert {str(w.message).split(" is now ")[0] for w in seen} == {
            "tokensieve.register", "tokensieve.needs.CLSAttention", "tokensieve.parts.budget.share",
        }  # fmt: skip
        assert r.counts.tolist() == [64, 64]
    finally:
        METHODS.forget("half-as-before")


def hooked(old, base=ts.CacheMethod):
    """A method that defines one hook, by the name it had."""
    bodies = {
        "safe": lambda self, s, keep: s.valid & (torch.arange(s.n) < 1),
        "worth": lambda self, query, key, scale, real: "worth",
        "protected": property(lambda self: 5),
        "roles": lambda self, depth: ["select"] * depth,
        "group": property(lambda self: 16),
        "reading": True,
        "recalls": True,
    }
    return type("Former", (base,), {old: bodies[old], "score": lambda self, s: s.features[..., 0]})


@pytest.mark.parametrize("old", old_hooks.HOOKS)
def test_a_hook_by_its_old_name_is_honoured(old):
    new = old_hooks.HOOKS[old]
    with pytest.warns(DeprecationWarning, match=rf"^Former\.{old} is now called {new}$") as seen:
        made = hooked(old)()
    assert seen[0].filename == __file__
    said = {
        "safe": lambda: made(ts.Signals(features=torch.arange(6.0).view(1, 6, 1)), 2).kept.tolist() == [[0, 5]],
        "worth": lambda: made.key_scores(None, None, 1.0, None) == "worth",
        "protected": lambda: made.min_kept == 5,
        "roles": lambda: made.layer_roles(2) == ["select", "select"],
        "group": lambda: made.query_block_size == 16,
        "reading": lambda: made.sparse_decode,
        "recalls": lambda: made.restores_dropped,
    }
    assert said[old]()


def test_a_hook_that_was_an_option_is_honoured():
    with pytest.warns(DeprecationWarning, match="protected is now called min_kept"):

        @dataclass(frozen=True)
        class Former(ts.CacheMethod):
            protected: int = ts.option(3, "what stays", lo=0)

    assert Former(7).min_kept == 7


def test_a_new_name_beside_the_old_one_is_the_one_that_counts():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = type("Both", (ts.CacheMethod,), {"reading": True, "sparse_decode": False})
        type("Plain", (ts.Method,), {"safe": 3, "always_keep": ts.Method.always_keep})
    assert both().sparse_decode is False


def test_a_method_at_the_cache_that_is_no_cache_method_is_made_one():
    with pytest.warns(
        DeprecationWarning, match=r"Former runs at the cache: make it a subclass of tokensieve\.CacheMethod"
    ):
        former = type("Former", (ts.Method,), {"site": "cache", "sites": ("cache",), "unit": "token"})
    made = former()
    assert (made.unit, made.min_kept, made.bits, made.layer_roles(2)) == ("token", 0, None, ["dense"] * 2)
    own = {n for n in vars(CacheMethod) if not n.startswith("_")} - {"site", "sites"}
    assert own == set(old_hooks.CACHE)
    assert not own & set(dir(ts.Method)), "what concerns the cache alone is no part of every method"


def test_stages_as_a_hook_of_the_method_are_honoured():
    with pytest.warns(DeprecationWarning, match=r"Former\.stages is now a function .*register_plan"):

        class Former(ts.Method):
            name, sites = "former", ("handoff", "prefill")

            def stages(self, keep):
                return [ts.Stage(self, keep), ts.Stage(self, keep, "prefill", layers=(1,))]

            def reduce(self, s, keep):
                raise NotImplementedError

    assert [s.site for s in ts.plan(Former(), 8).stages] == ["handoff", "prefill"]


def test_subclasses_have_the_stages_of_their_method_unless_they_register_others():
    pyramid = type(ts.get_method("pyramiddrop"))
    try:
        mine = ts.register_method("mine-of-pyramids")(type("Mine", (pyramid,), {"__module__": __name__}))
        assert len(stages_of(mine(), 0.5)) == 3
        ts.register_plan("mine-of-pyramids")(lambda method, keep: [ts.Stage(method, keep, layers=(1,))])
        assert len(stages_of(mine(), 0.5)) == 1
        assert len(stages_of(pyramid(), 0.5)) == 3
        assert stages_of(ts.get_method("fastv"), 0.5) == ()
    finally:
        METHODS.forget("mine-of-pyramids")
        ts.core.plan.PLANS.forget("mine-of-pyramids")


def test_a_method_that_only_hides_tokens_is_no_reduction():
    x = torch.randn(1, 9, 4)
    with pytest.raises(
        ValueError, match=r"cmai hides tokens from layers and removes none.*tokensieve\.sieve\(model, 'cmai'"
    ):
        ts.reduce(x, "cmai", keep=3, text_attention=torch.rand(1, 2, 5, 9), text_text=torch.rand(1, 5, 5))
    assert isinstance(ts.get_method("cmai"), ts.FocusMethod)
