"""Doctor: what is installed here, and whether sieves do what they promise on it."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from tokensieve.extras import Extra, extras
from tokensieve.sites.model.compatibility import (
    ALL_ATTENTION_FUNCTIONS,
    TESTED,
    is_flash_attn_2_available,
    is_torch_flex_attn_available,
)
from tokensieve.testing.doctor_models import Checked, load, tiny_models
from tokensieve.testing.doctor_sites import Finding, trials

FORMAT = "tokensieve.doctor.1"
PACKAGES = ("tokensieve", "torch", "transformers", "tokenizers", "safetensors", "diffusers")
BUILT = "the model is built"
UNBUILT = "No sieve was tried: report it with the output of `tokensieve doctor --json`."


@dataclass(frozen=True)
class Kernel:
    """An attention implementation: whether it can be chosen here, and what to know of it."""

    name: str
    present: bool
    note: str


@dataclass(frozen=True)
class DoctorReport:
    """What the doctor found.

    Attributes:
        versions: of Python and the packages; empty where one is not installed.
        tested: whether this release of transformers is among those that were tested.
        devices: that models can run on, and what they are.
        kernels: the attention implementations that a sieve meets.
        extras: each with what is missing of it.
        findings: one for each check.
    """

    versions: dict[str, str]
    tested: bool
    devices: dict[str, str]
    kernels: tuple[Kernel, ...]
    extras: tuple[Extra, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed; a refusal, which says why, is no failure."""
        return all(f.status != "failed" for f in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"format": FORMAT, "ok": self.ok, "tested_releases": list(TESTED)} | asdict(self)


def diagnose(
    model: str | None = None, device: str = "cpu", told: Callable[[str], None] = lambda _: None
) -> DoctorReport:
    """Look at what is installed, and try sieves on a tiny random model of each kind and on ``model``; downloads nothing else.

    Args:
        model: a folder or a name on the hub.
        device: where the models run.
        told: called with the name of each model before its checks.

    Raises:
        ValueError: there is no such device, or the model cannot be loaded.
    """
    here = devices()
    if device not in here and f"{device}:0" not in here:
        raise ValueError(f"device={device!r}: there is none here of this name; there are {', '.join(here)}")
    makers = tiny_models(device)
    if model is not None:
        told(model)
        of = load(model, device)
        makers[model] = lambda: of
    findings: list[Finding] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is untested")  # the report says so
        for name, make in makers.items():
            told(name)
            findings += examine(name, make)
    found = versions()
    return DoctorReport(found, found["transformers"] in TESTED, here, kernels(), extras(), tuple(findings))


def examine(name: str, make: Callable[[], Checked]) -> Iterator[Finding]:
    """All checks of one model; where it cannot even be built, that."""
    try:
        of = make()
    except Exception as error:  # whatever a model or a release raises
        yield Finding(name, "", BUILT, "failed", f"{type(error).__name__}: {error}", UNBUILT)
        return
    for trial in trials(of):
        yield from trial.findings()


def versions() -> dict[str, str]:
    """Of Python and the packages that decide how a model runs."""

    def of(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return ""

    return {"python": platform.python_version()} | {name: of(name) for name in PACKAGES}


def devices() -> dict[str, str]:
    """The devices that torch sees, and what they are."""
    out = {"cpu": f"{torch.get_num_threads()} threads"}
    out |= {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return out | ({"mps": "Apple"} if torch.backends.mps.is_available() else {})


def kernels() -> tuple[Kernel, ...]:
    """The attention implementations of transformers that a sieve meets."""
    return (
        Kernel("sdpa", "sdpa" in ALL_ATTENTION_FUNCTIONS, ""),
        Kernel("eager", True, ""),
        Kernel("flash_attention_2", is_flash_attn_2_available(), "of the package flash-attn, on a GPU"),
        Kernel("flex_attention", is_torch_flex_attn_available(), "a sieve refuses it; load the model with sdpa"),
    )
