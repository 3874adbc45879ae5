"""The registry: names, near names, kinds, patterns, deprecations, plugins."""

import warnings
from importlib.metadata import EntryPoint

import pytest

from tokensieve.core import registry
from tokensieve.core.registry import REGISTRIES, Registry


@pytest.fixture
def kinds(monkeypatch):
    """Two registries of their own."""
    monkeypatch.setattr(registry, "REGISTRIES", {})
    monkeypatch.setattr(registry, "plugins", dict)
    fruit, stone = Registry("fruit"), Registry("stone")
    fruit.register("apple", colour="red", systems=(1, 2))(int)
    fruit.register("apricot", colour="orange", systems=(2,))(str)
    stone.register("agate")(list)
    return fruit, stone


def test_things_are_found_by_name_pattern_and_facts(kinds):
    fruit, _ = kinds
    assert fruit.get("apple") is int
    assert fruit.names() == ["apple", "apricot"]
    assert fruit.names("apr*") == ["apricot"]
    assert fruit.names(colour="red") == ["apple"]
    assert fruit.names(systems=2) == ["apple", "apricot"]
    assert fruit.names(systems=1) == ["apple"]
    assert list(fruit) == ["apple", "apricot"]
    assert len(fruit) == 2
    assert "apple" in fruit
    assert "agate" not in fruit


def test_a_wrong_name_offers_the_nearest_and_another_kinds_name_its_kind(kinds):
    fruit, stone = kinds
    with pytest.raises(ValueError, match=r"no fruit is called 'aple'; did you mean apple\?"):
        fruit.get("aple")
    with pytest.raises(ValueError, match="no fruit is called 'agate'; 'agate' is a stone"):
        fruit.get("agate")
    with pytest.raises(ValueError, match="'apple' is a fruit"):
        stone.get("apple")


def test_a_taken_name_says_by_what(kinds):
    fruit, _ = kinds
    with pytest.raises(
        ValueError, match=r"the fruit 'apple' is taken by builtins\.int; register builtins\.float under"
    ):
        fruit.register("apple")(float)
    fruit.register("apple")(int)


def test_a_deprecated_name_warns_and_works(kinds):
    fruit, _ = kinds
    fruit.deprecate("pomme", "apple")
    with pytest.warns(DeprecationWarning, match="the fruit 'pomme' is now called 'apple'"):
        assert fruit.get("pomme") is int


def test_a_plugin_that_raises_is_named_and_skipped(monkeypatch, tmp_path):
    (tmp_path / "good_plugin.py").write_text("LOADED = True\n")
    (tmp_path / "bad_plugin.py").write_text("raise RuntimeError('no such weights')\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = [EntryPoint(n, f"{n}_plugin", registry.PLUGINS) for n in ("bad", "good")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.PLUGINS else [])
    registry.plugins.cache_clear()
    with pytest.warns(
        RuntimeWarning, match=r"the plugin 'bad' \(bad_plugin\) is left out: RuntimeError: no such weights"
    ):
        assert registry.plugins() == {"bad": "RuntimeError: no such weights", "good": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.plugins()
    registry.plugins.cache_clear()


def test_two_plugins_of_one_name(monkeypatch, tmp_path, kinds):
    """The first has the name; the second is named, with both."""
    monkeypatch.undo()
    kind = Registry("jewel")
    try:
        monkeypatch.setattr(registry, "JEWELS", kind, raising=False)
        text = "from tokensieve.core import registry\n@registry.JEWELS.register('ruby')\nclass Ruby: ...\n"
        (tmp_path / "one_plugin.py").write_text(text)
        (tmp_path / "two_plugin.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        points = [EntryPoint(n, f"{n}_plugin", registry.PLUGINS) for n in ("one", "two")]
        monkeypatch.setattr(registry, "entry_points", lambda group: points)
        registry.plugins.cache_clear()
        with pytest.warns(RuntimeWarning, match="'two' .*'ruby' is taken by one_plugin.Ruby"):
            registry.plugins()
        assert kind.get("ruby").__module__ == "one_plugin"
    finally:
        REGISTRIES.pop("jewel", None)
        registry.plugins.cache_clear()
