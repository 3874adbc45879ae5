"""Saved models, their weights under the names that hub checkpoints have; transformers and vLLM load those."""

import functools
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from tokensieve.core.files import write

TOWER, INSIDE = "vision_tower.", "vision_model."
"""What the names of an encoder's weights begin with, and what the hub's names of those of CLIP and SigLIP have behind it."""
OWN = "vision_tower.encoder.layers."
"""Where the blocks of these two are, as transformers saves them."""


def hub_names(directory: Path) -> None:
    """Rename the weights of a saved model in place; those that have their hub's name stay as they are."""
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as f:
            meta, tensors = f.metadata(), {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        if any(OWN in name for name in tensors):
            tensors = {name.replace(TOWER, TOWER + INSIDE): tensor for name, tensor in tensors.items()}
            write(path, functools.partial(save_file, tensors, metadata=meta))
