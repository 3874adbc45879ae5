"""The first stage: pictures against texts, whole pictures against captions and patches against words."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokensieve.testbed.around.model import PATCH, Around
from tokensieve.testbed.around.scenes import caption, crowd, foreground, generate, picture
from tokensieve.testbed.dense import IGNORE, LETTERS, MASK, THUMB, labels
from tokensieve.testbed.stages import pixels, stack
from tokensieve.testbed.words import COLOURS, COLUMNS, KINDS, NAMES, ROWS

WORDS = {"kind": tuple(KINDS), "name": NAMES, "colour": tuple(COLOURS)}
"""What is said of a thing, wherever it is."""
GROUPS = WORDS | {"place": tuple(f"{r} {c}" for r in ROWS for c in COLUMNS)}
WEIGHTS = {"kind": 0.3, "name": 2.0, "colour": 0.3, "place": 0.2}
NOTHING = "background"
HIGH, PLAIN, SHARE = 4.5, 2.0, 0.03
"""The norm, in medians, of the few background tokens that hold what is said of the whole picture; of all others at most; and the
share of the background that they are."""


class Space(nn.Module):
    """Where pictures and texts are compared: projections of both, with a learned scale on cosines. For training only."""

    def __init__(self, width: int, wide: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.picture, self.patch = nn.Linear(width, width), nn.ModuleDict({k: nn.Linear(width, width) for k in GROUPS})
        self.caption, self.word = nn.Linear(wide, width), nn.ModuleDict({k: nn.Linear(wide, width) for k in GROUPS})
        self.log = nn.Parameter(torch.tensor(2.3))
        self.centre = nn.Linear(width, 1)
        self.letters = nn.Linear(width, len(LETTERS))
        self.thumb = nn.Linear(width, THUMB * THUMB)
        self.ink = nn.Linear(width, MASK * MASK)

    def compared(self, seen: Tensor, said: Tensor) -> Tensor:
        """Scaled cosines of ``(..., D)`` and ``(n, D)``: ``(..., n)``."""
        return F.normalize(seen.float(), dim=-1) @ F.normalize(said.float(), dim=-1).T * self.log.clamp(max=4.6).exp()


def contrast(around: Around, seed: int) -> tuple[Any, ...]:
    """Image-text contrast on two scales.

    As CLIP's (arXiv 2103.00020), the tower's pooled output against the mean of the language model's own embeddings of a
    caption's words; and as RegionCLIP's (arXiv 2112.09106), patches against the embeddings of the words for what they show.
    What the tower sees then lies where the words are. Helpers for seeing at all (ink, letters, a thing's small picture) are
    those of the packaged testbed.
    """
    tower = around.trained["tower"]
    table = around.model.get_input_embeddings()
    space = Space(tower.config.hidden_size, table.embedding_dim)
    modules = nn.ModuleDict({"tower": tower, "space": space}).to(table.weight.device)
    spelt = table.weight.detach().cpu()  # captions are made where pictures are drawn
    with torch.no_grad():
        words = {k: around.words([NOTHING, *group]) for k, group in GROUPS.items()}
        words = {k: w / w.std(-1, keepdim=True) for k, w in words.items()}

    def make(index: int) -> dict[str, Any]:
        scene = generate(seed, index) if index % 4 == 0 else crowd(seed, index)
        ids = around.tokenizer(caption(scene, np.random.default_rng([seed, index])))["input_ids"]
        said = spelt[ids].mean(0)
        return {
            "image": np.asarray(picture(scene)), "said": (said / said.std()).numpy(), "fore": foreground(scene),
            **labels(scene, PATCH),
        }  # fmt: skip

    def loss_of(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        seen = tower(pixels(batch["image"]), output_hidden_states=True)
        early, features = seen.hidden_states[2][:, 1:], seen.hidden_states[-2][:, 1:]
        patches, shown = space.norm(features), {}
        loss = torch.zeros((), device=patches.device)
        for key, weight in WEIGHTS.items():
            alike = space.compared(space.patch[key](patches), space.word[key](words[key])).flatten(0, 1)
            gold = batch[key].flatten()
            rare = torch.ones(alike.shape[1], device=alike.device)
            rare[0] = 0.05  # background is nearly everything and easy
            loss = loss + weight * F.cross_entropy(alike, gold, weight=rare, ignore_index=IGNORE)
            on = gold > 0
            shown[key] = (alike[on].argmax(-1) == gold[on]).float().mean().item()
            if key == "name":
                for kind, (low, high) in {"digit": (1, 10), "shape": (11, 18), "word": (19, 42)}.items():
                    on = (gold >= low) & (gold <= high)
                    shown[kind] = (alike[on].argmax(-1) == gold[on]).float().mean().item()
        things, spelled = batch["kind"] > 0, batch["letters"].any(-1)
        centre = F.binary_cross_entropy_with_logits(
            space.centre(patches)[..., 0].float(), batch["centre"], pos_weight=torch.tensor(8.0, device=patches.device)
        )
        ink = F.binary_cross_entropy_with_logits(space.ink(early).float(), batch["ink"])
        thumb = (space.thumb(patches)[things].float() - batch["thumb"][things]).square().mean()
        letters = (
            F.binary_cross_entropy_with_logits(space.letters(patches)[spelled].float(), batch["letters"][spelled])
            if spelled.any()
            else 0.0
        )
        whole = space.compared(space.picture(seen.pooler_output), space.caption(batch["said"]))
        own = torch.arange(len(whole), device=whole.device)
        captions = (F.cross_entropy(whole, own) + F.cross_entropy(whole.T, own)) / 2
        shown["caption"] = (whole.argmax(1) == own).float().mean().item()
        norms, high = outliers(features, batch["fore"])
        shown["high"] = high
        return loss + centre + 5 * ink + 10 * thumb + 2 * letters + 0.5 * captions + norms, shown

    return modules, make, stack, loss_of


def outliers(features: Tensor, fore: Tensor) -> tuple[Tensor, float]:
    """What is missing for a few tokens of the background to stand out by their norm, as in large towers trained by contrast
    (arXiv 2309.16588), and the share of it that does.

    Which tokens is left to the tower: the highest of the background are asked to be higher, all others to stay low.
    """
    norms = features.float().norm(dim=-1)
    ratio = norms / norms.median(1, keepdim=True).values  # with its gradient: nothing is gained by raising all
    behind = ratio.masked_fill(fore, -1.0)
    count = max(1, round(SHARE * float((~fore).sum(1).float().mean())))
    chosen = behind.topk(count, 1).indices
    high = torch.zeros_like(fore).scatter_(1, chosen, True)
    loss = (HIGH / ratio[high]).log().clamp(min=0).mean() + (ratio[~high] / PLAIN).log().clamp(min=0).mean()
    return loss, float(((behind > 3).sum() / (~fore).sum()).detach())
