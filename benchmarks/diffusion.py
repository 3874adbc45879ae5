"""How long a step of a denoiser takes with fewer tokens, as a share of the plain step, beside tomesd.

`python -m benchmarks.diffusion [--rounds 9] [--note TEXT]`: random weights; calls in turns within one process, medians of ratios;
written to docs/measured/diffusion-speed.md. tomesd is no dependency: pip puts it into `out/tomesd`, and where the registry is out
of reach, a sentence says so, and it is left out. `--device cuda` prints the UNet's 4,096 tokens in bfloat16 there, in a minute or
two, and writes nothing.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import diffusers
import torch
from torch import nn

from tokensieve.bench.diffusion.page import pays_from
from tokensieve.core.stage import stage
from tokensieve.sites.sieve import sieve

METHODS = ("tome", "dart", "divprune", "random", "uniform", "pool")
KEEPS = (0.5, 0.25)
SIDES = (8, 16, 24, 32, 48, 64)
ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "measured" / "diffusion-speed.md"
PEER, FOLDER = "tomesd==0.1.3", ROOT / "out" / "tomesd"
HEAD = """# Steps of denoisers

How long one step takes under a sieve, as a share of the plain step; in brackets what choosing the tokens takes, as a share of the
plain step too. Random weights: time does not depend on them. UNet: `UNet2DConditionModel`, latents of 64 x 64 (4,096 and 1,024
tokens), 32 and 64 channels, heads of 4. DiT: 1,024 tokens, width 128, 4 layers. Made by `python -m benchmarks.diffusion`.
"""
BETWEEN = """`tome` at keep 0.5, by the number of tokens in the finest attention: below 1 it pays.
"""


def unet(side: int = 64) -> tuple[nn.Module, dict[str, Any]]:
    """64 x 64 latents: 4,096 and 1,024 tokens; (32, 64) channels, head_dim 4, one layer a block."""
    blocks = ("CrossAttnDownBlock2D",) * 2
    torch.manual_seed(0)
    made = diffusers.UNet2DConditionModel(
        sample_size=64, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64), down_block_types=blocks,
        up_block_types=("CrossAttnUpBlock2D",) * 2, cross_attention_dim=32, attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip
    return made.eval(), {
        "sample": torch.randn(1, 4, side, side), "timestep": torch.tensor(500), "encoder_hidden_states": torch.randn(1, 8, 32)
    }  # fmt: skip


def dit(side: int = 32) -> tuple[nn.Module, dict[str, Any]]:
    """Latents of 32 x 32 tokens at patch 2: 1,024; width 128, 4 layers."""
    torch.manual_seed(0)
    made = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=32, in_channels=4, num_layers=4, sample_size=2 * side, patch_size=2,
        num_embeds_ada_norm=10,
    )  # fmt: skip
    return made.eval(), {
        "hidden_states": torch.randn(1, 4, 2 * side, 2 * side), "timestep": torch.tensor([500]), "class_labels": torch.tensor([1])
    }  # fmt: skip


def fetched() -> bool:
    """Whether tomesd can be imported; it is put into its folder where it is not there yet."""
    if not FOLDER.is_dir():
        into = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(FOLDER), PEER]
        if subprocess.run([sys.executable, "-m", "pip", *into]).returncode:
            print("tomesd cannot be had from the registry: it is left out.")
            return False
    sys.path.append(str(FOLDER))
    return True


def halved(model: nn.Module, given: dict[str, Any], device: str) -> tuple[nn.Module, dict[str, Any]]:
    """A model and its arguments in bfloat16 on a device."""
    moved = {k: v.to(device, torch.bfloat16 if v.is_floating_point() else v.dtype) for k, v in given.items()}
    return model.to(device, torch.bfloat16), moved


@contextmanager
def peer(model: nn.Module, keep: float) -> Iterator[None]:
    """tomesd, merging at both resolutions as we do."""
    import tomesd

    tomesd.apply_patch(model, ratio=1 - keep, max_downsample=2, use_rand=False)
    try:
        yield
    finally:
        tomesd.remove_patch(model)


@torch.no_grad()
def ratios(
    model: nn.Module, given: dict[str, Any], around: dict[str, Callable[[], Any]], rounds: int
) -> dict[str, Any]:
    """By name the time of a call under a context as a share of the plain call's, in turns; and the share of selection."""
    took: dict[str, list[float]] = {name: [] for name in around}
    chosen: dict[str, list[float]] = {}
    latents, *_ = given.values()  # by place: tomesd looks for them there
    rest = dict(list(given.items())[1:])
    for i in range(rounds + 1):
        for name, make in around.items():
            with make() as s:
                timed = hasattr(s, "timed")
                if timed:
                    s.timed = True
                began = perf_counter()
                model(latents, **rest)
                if latents.is_cuda:
                    torch.cuda.synchronize()
                spent = perf_counter() - began
            if i:
                took[name].append(spent)
                if timed:
                    chosen.setdefault(name, []).append(s.seconds)
    plain = took.pop("plain")
    out: dict[str, Any] = {}
    for name, times in took.items():
        out[name] = {"time": round(median(a / b for a, b in zip(times, plain, strict=True)), 3)}
        if name in chosen:
            out[name]["selection"] = round(median(a / b for a, b in zip(chosen[name], plain, strict=True)), 3)
            out[name]["pays"] = out[name]["time"] < 1
    if "tomesd" in took:
        out["tome"]["of tomesd"] = round(median(a / b for a, b in zip(took["tome"], took["tomesd"], strict=True)), 3)
    return out


