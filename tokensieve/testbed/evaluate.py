"""Accuracy by kind of question, beside what blind guessing would get."""

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from . import onevision, packing
from .clips import CLIP_KINDS
from .data import Item
from .further import drawn, tiles
from .pairs import PAIR_KINDS
from .questions import QUESTION_KINDS, SceneQuestion, prompt, questions
from .scenes import Scene, generate
from .several import FORMS, Several
from .spelled import draw

PRIOR_SCENES = 500


def evaluate(model, processor, split: str = "test", scenes: int = 200, seed: int = 0, packed: bool = True) -> dict:
    """Ask every question about `scenes` scenes.

    Returns `{kind: {"accuracy", "n", "prior"}}` with a last entry "all", the mean over the kinds. The prior is the
    accuracy of always giving the most frequent training answer to the question's template. An answer is right if it is
    right to the last word and ends there.

    `packed` asks all questions of a scene in one forward pass: fast, and equal to greedy decoding on an unmodified model.
    `packed=False` asks each on its own with `generate`, as it has to be where tokens are being removed.
    """
    results = []
    for start in range(0, scenes, 8):
        group = [generate(seed, index, split) for index in range(start, min(start + 8, scenes))]
        if packed:
            results += _ask_packed(model, processor, group)
        else:
            items = [Item(scene.image, question) for scene in group for question in questions(scene)]
            results += zip((item.question for item in items), correct(model, processor, items), strict=True)
    return summarise(results)


def correct(
    model,
    processor,
    items: Iterable[Item] | Iterable[Several],
    batch: int = 16,
    prompt: Callable[[str], str] = prompt,
    new_tokens: int = 4,
) -> list[bool]:
    """For each item, whether `generate` answers it exactly. Works with whatever is attached to the model.

    Items of several pictures go with the model that `load_several` gives, those of one form at a time. `prompt` and
    `new_tokens` are those of `answers`.
    """
    every: list[Any] = list(items)
    right: list[bool] = []
    for start in range(0, len(every), batch):
        group = every[start : start + batch]
        if isinstance(group[0], Several):
            said = _said(model, processor, processor(group))
        else:
            texts = [i.question.text for i in group]
            said = answers(model, processor, [i.image for i in group], texts, prompt, new_tokens)
        right += [a == item.answer for a, item in zip(said, group, strict=True)]
    return right


def answers(
    model,
    processor,
    images: list,
    texts: list[str],
    prompt: Callable[[str], str] = prompt,
    new_tokens: int = 4,
) -> list[str]:
    """The greedy answers to one question per image, in one batch.

    `prompt` makes of a question what the processor expects, that of the packaged model by default; `new_tokens` are written
    at most.
    """
    asked = [prompt(text) for text in texts]
    inputs = processor(images=images, text=asked, padding=True, return_tensors="pt")
    return _said(model, processor, inputs, new_tokens)


@torch.no_grad()
def _said(model, processor, inputs, new_tokens: int = 4) -> list[str]:
    inputs = inputs.to(model.device, model.dtype)
    written = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    return [
        text.strip()
        for text in processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ]


@torch.no_grad()
def _ask_packed(model, processor, scenes: list[Scene]) -> list[tuple[SceneQuestion, bool]]:
    asked = [questions(scene) for scene in scenes]
    images = processor.image_processor([scene.image for scene in scenes], return_tensors="pt")["pixel_values"]
    prefix = packing.image_prefix(model, images.to(model.device, model.dtype))
    packed = {k: v.to(model.device) for k, v in packing.pack(asked, prefix.shape[1]).items()}
    right = packing.right(packing.run(model, prefix, packed), packed)
    return [pair for row, flags in zip(asked, right, strict=True) for pair in zip(row, flags, strict=True)]


@torch.no_grad()
def evaluate_several(model, number: int = 100, seed: int = 0, split: str = "test") -> dict[str, dict]:
    """As `evaluate`, packed, for `number` clips, pairs and large pictures: one table for each form."""
    tables = {}
    for form in FORMS:
        results: list[tuple[SceneQuestion, bool]] = []
        for start in range(0, number, 4):
            group = [drawn(form, seed, index, split) for index in range(start, min(start + 4, number))]
            seen = torch.from_numpy(np.stack([sample["tiles"] for sample in group])).to(model.device)
            seen = onevision.prefix(model, form, tiles(seen))
            asked = [sample["questions"] for sample in group]
            packed = {k: v.to(model.device) for k, v in packing.pack(asked, seen.shape[1]).items()}
            right = packing.right(packing.run(model, seen, packed), packed)
            results += [p for row, flags in zip(asked, right, strict=True) for p in zip(row, flags, strict=True)]
        tables[form] = summarise(results, form)
    return tables


def summarise(results: Iterable[tuple[SceneQuestion, bool]], form: str = "scene") -> dict[str, dict[str, float]]:
    """Accuracy, count and prior by kind, from questions of one form and whether each was answered rightly."""
    right, blind = defaultdict(list), defaultdict(list)
    usual = usual_answers(form)
    for question, flag in results:
        right[question.kind].append(flag)
        blind[question.kind].append(usual.get(question.template) == question.answer)
    table = {
        kind: {"accuracy": float(np.mean(right[kind])), "n": len(right[kind]), "prior": float(np.mean(blind[kind]))}
        for kind in (*QUESTION_KINDS, *CLIP_KINDS, *PAIR_KINDS)
        if right[kind]
    }
    table["all"] = {
        "accuracy": float(np.mean([row["accuracy"] for row in table.values()])),
        "n": sum(row["n"] for row in table.values()),
        "prior": float(np.mean([row["prior"] for row in table.values()])),
    }
    return table


@functools.cache
def usual_answers(form: str = "scene") -> dict[str, str]:
    """The most frequent answer to each question template in the training split."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for index in range(PRIOR_SCENES):
        for question in questions(generate(3, index)) if form == "scene" else draw(form, 3, index)[1]:
            counts[question.template][question.answer] += 1
    return {template: counter.most_common(1)[0][0] for template, counter in counts.items()}
