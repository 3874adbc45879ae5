"""Train the denoiser and its judge, and write them with their card: ``python -m tokensieve.testbed.diffusion.train``.

By steps, from a seed; a run that was stopped goes on from its last checkpoint in ``--out``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from tokensieve.testbed.card import made
from tokensieve.testbed.diffusion import pipeline, shapes
from tokensieve.testbed.loop import TrainingStage, fit

JUDGE = TrainingStage("judge", rate=2e-3, batch=64, steps=300)
DENOISER = TrainingStage("denoiser", rate=2e-3, batch=64, steps=6000)
DROPPED = 0.1
"""The share of scenes that are learned without their class, for guidance."""
SAMPLES = 240
NAMES = ("torch", "diffusers", "safetensors")


def noised(scheduler: Any, x: Tensor, labels: Tensor, start: int, seed: int) -> dict[str, Tensor]:
    """What the denoiser is shown, and what it is to say: noise and time are functions of the place in the stream."""
    g = torch.Generator().manual_seed(seed * 1_000_003 + start)
    noise = torch.randn(x.shape, generator=g)
    time = torch.randint(0, scheduler.config.num_train_timesteps, (len(x),), generator=g)
    dropped = torch.rand(len(x), generator=g) < DROPPED
    return {
        "x": scheduler.add_noise(x, noise, time),
        "time": time,
        "labels": labels.masked_fill(dropped, len(shapes.CLASSES)),
        "wanted": scheduler.get_velocity(x, noise, time),
    }


def train(out: Path, seed: int = 0, steps: int | None = None) -> dict[str, Any]:
    """Both stages, from where ``out`` stands; returns their records."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    judge = pipeline.Classifier()
    records = {"judge": fit(JUDGE, nn.ModuleDict({"judge": judge}), *_feed(seed, None), _judged(judge), out, workers=0)}
    model, scheduler = pipeline.transformer(seed), pipeline.scheduler()
    for m in model.modules():
        if hasattr(m, "dropout_prob"):
            m.dropout_prob = 0.0  # every block would drop other classes; they are dropped together, in `noised`
    # The loop's optimizer of matrices takes those inside "layers".
    rest = nn.ModuleList(m for name, m in model.named_children() if name != "transformer_blocks")
    parts = nn.ModuleDict({"denoiser": nn.ModuleDict({"layers": model.transformer_blocks, "rest": rest})})
    stage = DENOISER if steps is None else TrainingStage(**{**vars(DENOISER), "steps": steps})
    records["denoiser"] = fit(stage, parts, *_feed(seed, scheduler), _denoised(model), out, workers=0, save_every=60.0)
    _save(out / "dit", model, scheduler, judge)
    return records


def _feed(seed: int, scheduler: Any) -> tuple[Any, Any]:
    def collate(places: list[int]) -> dict[str, Tensor]:
        x, labels = shapes.batch("train", seed, places[0], len(places))
        return {"x": x, "labels": labels} if scheduler is None else noised(scheduler, x, labels, places[0], seed)

    return (lambda i: i), collate


def _judged(judge: nn.Module) -> Any:
    def loss(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        # Samples are never as clean as scenes.
        said = judge(batch["x"] + 0.1 * torch.randn_like(batch["x"]))
        return cross_entropy(said, batch["labels"]), {
            "right": (said.argmax(1) == batch["labels"]).float().mean().item()
        }

    return loss


def _denoised(model: nn.Module) -> Any:
    def loss(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        said = model(batch["x"], timestep=batch["time"], class_labels=batch["labels"]).sample
        return mse_loss(said.float(), batch["wanted"]), {}

    return loss


def _save(home: Path, model: Any, scheduler: Any, judge: nn.Module) -> None:
    model.to(torch.bfloat16).save_pretrained(home / "transformer")
    scheduler.save_pretrained(home / "scheduler")
    tensors = {k: v.contiguous().to(torch.bfloat16 if v.dim() == 4 else v.dtype) for k, v in judge.state_dict().items()}
    save_file(tensors, home / "classifier.safetensors")
    for file in home.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes for the owner alone


@torch.no_grad()
def rates(home: Path, samples: int = SAMPLES, seed: int = 0) -> dict[str, Any]:
    """How many scenes, and how many samples with and without guidance, the judge takes for what they are to be."""
    pipe, judge = pipeline.load(home), pipeline.judge(home)
    x, labels = shapes.batch("test", seed, 0, samples)
    found = {"scenes": (judge(x).argmax(1) == labels).float().mean().item()}
    for guidance in (1.0, 2.0):
        right = torch.zeros(len(shapes.CLASSES))
        for start in range(0, samples, 60):
            asked = labels[start : start + 60]
            g = torch.Generator().manual_seed(seed * 7919 + start)
            images = pipe(asked, guidance_scale=guidance, generator=g, output_type="pt").images
            right += torch.bincount(asked[judge(2 * images - 1).argmax(1) == asked], minlength=len(right))
        found[f"guidance {guidance:g}"] = float(right.sum()) / samples
        found[f"guidance {guidance:g}, by class"] = dict(
            zip(shapes.CLASSES, (right / (samples / len(right))).tolist(), strict=True)
        )
    return found


def card(home: Path, records: dict[str, Any], seed: int) -> None:
    """Measure what was saved, and write it down."""
    found = rates(home)
    record = {"seed": seed, **made(records, torch.device("cpu"), NAMES), "samples": SAMPLES, "recognised": found}
    (home / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    rows = "\n".join(
        f"| {name} | {found['guidance 1, by class'][name]:.0%} | {found['guidance 2, by class'][name]:.0%} |"
        for name in shapes.CLASSES
    )
    stages = "\n".join(f"| {name} | {r['step']} | {r['seconds'] / 60:.1f} |" for name, r in records.items())
    size = sum(p.numel() for p in pipeline.load(home).transformer.parameters())
    (home / "MODEL_CARD.md").write_text(
        f"""# A small class-conditional denoiser

A stock `DiTTransformer2DModel` of diffusers on the pixels of generated scenes of 32 x 32: {size:,} parameters, 64 tokens, 12
classes, velocity prediction; with it the frozen classifier that judges its samples. Weights are bfloat16, computed in float32.
`tokensieve.testbed.diffusion.pipeline.load()` loads it, `python -m tokensieve.testbed.diffusion.train` trains it anew.

Of {SAMPLES} samples of 20 DDIM steps the classifier takes {found["guidance 1"]:.1%} for their class without guidance and
{found["guidance 2"]:.1%} with a guidance of 2; of as many test scenes {found["scenes"]:.1%}. The goal was 90%.

| class | recognised | with guidance 2 |
|---|---|---|
{rows}

| stage | steps | minutes |
|---|---|---|
{stages}

Seed {seed}; {record["machine"]}; {", ".join(f"{k} {v}" for k, v in record["versions"].items())}. The machine had other work too.
"""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/diffusion-bed"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None, help="of the denoiser")
    given = parser.parse_args()
    card(given.out / "dit", train(given.out, given.seed, given.steps), given.seed)


if __name__ == "__main__":
    main()
