"""What the vision tower is trained to know: per patch what is there, and in its CLS output what is anywhere.

The heads exist during training only.
"""

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from .scenes import SIZE, Scene
from .words import COLOURS, KINDS, LEXICON, NAMES

PATCH = 14
SIDE = SIZE // PATCH
IGNORE = -100
MASK = 7  # resolution at which a patch's own ink is predicted
THUMB = 8  # and that of the whole thing around it
LETTERS = sorted(set("".join(LEXICON)))
_KIND, _NAME, _COLOUR = ({word: i for i, word in enumerate(group)} for group in (KINDS, NAMES, COLOURS))


def labels(scene: Scene, patch: int = PATCH) -> dict[str, np.ndarray]:
    """Labels of all patches of so many pixels a side, (n,): 0 is background, `IGNORE` the rim of a thing. `present` (50,) belongs
    to the CLS output."""
    side = SIZE // patch
    maps: dict[str, np.ndarray] = {
        key: np.zeros((side, side), dtype=np.int64) for key in ("kind", "name", "colour", "place")
    }
    maps["centre"] = np.zeros((side, side), dtype=np.float32)
    maps["letters"] = np.zeros((side, side, len(LETTERS)), dtype=np.float32)
    maps["thumb"] = np.zeros((side, side, THUMB * THUMB), dtype=np.float32)
    ink = np.asarray(scene.ink.resize((side * MASK, side * MASK), Image.Resampling.BOX), dtype=np.float32) / 255
    maps["ink"] = ink.reshape(side, MASK, side, MASK).swapaxes(1, 2).reshape(side, side, MASK * MASK)
    present = np.zeros(len(COLOURS) + len(NAMES), dtype=np.float32)
    for thing in scene.things:
        share = _overlap(thing.box, patch)
        known = {
            "kind": _KIND[thing.kind],
            "name": _NAME[thing.name],
            "colour": _COLOUR[thing.colour],
            "place": 3 * thing.cell[0] + thing.cell[1],
        }
        for key, value in known.items():
            maps[key][share > 0] = IGNORE
            maps[key][share >= min(0.4, share.max())] = value + 1
        small = scene.ink.resize((THUMB, THUMB), Image.Resampling.BOX, box=thing.box)
        maps["thumb"][share >= min(0.4, share.max())] = np.asarray(small, dtype=np.float32).ravel() / 255
        x0, y0, x1, y1 = thing.box
        maps["centre"][(y0 + y1) // 2 // patch, (x0 + x1) // 2 // patch] = 1
        if thing.kind == "word":
            for i, letter in enumerate(thing.name):  # letters of nearly equal width are close enough
                step = (x1 - x0) / len(thing.name)
                at = _overlap((x0 + i * step, y0, x0 + (i + 1) * step, y1), patch)
                maps["letters"][at > 0.2, LETTERS.index(letter)] = 1
        present[known["colour"]] = present[len(COLOURS) + known["name"]] = 1
    return {key: value.reshape(side * side, *value.shape[2:]) for key, value in maps.items()} | {"present": present}


def _overlap(box, patch: int) -> np.ndarray:
    """The share of each patch that the box covers, (side, side)."""
    edges = np.arange(SIZE // patch) * patch
    across, down = (
        np.clip(np.minimum(edges + patch, high) - np.maximum(edges, low), 0, None) / patch
        for low, high in ((box[0], box[2]), (box[1], box[3]))
    )
    return down[:, None] * across[None, :]


class Heads(nn.Module):
    """Linear read-outs of the patch features of layer -2 and of the CLS output."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        sizes = {"kind": len(KINDS) + 1, "name": len(NAMES) + 1, "colour": len(COLOURS) + 1, "place": 10}
        self.patch = nn.ModuleDict({key: nn.Linear(width, size) for key, size in sizes.items()})
        self.centre = nn.Linear(width, 1)
        self.letters = nn.Linear(width, len(LETTERS))
        self.thumb = nn.Linear(width, THUMB * THUMB)
        self.ink = nn.Linear(width, MASK * MASK)
        self.present = nn.Linear(width, len(COLOURS) + len(NAMES))

    def forward(self, early, patches, cls, target) -> tuple[torch.Tensor, dict[str, float]]:
        """The weighted loss, and the accuracy on patches of things for each label.

        `early` is the output of the second block: telling ink from background, whatever their colours, comes first.
        """
        ink = F.binary_cross_entropy_with_logits(self.ink(early).float(), target["ink"])
        patches = self.norm(patches)
        loss, seen = torch.zeros((), device=patches.device), {}
        for key, weight in (("kind", 0.3), ("name", 2.0), ("colour", 0.3), ("place", 0.2)):
            logits = self.patch[key](patches).flatten(0, 1)
            gold = target[key].flatten()
            rare = torch.ones(logits.shape[1], device=logits.device)
            rare[0] = 0.05  # background is nearly everything and easy
            loss = loss + weight * F.cross_entropy(logits.float(), gold, weight=rare, ignore_index=IGNORE)
            on = gold > 0
            seen[key] = (logits[on].argmax(-1) == gold[on]).float().mean().item()
        for kind, names in (("digit", range(1, 11)), ("shape", range(11, 19)), ("word", range(19, 43))):
            gold = target["name"].flatten()
            on = (gold >= names[0]) & (gold <= names[-1])
            if on.any():
                guess = self.patch["name"](patches).flatten(0, 1)[on].argmax(-1)
                seen[kind] = (guess == gold[on]).float().mean().item()
        centre = F.binary_cross_entropy_with_logits(
            self.centre(patches)[..., 0].float(), target["centre"], pos_weight=torch.tensor(20.0, device=patches.device)
        )
        words = target["letters"].any(-1)
        letters = F.binary_cross_entropy_with_logits(self.letters(patches)[words].float(), target["letters"][words])
        present = F.binary_cross_entropy_with_logits(self.present(cls).float(), target["present"])
        things = target["kind"] > 0
        thumb = (self.thumb(patches)[things].float() - target["thumb"][things]).square().mean()
        loss = loss + centre + present + 5.0 * ink + 10.0 * thumb + (2.0 * letters if words.any() else 0.0)
        seen |= {"thumb": thumb.item(), "ink": ink.item(), "letters": letters.item()}
        return loss, seen
