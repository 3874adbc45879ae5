"""The later stages: the projector learns words for patches, the adapters to look things up, then both to answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.around.contrast import NOTHING, WORDS
from tokensieve.testbed import packing
from tokensieve.testbed.around.model import BEFORE, END, PATCH, VISUAL, Around, asked
from tokensieve.testbed.around.scenes import crowd, generate, picture
from tokensieve.testbed.dense import labels
from tokensieve.testbed.questions import SceneQuestion, questions
from tokensieve.testbed.stages import pixels, stack
from tokensieve.testbed.words import COLUMNS, ROWS

ASKED = 12
"""Questions of a scene in one step."""
CENTRE = "things"
SAID = (*WORDS, "row", "column", "centre")
SLOTS, SLOT = 6, 5
"""Places of a scene in words, and tokens of one: a thing takes some of them, as it takes several patches of a picture."""


@torch.no_grad()
def spelled(around: Around) -> dict[str, Tensor]:
    """By what is said of a patch, the embeddings of the words for it, ``(1 + n, D)``, with zeros first; under ``marks`` those of
    what is nothing and of a thing's middle."""
    words = {k: around.words(list(group)) for k, group in (WORDS | {"row": ROWS, "column": COLUMNS}).items()}
    return {k: F.pad(w, (0, 0, 1, 0)) for k, w in words.items()} | {"marks": around.words([NOTHING, CENTRE])}


def put(words: dict[str, Tensor], said: dict[str, Tensor]) -> Tensor:
    """``(B, N, D)``: the sum of the words for each patch.

    Args:
        said: ``(B, N)`` indices from 1, at most 0 where there is nothing of that sort, and ``centre``, above 0 at a middle.
    """
    whole = sum(table[said[k].clamp(min=0)] for k, table in words.items() if k != "marks")
    nothing, middle = words["marks"]
    return whole + (said["centre"] > 0)[..., None] * middle + (said["kind"] == 0)[..., None] * nothing


