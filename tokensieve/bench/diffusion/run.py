"""Run: the same images with and without sieves, and what changed; goes on where it stopped."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tokensieve.bench.codec import distortion
from tokensieve.bench.diffusion import step
from tokensieve.bench.diffusion.subject import Generator
from tokensieve.core.files import write, write_json
from tokensieve.core.method_registry import method_class
from tokensieve.core.stage import Stage, stage
from tokensieve.sites.sieve import sieve

BASELINES = ("random", "uniform", "pool")
"""In every comparison."""
SHOWN = 4
MAPS = 5
"""Steps of which the kept tokens are drawn."""
DOES_NOT_PAY = 1.0
"""The time of a step as a share of the plain one from which on a sieve costs more than it saves."""
Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DiffusionConfig:
    """What is compared.

    Attributes:
        methods: names; keeps: shares of tokens; form, acts: of the stages (see ``Denoising``, where it is ``steps``).
    """

    methods: tuple[str, ...]
    keeps: tuple[float, ...]
    out: Path
    form: str = "attention"
    acts: tuple[float, float] = (0.0, 1.0)

    def arms(self) -> list[tuple[str, Stage]]:
        """Every method at every share, behind it the baselines that are not among them.

        Raises:
            ValueError: a method goes by earlier steps, which a single one, as it is timed here, does not have.
        """
        names = [*self.methods, *(b for b in BASELINES if b not in self.methods)]
        if told := next((name for name in names if method_class(name).denoises.get("cached")), None):
            raise ValueError(
                f"{told} goes by earlier steps of a run, which the single step that is timed here does not have; leave it out, "
                f"and compare its images under tokensieve.sieve(pipe, {told!r}, keep=0.5)"
            )
        how = {"site": "diffusion", "form": self.form, "steps": self.acts}
        return [(f"{name} {keep:g}", stage(name, keep, **how)) for keep in self.keeps for name in names]


def run(of: Generator, config: DiffusionConfig, told: Told = lambda *_: None) -> dict[str, Any]:
    """Measure all arms; ``results.json`` and ``pictures/`` in ``config.out`` grow arm by arm; what is there is not made again.

    Raises:
        ValueError: the folder holds results of another comparison.
    """
    arms, file = config.arms(), config.out / "results.json"
    config.out.mkdir(parents=True, exist_ok=True)
    asked = {"model": of.name, "images": len(of.asked), "steps": of.steps, "seed": of.seed, "form": config.form,
             "acts": list(config.acts)}  # fmt: skip
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"asked": asked, "rows": {}}
    if results["asked"] != asked:
        raise ValueError(f"{config.out} holds results of {results['asked']}; this is {asked}: take another --out")
    total, done = (len(arms) + 1) * len(of.asked), 0

    def images() -> Tensor:
        nonlocal done
        made = []
        for i in range(len(of.asked)):
            made.append(of.image(i))
            done += 1
            told("images", done, total)
        return torch.stack(made)

    plain = images()
    _picture(config.out, "plain", plain)
    results["plain"] = {"right": _right(of, plain)}
    results["environment"] = {
        "machine": platform.machine(), "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "tokensieve")},
    }  # fmt: skip
    model, given = of.step()
    known = subject_stages(arms)
    for key, one in arms:
        if key in results["rows"]:
            done += len(of.asked)
            continue
        with sieve(of.pipeline, one) as s:
            made = images()
            maps = _kept(of, s)
        _picture(config.out, key, made)
        row: dict[str, Any] = {
            "method": one.method.name,
            "keep": one.keep,
            "baseline": one.method.name in BASELINES,
            "kept": maps,
        }
        row |= _changed(of, plain, made) | step.cost(model, given, known[key])
        row["sizes"] = {str(n): share for n, share in step.break_even(model, given, known[key]).items()}
        row["pays"] = row["time"] < DOES_NOT_PAY
        results["rows"][key] = row
        write_json(file, results)
    write_json(file, results)
    return results


def subject_stages(arms: Sequence[tuple[str, Stage]]) -> dict[str, Stage]:
    """The arms as they act in one step, whatever its place in a run."""
    how = [(key, s, asdict(s.denoising) if s.denoising else {}) for key, s in arms]
    return {
        key: Stage(s.method, s.keep, "diffusion", denoising=type(s.denoising)(form=d["form"]) if s.denoising else None)
        for key, s, d in how
    }


def _changed(of: Generator, plain: Tensor, made: Tensor) -> dict[str, Any]:
    """How the images differ from the plain ones."""
    out: dict[str, Any] = {}
    for name, values in (("psnr", distortion.psnr(plain, made, 1.0)), ("ssim", distortion.ssim(plain, made))):
        out[name] = float(values.mean())
        out[f"{name}_half"] = 1.96 * float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
    if of.judge is not None:
        classes, features = of.judge
        with torch.no_grad():
            out["agrees"] = float((classes(made) == classes(plain)).float().mean())
            out["right"] = _right(of, made)
            if len(made) > 2:
                distance, low, high = distortion.kernel_distance(features(plain), features(made))
                out |= {"distance": distance, "distance_low": low, "distance_high": high}
    return out


def _right(of: Generator, images: Tensor) -> float | None:
    if of.judge is None or of.goal is None:
        return None
    with torch.no_grad():
        return float((of.judge[0](images) == torch.tensor(of.goal)).float().mean())


def _kept(of: Generator, s: Any) -> list[dict[str, Any]]:
    """Which tokens of the first image stayed in the finest module, in steps spread over a run."""
    seen: list[dict[str, Any]] = []

    def note(module: Any, args: Any, output: Any) -> None:
        if s.last is not None:
            finest = max(s.last.stages, key=lambda one: one.reduction.n)
            seen.append({"grid": finest.grid, "kept": finest.reduction.kept[0].tolist()})

    hook = s._inner.register_forward_hook(note)
    try:
        of.image(0)
    finally:
        hook.remove()
    at = sorted({round(i * (len(seen) - 1) / (MAPS - 1)) for i in range(MAPS)}) if seen else []
    return [{"step": i, **seen[i]} for i in at if seen[i]["grid"] is not None]


def _picture(folder: Path, key: str, images: Tensor) -> None:
    """The first images in a line, in ``pictures/``."""
    line = torch.cat(list(images[:SHOWN]), 2)
    pixels = (line.permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()
    file = folder / "pictures" / f"{key.replace(' ', '-')}.png"
    file.parent.mkdir(exist_ok=True)
    write(file, lambda part: Image.fromarray(pixels).save(part, format="PNG"))
