"""Options: what they may be is said once, beside the method, and any other value is refused when the method is made."""

import dataclasses
import importlib.util
import inspect
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokensieve as ts
from tests.models import decoder
from tests.test_cli import call
from tokensieve.core import method_registry
from tokensieve.core.method_registry import METHODS
from tokensieve.core.options import check_options, option, options_of
from tokensieve.core.plan import plan
from tokensieve.methods.cache.snapkv import SnapKV

ROOT = Path(__file__).parent.parent
EVERY = [(name, o) for name in ts.list_methods() for o in options_of(method_registry.method_class(name))]


@dataclass(frozen=True)
class Sample:
    window: int = option(3, "the last tokens", lo=1, hi=9, odd=True, unit="tokens")
    share: float = option(0.5, "what is kept", above=0, hi=1)
    depth: float = option(0.5, "where it lies", above=0, below=1)
    mode: str = option("row", "how it goes", choices=("row", "rank"))
    fast: bool = option(False, "whether it hurries")
    layers: tuple[int, ...] = option((-2,), "what is read", lo=-24, hi=-1)
    heads: tuple[float, ...] = option((), "what is left out", lo=0)
    more: Any = option((), "whatever")
    plain: float = 1.0

    def __post_init__(self) -> None:
        check_options(self)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"window": 2}, "odd, 1 to 9 (tokens: the last tokens)"),
        ({"window": 0}, "odd, 1 to 9 (tokens: the last tokens)"),
        ({"window": -3}, "odd, 1 to 9 (tokens: the last tokens)"),
        ({"window": 11}, "odd, 1 to 9 (tokens: the last tokens)"),
        ({"window": 3.0}, "an int, odd, 1 to 9 (tokens: the last tokens)"),
        ({"window": True}, "an int, odd, 1 to 9 (tokens: the last tokens)"),
        ({"window": None}, "an int, odd, 1 to 9 (tokens: the last tokens)"),
        ({"share": 0.0}, "above 0, at most 1 (what is kept)"),
        ({"share": 1.5}, "above 0, at most 1 (what is kept)"),
        ({"share": float("nan")}, "a finite number, above 0, at most 1 (what is kept)"),
        ({"share": float("inf")}, "a finite number, above 0, at most 1 (what is kept)"),
        ({"share": "0.5"}, "a finite number, above 0, at most 1 (what is kept)"),
        ({"share": True}, "a finite number, above 0, at most 1 (what is kept)"),
        ({"depth": 1.0}, "above 0, below 1 (where it lies)"),
        ({"mode": "column"}, "one of row, rank (how it goes)"),
        ({"mode": 3}, "one of row, rank (how it goes)"),
        ({"fast": 1}, "True or False (whether it hurries)"),
        ({"layers": -2}, "a tuple of ints, not empty, each -24 to -1 (what is read)"),
        ({"layers": (-2, -25)}, "not empty, each -24 to -1 (what is read)"),
        ({"layers": (-2, 0.5)}, "a tuple of ints, not empty, each -24 to -1 (what is read)"),
        ({"layers": ()}, "not empty, each -24 to -1 (what is read)"),
        ({"heads": (1.0, float("nan"))}, "a tuple of finite numbers, each at least 0 (what is left out)"),
        ({"heads": (1.0, -1.0)}, "each at least 0 (what is left out)"),
        ({"plain": "x"}, "a finite number"),
    ],
)
def test_what_an_option_may_not_be(given, wanted):
    ((name, value),) = given.items()
    with pytest.raises(ValueError) as error:
        Sample(**given)
    assert str(error.value) == f"Sample: {name}={value!r}; it must be {wanted}"


