"""The stages of training, in the order in which a real LLaVA comes about.

see      the vision tower alone, on dense labels            (CLIP's pretraining)
talk     the language model alone, on scenes in words       (the language model's pretraining)
align    the projector alone, tower and language model fixed (LLaVA stage 1)
answer   all of it on questions, the tower at a low rate    (LLaVA stage 2)
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from . import packing
from .dense import Heads, labels
from .questions import questions
from .scenes import Scene, crowd, generate
from .words import COLOURS, COLUMNS, KINDS, NAMES, ROWS, VOCABULARY


def pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 (B, H, W, 3) to what the packaged image processor makes of it."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], device=images.device) * 255
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711], device=images.device) * 255
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)


def stack(samples: list[dict]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in samples[0]}


def see(model, seed: int):
    """The modules, the sample maker, the collate function and the loss of the first stage."""
    tower = model.model.vision_tower
    modules = nn.ModuleDict({"tower": tower, "heads": Heads(tower.config.hidden_size)}).to(model.device)

    def make(index):
        scene = generate(seed, index) if index % 4 == 0 else crowd(seed, index)
        return {"image": np.asarray(scene.image), **labels(scene)}

    def loss_of(batch):
        seen = tower(pixels(batch["image"]), output_hidden_states=True)
        layers = seen.hidden_states
        return modules["heads"](layers[2][:, 1:], layers[-2][:, 1:], seen.pooler_output, batch)

    return modules, make, stack, loss_of


_ID = {word: i for i, word in enumerate(VOCABULARY)}
_SPOTS = 48  # how many tokens a scene in words takes


def _spell(thing) -> list[int]:
    return [_ID[word] for word in (thing.kind, thing.name, thing.colour, *thing.place.split())]


def in_words(scene: Scene, rng) -> np.ndarray:
    """The scene without the picture: (48, 6) token ids, whose embeddings are added up into 48 tokens.

    A thing takes a few tokens in a row, as it takes several patches of an image; one of them is marked as its middle
    with the word "things". The rest is padding.
    """
    spots = np.zeros((_SPOTS, 6), dtype=np.int64)
    starts = np.sort(rng.choice(_SPOTS // 6, size=len(scene.things), replace=False)) * 6
    for start, thing in zip(starts, sorted(scene.things, key=lambda t: t.cell), strict=True):
        length = int(rng.integers(1, 7))
        spots[start : start + length, :5] = _spell(thing)
        spots[start + int(rng.integers(length)), 5] = _ID["things"]
    return spots


def _add_up(model, spots: torch.Tensor) -> torch.Tensor:
    """Sums of word embeddings: (..., 6) ids to (..., D); padding counts as zero."""
    return (model.get_input_embeddings()(spots) * (spots != _ID["<pad>"])[..., None]).sum(-2)


def talk(model, seed: int):
    """The language model learns to look things up, count and answer; 48 tokens instead of 576 make it cheap."""
    modules = nn.ModuleDict({"language": model.model.language_model, "head": model.lm_head})
    start = torch.tensor([[_ID["<s>"]]])
    width, blur = model.config.text_config.hidden_size, 0.3 * model.config.text_config.initializer_range

    def make(index):
        scene, rng = generate(seed + 1, index), np.random.default_rng([seed, index])
        noise = rng.standard_normal((_SPOTS, width), dtype=np.float32) * blur
        return {"spots": in_words(scene, rng), "noise": noise, "questions": questions(scene)}

    def collate(samples):
        spots = stack([{key: sample[key] for key in ("spots", "noise")} for sample in samples])
        return spots | packing.pack([sample["questions"] for sample in samples], _SPOTS + 1)

    def loss_of(batch):
        spots = _add_up(model, batch["spots"]) + batch["noise"]
        first = model.get_input_embeddings()(start.to(spots.device)).expand(len(spots), -1, -1)
        return _answer_loss(packing.run(model, torch.cat([first, spots], dim=1), batch), batch)

    return modules, make, collate, loss_of


def _answer_loss(logits, batch):
    loss = F.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten(), ignore_index=packing.IGNORE)
    right = [r for row in packing.right(logits, batch) for r in row]
    return loss, {"right": sum(right) / len(right)}


def align(model, seed: int):
    """The projector learns to put each patch where the language model expects the words for it."""
    modules = nn.ModuleDict({"projector": model.model.multi_modal_projector})

    def make(index):
        scene = generate(seed + 2, index)
        known = labels(scene)
        spots = np.zeros((len(known["kind"]), 6), dtype=np.int64)
        for column, (key, words) in enumerate((("kind", tuple(KINDS)), ("name", NAMES), ("colour", tuple(COLOURS)))):
            ids = np.array([0] + [_ID[word] for word in words])
            spots[:, column] = ids[np.maximum(known[key], 0)]
        place = known["place"] - 1
        for column, (axis, words) in enumerate(((place // 3, ROWS), (place % 3, COLUMNS)), 3):
            spots[:, column] = np.where(place >= 0, np.array([_ID[word] for word in words])[np.maximum(axis, 0)], 0)
        spots[:, 5] = np.where(known["centre"] > 0, _ID["things"], 0)
        # Rims are left out; background counts a little.
        weight = np.where(known["kind"] > 0, 1.0, np.where(known["kind"] == 0, 0.05, 0.0)).astype(np.float32)
        return {"image": np.asarray(scene.image), "spots": spots, "weight": weight}

    def loss_of(batch):
        with torch.no_grad():
            tower = model.model.vision_tower(pixels(batch["image"]), output_hidden_states=True)
            wanted = _add_up(model, batch["spots"])
        got = model.model.multi_modal_projector(tower.hidden_states[-2][:, 1:])
        miss = (got - wanted).square().mean(-1) / model.get_input_embeddings().weight.square().mean()
        return (miss * batch["weight"]).sum() / batch["weight"].sum(), {}

    return modules, make, stack, loss_of


def answer(model, seed: int):
    """Questions about pictures. Only answers and their ends are learned from, never the questions."""
    body = model.model
    modules = nn.ModuleDict(
        {
            "tower": body.vision_tower,
            "projector": body.multi_modal_projector,
            "language": body.language_model,
            "head": model.lm_head,
        }
    )

    def make(index):
        scene = generate(seed + 3, index)
        return {"image": np.asarray(scene.image), "questions": questions(scene)}

    def collate(samples):
        images = torch.from_numpy(np.stack([sample["image"] for sample in samples]))
        return {"images": images} | packing.pack([sample["questions"] for sample in samples], 577)

    def loss_of(batch):
        prefix = packing.image_prefix(model, pixels(batch["images"]))
        return _answer_loss(packing.run(model, prefix, batch), batch)

    return modules, make, collate, loss_of
