"""What CONTRIBUTING.md names is there."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_its_paths_are():
    roots = {p.name for p in ROOT.iterdir()}
    named = {word for pair in re.findall(r"`([\w./<>*-]+)`|\]\(([\w./-]+)\)", PAGE) for word in pair if word}
    paths = [p for p in named if p.split("/")[0] in roots and not {"<", "*"} & set(p)]
    assert len(paths) > 15
    assert [p for p in paths if not (ROOT / p).exists()] == []


def test_its_commands_are():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {target for line in re.findall(r"^([^\s:=]+(?: [^\s:=]+)*):", makefile, re.M) for target in line.split()}
    asked = set(re.findall(r"\bmake ([a-z-]+)", PAGE))
    assert len(asked) >= 6
    assert asked <= targets
    modules = [shlex.split(line)[2] for line in re.findall(r"`(python -m [^`]+)`", PAGE)]
    assert modules
    assert all((ROOT / f"{m.replace('.', '/')}.py").is_file() for m in modules)