def test_what_an_option_may_be():
    made = Sample(np.int64(9), np.float32(0.25), 0.5, "rank", True, [-1, np.int64(-24)], [1, 2.5], {"a": 1}, 2)
    assert dataclasses.astuple(made) == (9, 0.25, 0.5, "rank", True, (-1, -24), (1, 2.5), {"a": 1}, 2)
    assert [type(v) for v in (made.window, made.share, made.layers[1])] == [int, float, int]
    assert json.loads(json.dumps(dataclasses.asdict(made)))["layers"] == [-1, -24]
    assert Sample(share=1).share == 1  # an int is a number, too
    assert Sample(heads=()).heads == ()


def test_options_are_described():
    told = {o.name: o for o in options_of(Sample)}
    assert str(told["window"]) == "window (int, tokens, odd, 1 to 9; default 3): the last tokens"
    assert str(told["layers"]) == "layers (tuple[int, ...], not empty, each -24 to -1; default (-2,)): what is read"
    assert told["plain"] == ts.Option("plain", "float", 1.0, "", "", "")


@pytest.mark.parametrize(("name", "known"), EVERY, ids=lambda x: getattr(x, "name", x))
def test_every_option_says_what_it_means_and_refuses_what_it_cannot_be(name, known):
    assert known.meaning
    assert len(known.meaning) <= 130
    assert "\n" not in known.meaning
    assert method_registry.method_card(name).options[known.name] == known
    wrong = {"Any": 3, "float": float("nan"), "float | None": float("nan"), "int | None": 0.5}.get(known.type)
    with pytest.raises(ValueError, match=rf"\b{known.name}={wrong}"):
        method_registry.get_method(name, **{known.name: wrong})
    if known.range.startswith("one of"):
        with pytest.raises(ValueError, match=f"{name}: {known.name}='neither'; it must be {known.range}"):
            method_registry.get_method(name, **{known.name: "neither"})
    elif known.type in ("int", "float") and known.range:
        with pytest.raises(ValueError, match=rf"{name}: {known.name}=-1000000; it must be"):
            method_registry.get_method(name, **{known.name: -1000000})
    made = method_registry.get_method(name)
    assert dataclasses.replace(made, **{known.name: known.default}) == made


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("visionzip", {"contextual": 5.0}, r"visionzip: contextual=5.0; it must be 0 to 1 \(share of the budget"),
        ("vispruner", {"important": 3.0}, r"vispruner: important=3.0; it must be 0 to 1"),
        ("snapkv", {"pooling": "median"}, r"snapkv: pooling='median'; it must be one of mean, max"),
        ("snapkv", {"kernel": 4}, r"snapkv: kernel=4; it must be odd, at least 1"),
        ("snapkv", {"kernel": -1}, r"snapkv: kernel=-1; it must be odd, at least 1"),
        ("snapkv", {"window": -3}, r"snapkv: window=-3; it must be at least 1 \(tokens: the last tokens"),
        ("holov", {"crops": 0}, r"holov: crops=0; it must be at least 1"),
        ("holov", {"crops": -3}, r"holov: crops=-3; it must be at least 1"),
        ("vtc-cls", {"encoder_layers": -2}, r"vtc-cls: encoder_layers=-2; it must be a tuple of ints"),
        ("vtc-cls", {"encoder_layers": (-30,)}, r"encoder_layers=\(-30,\); it must be not empty, each -24 to -1"),
        ("btp", {"balance": 0.7, "spatial": 0.4}, "at most 1 together"),
        ("lvlm-csp", {"scatter": 0.6}, "tokens must come back before they are pruned"),
        ("visiondrop", {"first": 0.5}, "visiondrop: first=0.5; it must be at least 1"),
    ],
)
def test_wrong_values_never_reach_an_algorithm(name, options, said):
    """By name, by class, by a changed copy, and by a plan on disk."""
    ways = [
        lambda: ts.get_method(name, **options),
        lambda: method_registry.method_class(name)(**options),
        lambda: dataclasses.replace(ts.get_method(name), **options),
        lambda: ts.stage(name, 9, **options),
        lambda: ts.Plan.from_json(
            {"format": "tokensieve.plan.1", "stages": [{"method": name, "options": options, "keep": 9}]}
        ),
    ]
    for way in ways:
        with pytest.raises(ValueError, match=said):
            way()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("vatp", {"scorer": "h3o"}, "vatp: scorer='h3o': no method is called 'h3o'; did you mean h2o"),
        ("vatp", {"scorer": 3}, "vatp: scorer=3; it must be a string"),
        (
            "vatp",
            {"scorer": "divprune"},
            "vatp: scorer='divprune'; it must be a cache method that keeps entries by a score",
        ),
        ("vatp", {"options": {"recent": 2}}, "vatp: scorer='h2o': h2o: recent=2; it must be 0 to 1"),
        ("vatp", {"options": {"rcent": 0.2}}, "vatp: scorer='h2o': h2o has no option rcent, did you mean recent?"),
        ("vatp", {"options": 3}, "options=3; it must be a mapping"),
        ("caote", {"options": {"window": 4}}, "the options are those of a scorer: name one"),
        ("adakv", {"options": {"window": 4}}, "the options are those of a scorer: name one"),
        ("adakv", {"scorer": "tova"}, "adakv: scorer='tova'; it ranks no entries of single heads"),
    ],
)
def test_a_method_within_a_method_is_checked_with_its_options(name, options, said):
    with pytest.raises(ValueError, match=said):
        ts.get_method(name, **options)


