"""The stages that make the model of several pictures out of the model of one.

talk     the language model alone, on prompts of a few spelled-out visual tokens at the places they have among all
answer   projector, line end and language model on questions about pictures, with every visual token; the tower stays fixed
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from . import onevision, packing, spelled
from .anyres import large, views
from .clips import clip, clip_questions
from .onevision import TOKENS
from .pairs import pair, pair_questions
from .questions import SceneQuestion, questions
from .stages import _answer_loss, pixels, stack

TURNS = ("clip", "pair", "clip", "clip", "pair", "anyres")  # clips are furthest from what the model knows


def talk(model, seed: int, batch: int):
    """The modules, the sample maker, the collate function and the loss of the first stage; batches take turns in form."""
    modules = nn.ModuleDict({"language": model.model.language_model, "head": model.lm_head})
    table, missed = spelled.summands(model, pixels, seed + 9)
    width = table.shape[1]

    def make(index):
        form = TURNS[index // batch % len(TURNS)]
        noise = np.random.default_rng([seed, index]).standard_normal((spelled.SPOTS, width), dtype=np.float32)
        return {"form": form, "noise": missed * noise, **spelled.spell(form, seed + 1, index)}

    def collate(samples):
        tokens = TOKENS[samples[0]["form"]] + 1
        spots = stack([{key: s[key] for key in ("place", "thing", "bare", "share", "noise")} for s in samples])
        packed = packing.pack([sample["questions"] for sample in samples], tokens)
        place = torch.cat([torch.zeros(len(samples), 1, dtype=torch.long), spots["place"]], dim=1)
        return spots | packed | {"positions": torch.cat([place, packed["positions"][:, tokens:]], dim=1)}

    def loss_of(batch):
        spots = spelled.embed(table.to(batch["noise"].device), batch) + batch["noise"]
        start = model.get_input_embeddings()(torch.full((len(spots), 1), packing.START, device=spots.device))
        return _answer_loss(packing.run(model, torch.cat([start, spots], dim=1), batch), batch)

    return modules, make, collate, loss_of


def answer(model, seed: int, batch: int):
    """Questions about pictures; batches take turns in form."""
    body = model.model
    modules = nn.ModuleDict(
        {
            "projector": body.multi_modal_projector,
            "newline": nn.ParameterDict({"newline": body.image_newline}),
            "language": body.language_model,
            "head": model.lm_head,
        }
    )
    body.vision_tower.requires_grad_(False)

    def make(index):
        form = TURNS[index // batch % len(TURNS)]
        return {"form": form, **drawn(form, seed + 2, index)}

    def collate(samples):
        form = samples[0]["form"]
        packed = packing.pack([sample["questions"] for sample in samples], TOKENS[form] + 1)
        return {"form": form, "tiles": stack([{"tiles": s["tiles"]} for s in samples])["tiles"], **packed}

    def loss_of(batch):
        seen = onevision.prefix(model, batch["form"], tiles(batch["tiles"]))
        loss, right = _answer_loss(packing.run(model, seen, batch), batch)
        return loss, {f"right, {batch['form']}": right["right"]}

    return modules, make, collate, loss_of


def drawn(form: str, seed: int, index: int, split: str = "train") -> dict:
    """Sample `index` as the pictures that the tower sees, uint8 `(T, 336, 336, 3)`, and all that can be asked about it."""
    asked: Sequence[SceneQuestion]
    if form == "clip":
        film = clip(seed, index, split)
        pictures, asked = film.images, clip_questions(film)
    elif form == "pair":
        scenes = pair(seed, index, split)
        pictures, asked = tuple(scene.image for scene in scenes), pair_questions(*scenes)
    else:
        scene = large(seed, index, split)
        pictures, asked = views(scene.image), questions(scene)
    return {"tiles": np.stack([np.asarray(picture) for picture in pictures]), "questions": asked}


def tiles(images: torch.Tensor) -> torch.Tensor:
    """uint8 `(B, T, H, W, 3)` to what the image processor makes of it."""
    return pixels(images.flatten(0, 1)).unflatten(0, images.shape[:2])
