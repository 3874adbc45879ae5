"""One training loop for every stage: scheduled, logged, and resumable to the bit on the same machine."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from tokensieve.core.files import write


@dataclass(frozen=True)
class TrainingStage:
    """How long and how fast one stage trains. Its length is `steps`, or else `minutes` of training time."""

    name: str
    rate: float
    batch: int
    minutes: float = 1.0
    steps: int | None = None
    warmup: float = 0.04
    decay: float = 0.02  # weight decay
    end: float = 0.02  # the share of the rate that is left at the end


class _Stream(Dataset):
    """Samples `make(i)` in order from `start`: the data is a function of the step, so resuming needs no data state."""

    def __init__(self, make: Callable[[int], object], start: int):
        self.make, self.start = make, start

    def __len__(self):
        return 1 << 40

    def __getitem__(self, i):
        return self.make(self.start + i)


def fit(
    stage: TrainingStage,
    modules: nn.ModuleDict,
    make: Callable[[int], object],
    collate: Callable[[list], object],
    loss_of: Callable[[object], tuple[torch.Tensor, dict[str, float]]],
    out: Path,
    slow: dict[str, float] | None = None,
    workers: int = 1,
    save_every: float = 120.0,
    watch: Callable[[], dict] | None = None,
    watch_every: float = 240.0,
    stop_at: int | None = None,
) -> dict:
    """Train `modules` until the stage's length is reached; start from `out`'s checkpoint where there is one.

    `slow` gives some modules a share of the learning rate, `watch` is called now and then for the log, and `stop_at`
    leaves early with a checkpoint. Returns the stage's record: steps, seconds, and whether it is done.
    """
    optimizers = _optimizers(modules, slow or {}, stage.decay)
    record = _restore(out, stage.name, modules, optimizers) or {"step": 0, "seconds": 0.0, "done": False}
    if record["done"]:
        return record
    device = next(modules.parameters()).device
    stream = DataLoader(
        _Stream(make, record["step"] * stage.batch),
        batch_size=stage.batch,
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=8 if workers else None,
        pin_memory=device.type == "cuda",
    )
    modules.train()
    means: dict[str, float] = {}
    began, saved, watched = time.monotonic() - record["seconds"], time.monotonic(), time.monotonic()
    bar = tqdm(
        total=stage.steps, initial=record["step"], desc=stage.name, mininterval=20, dynamic_ncols=False, ncols=160
    )
    for batch in stream:
        share = record["step"] / stage.steps if stage.steps else record["seconds"] / (60 * stage.minutes)
        record["done"] = share >= 1
        if record["done"] or record["step"] == stop_at:
            break
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = stage.rate * group["share"] * _schedule(share, stage.warmup, stage.end)
        with torch.autocast(device.type, torch.bfloat16, enabled=_fast_in_bfloat16(device)):
            loss, seen = loss_of(_to(batch, device))
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        record["step"] += 1
        record["seconds"] = time.monotonic() - began
        for key, value in {"loss": loss.item(), **seen}.items():
            if not math.isnan(value):
                means[key] = value + 0.97 * (means.get(key, value) - value)
        bar.update(1)
        bar.set_postfix({k: f"{v:.3f}" for k, v in means.items()}, refresh=False)
        if watch and time.monotonic() - watched > watch_every:
            _log(out, stage.name, record, means | watch())
            modules.train()
            watched = time.monotonic()
        if time.monotonic() - saved > save_every:
            _save(out, stage.name, modules, optimizers, record)
            _log(out, stage.name, record, means)
            saved = time.monotonic()
    bar.close()
    record["seconds"] = round(record["seconds"], 1)
    _save(out, stage.name, modules, optimizers, record)
    _log(out, stage.name, record, means)
    return record


def _optimizers(modules: nn.ModuleDict, slow: dict[str, float], decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, which needs far fewer steps than AdamW; AdamW for the rest."""
    matrices, rest = [], []
    for key, module in modules.items():
        share = slow.get(key, 1.0)
        inside = [p for name, p in module.named_parameters() if p.ndim == 2 and "layers." in name]
        others = [p for name, p in module.named_parameters() if not (p.ndim == 2 and "layers." in name)]
        matrices += [{"params": inside, "share": 3 * share}] if inside else []
        rest += [{"params": others, "share": share}] if others else []
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, betas=(0.9, 0.97), weight_decay=decay)] if rest else []
    if matrices:
        made.append(torch.optim.Muon(matrices, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return made


def _fast_in_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)


def _schedule(share: float, warmup: float, end: float) -> float:
    """Linear warm-up, then a cosine down to `end`."""
    if share < warmup:
        return share / warmup + 1e-3
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))


def _to(batch, device):
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _log(out: Path, name: str, record: dict, values: dict) -> None:
    line = {"stage": name, **record, **{k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}}
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def _save(out: Path, name: str, modules: nn.ModuleDict, optimizers: list, record: dict) -> None:
    tensors = {f"module/{k}": v.detach().contiguous().clone() for k, v in modules.state_dict().items()}
    for n, optimizer in enumerate([] if record["done"] else optimizers):
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{n}/{i}/{k}": torch.as_tensor(v).contiguous() for k, v in state.items()}
    meta = {"record": json.dumps(record)}
    write(out / f"{name}.safetensors", lambda part: save_file(tensors, part, metadata=meta))


def _restore(out: Path, name: str, modules: nn.ModuleDict, optimizers: list) -> dict | None:
    file = out / f"{name}.safetensors"
    if not file.exists():
        return None
    with safe_open(file, "pt") as opened:
        record = json.loads(opened.metadata()["record"])
    tensors = load_file(file)
    modules.load_state_dict({k.removeprefix("module/"): v for k, v in tensors.items() if k.startswith("module/")})
    for n, optimizer in enumerate(optimizers):
        states: dict[int, dict] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer/{n}/"):
                i, entry = key.split("/")[2:]
                states.setdefault(int(i), {})[entry] = value
        if states:
            optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
    return record