def test_misspelt_options_are_answered_with_the_near_ones():
    said = r"snapkv has no option windw, did you mean window\? its options are window, kernel, pooling"
    with pytest.raises(ValueError, match=said + "$"):
        ts.get_method("snapkv", windw=3)
    with pytest.raises(
        ValueError,
        match=said + ", beside site, layers, positions, every, prefill, tower, readout, between, schedule, back$",
    ):
        ts.stage("snapkv", 9, windw=3)
    with pytest.raises(ValueError, match=said):
        ts.sieve(decoder(), "snapkv", keep=9, windw=3)
    with pytest.raises(ValueError, match=r"snapkv has no option sede, did you mean seed, schedule\?"):
        ts.sieve(decoder(), "snapkv", keep=9, sede=3)
    with pytest.raises(ValueError, match=r"snapkv has no option layer, did you mean layers\?"):
        ts.stage("snapkv", 9, layer=3)
    with pytest.raises(ValueError, match=r"uniform has no option strange; its options are none$"):
        ts.get_method("uniform", strange=3)
    with pytest.raises(ValueError, match="snapkv has no option unit;"):
        ts.get_method("snapkv", unit="token")  # the method has it, but not as an option
    with pytest.raises(TypeError, match="windw"):
        SnapKV(windw=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("snapkv", {"window": 8, "kernel": 3, "pooling": "max"}),
        ("mustdrop", {"at": (0.25, 0.5), "protect": 1}),
        ("vtc-cls", {"encoder_layers": [-3, -2]}),
        ("vatp", {"scorer": "h2o", "options": {"recent": 0.25, "queries": 64}}),
        ("adakv", {"scorer": "keydiff"}),
        ("yopo", {"off": [0, 3]}),
    ],
)
def test_plans_keep_options(name, options, tmp_path):
    made = ts.Plan(ts.stage(name, 40, **options))
    made.save(tmp_path / "plan.json")
    again = ts.Plan.load(tmp_path / "plan.json")
    assert again == made
    assert hash(again.stages[0].method) == hash(made.stages[0].method)
    method = made.stages[0].method
    assert pickle.loads(pickle.dumps(method)) == method
    assert ts.get_method(name, **dataclasses.asdict(method)) == method


@pytest.mark.parametrize("name", ["mustdrop", "pyramiddrop", "vflowopt", "visiondrop", "aim"])
def test_shares_of_the_depth_come_in_any_order(name):
    """What a stage keeps follows from its place among those behind it."""
    down, up = (plan(name, 0.4, at=at).stages for at in ((0.75, 0.3, 0.5), (0.3, 0.5, 0.75)))
    assert [(s.site, s.layers, s.keep) for s in down] == [(s.site, s.layers, s.keep) for s in up]


