"""The examples run as they stand, each as a program of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAYS = {
    "cache": "1,056,768 bytes instead of 4,194,304",
    "index_a_folder": "passages",
    "own_method": "apart is a method: True; layers held 64 tokens",
    "plan": "tokens by layer: [288.0, 288.0, 64.0, 64.0]",
    "visual_tokens": "64 tokens, 52% of the FLOPs",
}


def test_every_example_is_short_and_says_what_it_shows():
    assert {file.stem for file in EXAMPLES} == SAYS.keys()
    for file in EXAMPLES:
        text = file.read_text(encoding="utf-8")
        assert text.count("\n") < 40, file.name
        assert text.startswith('"""'), file.name


@pytest.mark.slow
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_it_runs(file, tmp_path):
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", str(file)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert SAYS[file.stem] in done.stdout
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"