def arms(
    model: nn.Module, keep: float, with_peer: bool, methods: tuple[str, ...] = METHODS
) -> dict[str, Callable[[], Any]]:
    out: dict[str, Callable[[], Any]] = {"plain": nullcontext}
    for name in methods:
        one = stage(name, keep, site="diffusion")
        out[name] = lambda one=one: sieve(model, one)
    if with_peer:
        out["tomesd"] = lambda: peer(model, keep)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--note", default="", help="what else is to be known of the machine")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    with_peer = fetched()
    if given.device != "cpu":
        model, call = halved(*unet(), given.device)
        for keep in KEEPS:
            print(f"UNet, keep {keep:g}", ratios(model, call, arms(model, keep, with_peer), given.rounds))
        return
    found: dict[str, Any] = {}
    sizes: dict[str, dict[int, float]] = {}
    for name, make in (("UNet", unet), ("DiT", dit)):
        model, call = make()
        for keep in KEEPS:
            key = f"{name}, keep {keep:g}"
            found[key] = ratios(model, call, arms(model, keep, with_peer and name == "UNet"), given.rounds)
            print(key, found[key])
        for side in SIDES:
            model, call = make(side)
            shares = ratios(model, call, arms(model, 0.5, False, ("tome",)), given.rounds)
            sizes.setdefault(name, {})[side * side] = shares["tome"]["time"]
        print(name, sizes[name])
    PAGE.write_text(page(found, sizes, given.rounds, given.note), encoding="utf-8")


def page(found: dict[str, Any], sizes: dict[str, dict[int, float]], rounds: int, note: str) -> str:
    """The numbers as Markdown."""
    columns = list(found)
    names = list(dict.fromkeys(name for rows in found.values() for name in rows))
    out = [HEAD, f"| method | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = [_cell(found[column].get(name)) for column in columns]
        out.append(f"| {name} | {' | '.join(cells)} |")
    out += ["", BETWEEN, "| tokens | " + " | ".join(sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
    for n in next(iter(sizes.values())):
        out.append(f"| {n:,} | " + " | ".join(f"{of[n]:.2f}" for of in sizes.values()) + " |")
    pays = "; ".join(f"in the {name}: {pays_from(of)}" for name, of in sizes.items())
    out += ["", f"It pays from so many tokens on: {pays}."]
    beside = [f"{row['of tomesd']:.2f} ({key})" for key, of in found.items() if "of tomesd" in (row := of["tome"])]
    out += ["", f"`tome` takes as a share of tomesd's time: {'; '.join(beside)}."] if beside else []
    machine = f"{platform.machine()}, {torch.get_num_threads()} thread, medians of {rounds} calls in turns"
    return (
        "\n".join(
            [*out, "", f"{machine}; diffusers {diffusers.__version__}, torch {torch.__version__}. {note}".rstrip()]
        )
        + "\n"
    )


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "selection" not in row:
        return f"{row['time']:.2f}"
    return f"{row['time']:.2f} ({row['selection']:.0%})" + ("" if row["pays"] else ", does not pay")


if __name__ == "__main__":
    main()