def align(around: Around, seed: int) -> tuple[Any, ...]:
    """The projector learns to put each patch where the language model expects the words for it: the sum of their embeddings."""
    modules = nn.ModuleDict({"projector": around.trained["projector"]})
    tower, size = around.trained["tower"], around.model.get_input_embeddings().weight.square().mean()
    words = spelled(around)

    def make(index: int) -> dict[str, Any]:
        scene = generate(seed + 2, index) if index % 2 else crowd(seed + 2, index)
        known = labels(scene, PATCH)
        place = known.pop("place")
        known["row"], known["column"] = (
            np.where(place > 0, (place - 1) // 3 + 1, 0),
            np.where(place > 0, (place - 1) % 3 + 1, 0),
        )
        return {"image": np.asarray(picture(scene)), **{k: known[k] for k in SAID}}

    def loss_of(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        with torch.no_grad():
            seen = tower(pixels(batch["image"]), output_hidden_states=True)
            wanted = put(words, batch)
        got = modules["projector"](seen.hidden_states[-2][:, 1:]).float()
        miss = (got - wanted).square().mean(-1) / size
        weight = (batch["kind"] > 0).float() + 0.05 * (batch["kind"] == 0)
        loss, seen_right = (miss * weight).sum() / weight.sum(), {}
        for key, table in words.items():
            if key != "marks":
                part, seen_right[key] = told_apart(
                    got - wanted, table[1:], batch[key] - 1, 0.1 * float(size) * got.shape[-1]
                )
                loss = loss + part
        return loss, seen_right

    return modules, make, stack, loss_of


def told_apart(error: Tensor, table: Tensor, gold: Tensor, heat: float) -> tuple[Tensor, float]:
    """Cross-entropy of which word a patch says among those that could stand in its place, by squared distances over ``heat``, and
    the share of patches nearest to their own: words that lie close to each other are little of a sum, and all of its meaning.

    Args:
        error: ``(B, N, D)``, what the projector says less what it should; table: ``(n, D)``; gold: ``(B, N)``, below 0 where no
            word is wanted.
    """
    on = gold >= 0
    off, own = error[on], gold[on]
    # The distance to a sum in which word j stands for the right one, less what all j have in common.
    apart = table[own][:, None] - table
    near = -(2 * torch.einsum("nd,njd->nj", off, apart) + apart.square().sum(-1)) / heat
    return F.cross_entropy(near, own), float((near.argmax(1) == own).float().mean())


def encode(around: Around, question: SceneQuestion) -> tuple[list[int], list[int]]:
    """Token ids of what follows the picture, and of the answer with its end."""
    both = (asked(question.text), f"{question.answer}{END}")
    before, said = (around.tokenizer(text, add_special_tokens=False)["input_ids"] for text in both)
    return before, said


def _start(around: Around) -> list[int]:
    return around.tokenizer(BEFORE, add_special_tokens=False)["input_ids"]


def prefix(around: Around, images: Tensor) -> Tensor:
    """What stands before the questions, embedded: ``(B, P, D)``."""
    model = around.model
    before = torch.tensor([_start(around)])
    with torch.no_grad():
        seen = around.trained["tower"](pixels(images), output_hidden_states=True)
    patches = around.trained["projector"](seen.hidden_states[-2][:, 1:])
    first = model.get_input_embeddings()(before.to(patches.device)).expand(len(patches), -1, -1)
    return torch.cat([first.to(patches.dtype), patches], 1)


def pack(around: Around, some: list[list[SceneQuestion]], before: int) -> dict[str, Tensor]:
    pad = around.tokenizer.convert_tokens_to_ids(END)
    return packing.pack(some, before, lambda q: encode(around, q), pad)


def read(around: Around, first: Tensor, packed: dict[str, Tensor]) -> tuple[Tensor, list[list[bool]]]:
    """Logits at the answers' tokens alone, ``(n, V)``, float32, since the vocabulary is large; and for each row and question
    whether greedy decoding answers it."""
    counts = packed["labels"] != packing.IGNORE
    said = around.model.lm_head(packing.states(around.model, first, packed)[counts]).float()
    guess = packed["labels"].masked_scatter(counts, said.argmax(-1))
    return said, packing.answered(guess, packed)


def talk(around: Around, seed: int) -> tuple[Any, ...]:
    """Adapters learn to look things up in scenes given as words, a few tokens for each thing instead of its patches: cheap, and
    with nothing that the tower mistook."""
    modules = nn.ModuleDict({"adapters": around.adapters})
    words, table = spelled(around), around.model.get_input_embeddings()
    start = torch.tensor(_start(around))
    blur = 0.3 * float(table.weight.std())
    numbers = {k: {w: i for i, w in enumerate(group, 1)} for k, group in WORDS.items()}

    def make(index: int) -> dict[str, Any]:
        scene, rng = generate(seed + 1, index), np.random.default_rng([seed, index, 2])
        said = {k: np.zeros(SLOTS * SLOT, dtype=np.int64) for k in SAID}
        starts = np.sort(rng.choice(SLOTS, size=len(scene.things), replace=False)) * SLOT
        for at, thing in zip(starts, sorted(scene.things, key=lambda t: t.cell), strict=True):
            length = int(rng.integers(1, SLOT + 1))
            for key, known in numbers.items():
                said[key][at : at + length] = known[getattr(thing, key)]
            said["row"][at : at + length], said["column"][at : at + length] = thing.cell[0] + 1, thing.cell[1] + 1
            said["centre"][at + int(rng.integers(length))] = 1
        noise = rng.standard_normal((SLOTS * SLOT, table.embedding_dim), dtype=np.float32) * blur
        return {"said": said | {"noise": noise}, "questions": _some(questions(scene), rng)}

    def collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        return stack([s["said"] for s in samples]) | pack(
            around, [s["questions"] for s in samples], len(start) + SLOTS * SLOT
        )

    def loss_of(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        spots = put(words, batch) + batch["noise"]
        first = table(start.to(spots.device)).expand(len(spots), -1, -1)
        return _loss(around, torch.cat([first, spots], 1), batch)

    return modules, make, collate, loss_of


def _some(every: list[SceneQuestion], rng: np.random.Generator) -> list[SceneQuestion]:
    return [every[i] for i in rng.permutation(len(every))[:ASKED]]


def _loss(around: Around, first: Tensor, packed: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    said, flags = read(around, first, packed)
    gold = packed["labels"][packed["labels"] != packing.IGNORE]
    return F.cross_entropy(said, gold), {"right": float(np.mean([ok for row in flags for ok in row]))}


def answer(around: Around, seed: int) -> tuple[Any, ...]:
    """Questions about pictures; tower and the language model's own weights do not change: the tower knows more than answers teach
    it, and would lose some of that."""
    modules = nn.ModuleDict({k: around.trained[k] for k in ("projector", "adapters")})
    before = len(_start(around)) + VISUAL

    def make(index: int) -> dict[str, Any]:
        scene = generate(seed + 3, index)
        some = _some(questions(scene), np.random.default_rng([seed, index, 1]))
        return {"image": np.asarray(picture(scene)), "questions": some}

    def collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        return stack([{"image": s["image"]} for s in samples]) | pack(around, [s["questions"] for s in samples], before)

    def loss_of(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        return _loss(around, prefix(around, batch["image"]), batch)

    return modules, make, collate, loss_of
