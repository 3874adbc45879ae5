"""The stages of training: pictures against captions first, then questions with the language model as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.around.model import Around, prompt
from benchmarks.around.scenes import caption, picture
from tokensieve.testbed.questions import questions
from tokensieve.testbed.scenes import crowd, generate
from tokensieve.testbed.stages import pixels

IGNORE = -100


def contrast(around: Around, seed: int) -> tuple[Any, ...]:
    """Image-text contrast as CLIP's (arXiv 2103.00020): the tower's pooled output against the mean of the language model's own
    embeddings of a caption's words, so that what the tower sees lies where the words are."""
    tower, shared = around.trained["tower"], around.shared
    modules = nn.ModuleDict({"tower": tower, "shared": shared})
    words = around.model.get_input_embeddings()

    def make(index: int) -> dict[str, Any]:
        scene = generate(seed, index) if index % 2 else crowd(seed, index)
        return {"image": picture(scene), "caption": caption(scene, np.random.default_rng([seed, index]))}

    def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        given = around.tokenizer([s["caption"] for s in samples], padding=True, return_tensors="pt")
        images = torch.from_numpy(np.stack([s["image"] for s in samples]))
        return {"images": images, "ids": given["input_ids"], "mask": given["attention_mask"]}

    def loss_of(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        mask = batch["mask"][..., None]
        said = (words(batch["ids"]) * mask).sum(1) / mask.sum(1)
        said = F.normalize(shared["caption"](said / said.std(-1, keepdim=True)), dim=-1)
        seen = F.normalize(shared["picture"](tower(pixels(batch["images"])).pooler_output), dim=-1)
        alike = shared["scale"](seen @ said.T).float()
        right = torch.arange(len(alike), device=alike.device)
        loss = (F.cross_entropy(alike, right) + F.cross_entropy(alike.T, right)) / 2
        return loss, {"right": float((alike.argmax(1) == right).float().mean())}

    return modules, make, collate, loss_of


def answer(around: Around, seed: int) -> tuple[Any, ...]:
    """Questions about pictures; tower and projector learn through a language model that does not change."""
    model, tokenizer = around.model, around.tokenizer
    modules = nn.ModuleDict(around.trained)

    def make(index: int) -> dict[str, Any]:
        scene = generate(seed + 3, index)
        asked = questions(scene)
        one = asked[int(np.random.default_rng([seed, index, 1]).integers(len(asked)))]
        return {"image": picture(scene), "question": one.text, "answer": one.answer}

    def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = []
        for sample in samples:
            asked = tokenizer(prompt(sample["question"]), add_special_tokens=False)["input_ids"]
            said = tokenizer(f"{sample['answer']}<|im_end|>", add_special_tokens=False)["input_ids"]
            rows.append((asked + said, [IGNORE] * len(asked) + said))
        longest = max(len(ids) for ids, _ in rows)
        pad = tokenizer.convert_tokens_to_ids("<|im_end|>")
        return {
            "images": torch.from_numpy(np.stack([s["image"] for s in samples])),
            "ids": torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows]),
            "mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]),
            "labels": torch.tensor([said + [IGNORE] * (longest - len(said)) for _, said in rows]),
        }

    def loss_of(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        out = model.model(
            input_ids=batch["ids"], attention_mask=batch["mask"], pixel_values=pixels(batch["images"])
        ).last_hidden_state
        wanted = batch["labels"][:, 1:]
        counts = wanted != IGNORE
        # Logits of the answers alone: the vocabulary is large.
        logits = model.lm_head(out[:, :-1][counts]).float()
        right = torch.zeros_like(counts)
        right[counts] = logits.argmax(-1) == wanted[counts]
        whole = (right | ~counts).all(1).float().mean()
        return F.cross_entropy(logits, wanted[counts]), {"right": float(whole)}

    return modules, make, collate, loss_of
