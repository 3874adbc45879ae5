"""The wheel, installed outside the checkout: it holds the package and nothing else, and README's lines run from it."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import tokensieve as ts
from tools import release

ROOT = Path(__file__).parent.parent
SOURCE = ("pyproject.toml", "README.md", "LICENSE")
NEEDED = (
    "py.typed", "systems.tsv", "record.json", "entries.json", "models.json", "model.safetensors", "report.html", "page.html",
    "scene-1.png", "heldout.json.xz",
)  # fmt: skip
BARE = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
"""The environment, with nothing that brings the checkout in."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since building leaves folders behind, and takes what it finds in them."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "tokensieve", folder / "source" / "tokensieve", ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCE:
        shutil.copy(ROOT / name, folder / "source")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, folder / "source")
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory):
    """The scripts of an environment that has this wheel, and what it needs from the environment that runs the tests."""
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home, with_pip=False)
    scripts = home / "bin"
    pip("--python", scripts / "python", "install", "--no-deps", "--no-index", wheel)
    own = Path(
        run(scripts / "python", "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip()
    )
    # A line of a .pth file adds a folder, and reads no .pth file in it: an editable install there stays out.
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "others.pth").write_text("\n".join(others), encoding="utf-8")
    return scripts


def pip(*arguments):
    run(sys.executable, "-m", "pip", *arguments, cwd=ROOT.parent)


def run(*command, cwd):
    """What a command says on stdout; it must not fail."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=BARE, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_it_holds_the_package_and_nothing_else(wheel):
    metadata, held = release.read(wheel)
    release.check_contents(held, release.files(ROOT))
    release.check_metadata(metadata, ts.__version__)
    assert {Path(name).name for name in held}.issuperset(NEEDED)
    assert sum(name.endswith("model.safetensors") for name in held) == 4  # three language models and a denoiser


def test_what_is_imported_is_the_wheel(fresh, tmp_path):
    code = "import tokensieve as t, importlib.metadata as m; print(t.__file__, m.version('tokensieve'), t.__version__)"
    file, installed, said = run(fresh / "python", "-I", "-c", code, cwd=tmp_path).split()
    assert Path(file).is_relative_to(fresh.parent)
    assert installed == said == ts.__version__


def test_the_lines_of_the_readme_run(fresh, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert blocks
    run(fresh / "python", "-I", "-c", "\n".join(blocks), cwd=tmp_path)


def test_the_command_line_runs(fresh, tmp_path):
    tokensieve = fresh / "tokensieve"
    assert "doctor" in run(tokensieve, "--help", cwd=tmp_path)
    assert run(tokensieve, "--version", cwd=tmp_path).strip() == ts.__version__
    assert "visionzip" in run(tokensieve, "methods", cwd=tmp_path)
    assert len(json.loads(run(tokensieve, "systems", "--json", cwd=tmp_path))) == 400
    report = json.loads(run(tokensieve, "doctor", "--json", cwd=tmp_path))
    assert {finding["status"] for finding in report["findings"]} == {"ok"}
    assert not list(tmp_path.iterdir())