def test_what_was_pickled_before_an_option_came_has_its_default():
    old = SnapKV.__new__(SnapKV)
    old.__dict__.update(window=8)  # as unpickling does
    assert old == SnapKV(window=8)


def test_one_text_serves_card_help_command_line_and_reference():
    known = ts.method_card("snapkv").options["window"]
    assert (known.type, known.default, known.range, known.unit) == ("int", 32, "at least 1", "tokens")
    assert f"Attributes:\n    {known}\n" in (inspect.getdoc(SnapKV) or "")
    cards = json.loads(call("methods", "--json", "snapkv").output)
    assert cards[0]["options"]["window"] == dataclasses.asdict(known)
    table = call("methods", "snapkv", "mustdrop").output
    assert all(part in table for part in ("window", "at least 1", "tokens", "32", known.meaning, "tuple[float, ...]"))
    assert "no options" in call("methods", "uniform").output
    page = _hooks().on_page_markdown((ROOT / "docs/reference/methods.md").read_text())
    assert all(f"| `{o.name}` |" in page and o.meaning in page for _, o in EVERY)
    assert f"| `window` | int | at least 1 | tokens | `32` | {known.meaning} |" in page


def test_a_docstring_with_attributes_of_its_own_is_left():
    @dataclass(frozen=True)
    class Own(ts.Method):
        """Keeps some.

        Attributes:
            many: said by hand.
        """

        many: int = ts.option(3, "said in the option")

    doc = inspect.getdoc(Own)
    try:
        ts.register_method("with-attributes")(Own)
        assert inspect.getdoc(Own) == doc
    finally:
        METHODS.forget("with-attributes")


def _hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("ems", "alike"), ("token-correlation", "alike"), ("fastvid", "likeness"), ("framefusion", "similarity"),
        ("g-prune", "similarity"), ("greedyprune", "similarity"), ("holitom", "likeness"),
    ],
)  # fmt: skip
def test_an_option_by_its_earlier_name(name, old, tmp_path):
    """In a call, and in a plan that was saved before."""
    wanted = ts.get_method(name, cosine_threshold=0.25)
    with pytest.warns(DeprecationWarning, match=f"the option {old} is now called cosine_threshold") as seen:
        assert ts.get_method(name, **{old: 0.25}) == wanted
    assert seen[0].filename == __file__
    with pytest.warns(DeprecationWarning, match=f"{old} is now called"):
        assert ts.stage(name, 9, **{old: 0.25}).method == wanted
    saved = json.dumps(ts.Plan(ts.Stage(wanted, 9)).to_json()).replace("cosine_threshold", old)
    (tmp_path / "plan.json").write_text(saved)
    with pytest.warns(DeprecationWarning, match=f"{old} is now called"):
        assert ts.Plan.load(tmp_path / "plan.json").stages[0].method == wanted
    with pytest.raises(ValueError, match=rf"{old}=0\.1 and cosine_threshold=0\.2 are the same option"):
        ts.get_method(name, **{old: 0.1}, cosine_threshold=0.2)
    with (
        pytest.raises(ValueError, match=f"{name}: cosine_threshold=2; it must be"),
        pytest.warns(DeprecationWarning, match=f"{old} is now called"),
    ):
        ts.get_method(name, **{old: 2})


def test_no_earlier_name_is_an_option_of_today():
    for name in ts.list_methods():
        fields = dataclasses.fields(method_registry.method_class(name))
        was = {f.metadata.get("was") for f in fields} - {None, ""}
        assert not was & {f.name for f in fields}, name


@pytest.mark.parametrize("name", ts.list_methods())
def test_help_tells_of_every_option(name):
    cls = method_registry.method_class(name)
    told = cls.__doc__.partition("\nAttributes:\n")[2]
    assert [line.split()[0] for line in told.splitlines() if line.strip()] == [o.name for o in options_of(cls)]
    assert all(option.meaning for option in options_of(cls))
