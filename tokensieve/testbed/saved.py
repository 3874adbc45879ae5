"""Saved models, their weights under the names that hub checkpoints have; transformers and vLLM load those."""

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from tokensieve.core.files import write

INSIDE = {"vision_tower.": "vision_tower.vision_model.", "model.vision_tower.": "model.vision_tower.vision_model."}
"""What the names of an encoder's weights begin with as transformers saves them, and on the hub."""


def hub_names(directory: Path) -> None:
    """Rename the weights of a saved model in place; those that have their hub's name stay as they are."""
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as f:
            meta, tensors = f.metadata(), {_hub(name): f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        write(path, lambda part, t=tensors, m=meta: save_file(t, part, metadata=m))


def _hub(name: str) -> str:
    for ours, theirs in INSIDE.items():
        if name.startswith(ours) and not name.startswith(theirs):
            return theirs + name.removeprefix(ours)
    return name
