"""What importing loads, and the benchmark of what it costs."""

import subprocess
import sys

import pytest

from benchmarks import import_time

HEAVY = {"torch", "transformers", "sklearn", "scipy", "matplotlib", "PIL", "fastapi"}


@pytest.mark.parametrize("line", ["import tokensieve", import_time.COMMANDS["tokensieve --help"][2]])
def test_nothing_heavy_is_loaded_before_it_is_needed(line):
    code = f"import atexit, sys; atexit.register(lambda: print('loaded:', *sys.modules)); {line}"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    loaded = done.stdout.partition("loaded:")[2].split()
    assert "tokensieve" in loaded
    assert HEAVY.isdisjoint(loaded), HEAVY.intersection(loaded)


def test_ratios_are_to_the_same_round_and_the_first_is_not_counted(tmp_path, monkeypatch, capsys):
    order = []

    def seconds(command):
        order.append(command)
        return (
            100.0
            if len(order) <= len(import_time.COMMANDS)
            else {"import tokensieve": 0.5, "--help": 4.0}.get(command[-1], 2.0)
        )

    monkeypatch.setattr(import_time, "seconds", seconds)
    rows = import_time.main(tmp_path / "times.json", rounds=7)["rows"]
    assert (rows["import tokensieve"]["ratio"], rows["tokensieve --help"]["ratio"]) == (0.25, 2.0)
    assert {len(row["ms"]) for row in rows.values()} == {7}
    assert [order[4 * turn][-1] for turn in (0, 2)] == ["import torch", "import tokensieve"], "who goes first changes"
    said = capsys.readouterr().out
    assert (said.count(" ok "), said.count("above 1.3")) == (1, 1)


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(ValueError, match="7 or more"):
        import_time.main(tmp_path / "times.json", rounds=6)
    with pytest.raises(RuntimeError, match=r"ended with 1: (?s:.*)nothing_of_this_name"):
        import_time.seconds([sys.executable, "-c", "import nothing_of_this_name"])
