"""The tests of sites, models and caches on other releases of transformers than the one installed, and those of denoisers on other
releases of diffusers: `make test-matrix`; `python -m tests.matrix diffusers` for those alone.

The oldest supported release, one that other packages pin, and the newest that the registry serves. Each is put into a folder of
its own under `out/matrix`, with those of its requirements that what is installed does not meet, and found there first.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions, version
from pathlib import Path
from time import perf_counter

from packaging.requirements import Requirement

from tokensieve.sites.model.compatibility import TESTED

PINNED = "5.19.0"
"""The last release that vLLM (transformers<5.20) can be served with."""

OLDEST = "0.42.0"
"""The first release of diffusers that the extra `diffusion` takes."""

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    "compatibility", "sieve", "models", "encoder", "encoder_packed", "stages", "focus", "cross", "cache",
    "cache_kinds", "cache_visual", "bits", "room", "sparse", "resumed", "signals", "search", "video", "vcc",
    "recording", "shared_encoding",
)  # fmt: skip
DENOISERS = (
    "diffusion",
    "diffusion_steps",
    "diffusion_matrix",
    "diffusion_trace",
    "bench_diffusion",
    "modules_diffusion",
)
MATRIX = {
    "transformers": ((TESTED[0], PINNED), FILES, "not slow"),
    "diffusers": ((OLDEST,), DENOISERS, "slow or not slow"),
}
"""By package, releases beside the newest one, the tests that run on them, and which of those: every denoiser is a slow one."""


def pip(*args: str) -> str | None:
    """What pip prints; None where it fails."""
    run = [sys.executable, "-m", "pip", *args, "--disable-pip-version-check"]
    done = subprocess.run(run, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


def newest(package: str) -> str | None:
    """The newest release that the registry serves; None where it cannot be reached."""
    found = re.search(rf"{package} \(([\w.]+)\)", pip("index", "versions", package) or "")
    return found[1] if found else None


def unmet(folder: Path) -> Iterator[str]:
    """Requirements of what is in a folder that neither it nor what is installed meets."""
    own = {d.name.replace("_", "-"): d.version for d in distributions(path=[str(folder)])}
    for dist in distributions(path=[str(folder)]):
        for requirement in map(Requirement, dist.requires or ()):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            name = requirement.name.replace("_", "-")
            if not requirement.specifier.contains(own.get(name) or version(name), prereleases=True):
                yield str(requirement)


def installed(package: str, release: str) -> Path | None:
    """The folder of a release, filled where it is not yet; None where the registry does not serve it."""
    folder = ROOT / "out" / "matrix" / package / release
    made = folder / ".made"
    if not made.is_file():
        into = ("install", "--quiet", "--no-deps", "--target", str(folder))
        if pip(*into, f"{package}=={release}") is None or any(pip(*into, r) is None for r in list(unmet(folder))):
            return None
        made.touch()
    return folder


def run(package: str) -> int:
    """The tests of a package on its releases; how many of these failed."""
    releases, files, marked = MATRIX[package]
    latest = newest(package)
    if latest is None:
        print(f"The registry cannot be reached: the newest release of {package} is left out.")
    failed = 0
    for release in dict.fromkeys(r for r in (*releases, latest) if r):
        if release == version(package):
            print(f"{package} {release} is the one installed; `make test-all` runs on it.")
            continue
        folder = installed(package, release)
        if folder is None:
            print(f"{package} {release} cannot be had from the registry: it is left out.")
            continue
        print(f"{package} {release}:", flush=True)
        start = perf_counter()
        paths = [str(ROOT / "tests" / f"test_{name}.py") for name in files]
        asked = [sys.executable, "-m", "pytest", "-n", "2", "-m", marked, "-p", "no:cacheprovider", *paths]
        done = subprocess.run(asked, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"})
        failed += done.returncode != 0
        print(f"{package} {release}: {'FAILED' if done.returncode else 'passed'}, {perf_counter() - start:.0f} s")
    return failed


def main(packages: Sequence[str] = ()) -> int:
    return int(sum(run(package) for package in packages or MATRIX) > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
