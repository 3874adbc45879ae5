"""Linear probes of the packaged tower's patches: what a dense head finds in them, in full and with fewer tokens inside.

`python -m tokensieve.testbed.probes` fits them anew, in about a minute.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tokensieve.core.files import write

from .dense import IGNORE, labels
from .model import build_processor, load
from .scenes import Scene, generate
from .words import COLOURS, KINDS, NAMES

FILE = Path(__file__).parent / "probes" / "probes.safetensors"
CLASSES = {"kind": len(KINDS) + 1, "name": len(NAMES) + 1, "colour": len(COLOURS) + 1}
SCENES, STEPS, BATCH = 240, 1500, 8192


class PatchProbes(nn.Module):
    """From patch states ``(B, 576, 128)`` behind the tower's last block but one to logits of what each patch shows: its `kind`
    (0 for background, then digit, shape, word), its `name` and its `colour`."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in CLASSES.items()})

    def forward(self, states: Tensor) -> dict[str, Tensor]:
        return {name: head(states) for name, head in self.heads.items()}


@dataclass(frozen=True)
class DenseScore:
    """What probes find in scenes, as shares of 1.

    Attributes:
        miou: the mean over the four kinds of intersection over union; name, colour: of patches of things, the share whose name
            (colour) is the right one.
    """

    miou: float
    name: float
    colour: float


def tower() -> Any:
    """The packaged model's vision tower up to the block behind which its features leave: its `last_hidden_state` is what the
    probes read, behind a class token."""
    model = copy.deepcopy(load()[0].model.vision_tower).eval()
    inner = next(m for m in model.modules() if isinstance(getattr(m, "layers", None), nn.ModuleList))
    inner.layers = inner.layers[:-1]
    model.config.num_hidden_layers = len(inner.layers)
    return model


def load_probes(file: Path = FILE) -> PatchProbes:
    """The packaged probes."""
    probes = PatchProbes()
    probes.load_state_dict(load_file(file))
    return probes.eval()


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """``(B, 3, 336, 336)``, as the tower takes them."""
    return build_processor().image_processor([s.image for s in scenes], return_tensors="pt")["pixel_values"]


@functools.cache
def held_out(count: int, seed: int = 5) -> tuple[Scene, ...]:
    """Scenes of the test split."""
    return tuple(generate(seed, index, "test") for index in range(count))


@torch.no_grad()
def seen(
    model: nn.Module, probes: PatchProbes, scenes: Sequence[Scene], batch: int = 8, states: Callable | None = None
) -> DenseScore:
    """What the probes find behind a tower, with whatever is attached to it.

    Args:
        states: in the place of the tower's own, from pixels to patch states ``(B, 576, D)``.
    """
    guessed: dict[str, list[Tensor]] = {name: [] for name in CLASSES}
    for start in range(0, len(scenes), batch):
        given = pixels(scenes[start : start + batch])
        made = model(pixel_values=given).last_hidden_state[:, 1:] if states is None else states(given)
        for name, logits in probes(made).items():
            guessed[name].append(logits.argmax(2))
    return score({name: torch.cat(parts) for name, parts in guessed.items()}, scenes)


def score(guessed: dict[str, Tensor], scenes: Sequence[Scene]) -> DenseScore:
    """Of guesses ``(scenes, 576)`` long of each of :data:`CLASSES`."""
    right = _labels(scenes)
    inside = right["kind"] != IGNORE
    guess, kind = guessed["kind"][inside], right["kind"][inside]
    shares = [((guess == c) & (kind == c)).sum() / ((guess == c) | (kind == c)).sum() for c in range(CLASSES["kind"])]
    things = right["kind"] > 0
    name, colour = ((guessed[n] == right[n])[things].float().mean() for n in ("name", "colour"))
    return DenseScore(*(round(float(x), 4) for x in (torch.stack(shares).mean(), name, colour)))


def _labels(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    made = [labels(scene) for scene in scenes]
    return {name: torch.stack([torch.from_numpy(one[name]) for one in made]) for name in CLASSES}


def train_scenes(count: int = SCENES, seed: int = 900) -> list[Scene]:
    """Scenes of the training split, which nothing here is measured on."""
    return [generate(seed, index) for index in range(count)]


def fit(states: Tensor, scenes: Sequence[Scene], seed: int = 0) -> PatchProbes:
    """Probes of patch states ``(scenes, 576, D)``."""
    torch.manual_seed(seed)
    right = {k: v.flatten() for k, v in _labels(scenes).items()}
    states = states.flatten(0, 1)
    middle, spread = states.mean(0), states.std(0)
    states, probes = (states - middle) / spread, PatchProbes(states.shape[1])
    optimizer = torch.optim.AdamW(probes.parameters(), lr=1e-2, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS)
    things = (right["kind"] > 0).nonzero()[:, 0]
    with torch.enable_grad():
        for _ in range(STEPS):
            # Background is most of every scene and easy: half of a batch are patches of things.
            some = torch.randint(len(states), (BATCH // 2,))
            pick = torch.cat([some, things[torch.randint(len(things), (BATCH // 2,))]])
            logits = probes(states[pick])
            parts = [F.cross_entropy(x, right[n][pick], ignore_index=IGNORE) for n, x in logits.items()]
            loss = torch.stack(parts).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        for head in probes.heads.values():
            assert isinstance(head, nn.Linear)
            head.bias.sub_((head.weight / spread) @ middle)
            head.weight.div_(spread)
    return probes.eval()


@torch.no_grad()
def states_of(model: nn.Module, scenes: Sequence[Scene], block: int | None = None, batch: int = 8) -> Tensor:
    """``(scenes, 576, D)``: patch states behind a block, counted from 0; behind the last by default."""
    parts = []
    for start in range(0, len(scenes), batch):
        out = model(pixel_values=pixels(scenes[start : start + batch]), output_hidden_states=True)
        parts.append((out.last_hidden_state if block is None else out.hidden_states[block + 1])[:, 1:])
    return torch.cat(parts)


def main() -> None:
    """Fit, and write the packaged file."""
    scenes = train_scenes()
    probes = fit(states_of(tower(), scenes), scenes)
    FILE.parent.mkdir(exist_ok=True)
    tensors = {name: value.contiguous() for name, value in probes.state_dict().items()}
    write(FILE, lambda part: save_file(tensors, part, metadata={"format": "tokensieve.patch-probes.1"}))
    print(seen(tower(), probes, held_out(48)))


if __name__ == "__main__":
    main()
