"""Results that go on where they were stopped."""

import json

import pytest

from benchmarks.resumed import Resumed, weights


@pytest.fixture
def model(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"some")
    return file


def test_goes_on_where_it_was_stopped(tmp_path, model):
    file, asked = tmp_path / "out" / "results.json", []

    def run(key):
        asked.append(key)
        if key == "b#0":
            raise ValueError("no CLS token")
        if key == "stop":
            raise KeyboardInterrupt
        return {"accuracy": 1.0}

    first = Resumed.open(file, "x.1", weights(model))
    assert first.add("a#0", lambda: run("a#0"), "a")
    assert first.add("b#0", lambda: run("b#0"), "b")
    with pytest.raises(KeyboardInterrupt):
        first.add("stop", lambda: run("stop"))
    again = Resumed.open(file, "x.1", weights(model))
    assert again.data == json.loads(file.read_text()) == first.data
    assert not again.add("a#0", lambda: run("a#0"), "a")
    assert not again.add("b#1", lambda: run("b#1"), "b")
    assert again.add("a#1", lambda: run("a#1"), "a")
    assert asked == ["a#0", "b#0", "stop", "a#1"]
    assert set(again.data["rows"]) == {"a#0", "a#1"}
    assert again.data["left"] == {"b": "no CLS token"}
    assert not file.with_suffix(".part").exists()


def test_results_of_other_weights_are_refused(tmp_path, model):
    file = tmp_path / "results.json"
    Resumed.open(file, "x.1", {"threads": -1} | weights(model)).add("a", lambda: 1)
    Resumed.open(file, "x.1", {"threads": -1} | weights(model))
    model.write_bytes(b"other")
    with pytest.raises(ValueError, match="other weights"):
        Resumed.open(file, "x.1", weights(model))
