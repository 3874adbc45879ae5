"""Shown: a few inputs with what a plan kept of them: patches and what went into each, words, frames of a spectrogram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from tokensieve.bench.overlay import Shown, as_seen, overlay
from tokensieve.bench.pages import picture
from tokensieve.core.plan import Plan
from tokensieve.core.reduction import Reduction
from tokensieve.planner.encoders import trees
from tokensieve.planner.encoders.items import EncoderInput
from tokensieve.planner.encoders.subject import EncoderSubject
from tokensieve.sites.model.trace import Trace
from tokensieve.sites.sieve import Sieve

COUNT = 4
"""Inputs that are shown."""
SIDE, SMALL = 320, 150
"""Of a picture, and of one of several, in pixels."""
LAYERS = 6
"""Steps at most that are shown of one input."""


@dataclass(frozen=True)
class Layer:
    """What is left of an input behind one step.

    Attributes:
        name: where, and how much; picture: as a data URI, "" for texts; words: of a text, each with whether it is there.
    """

    name: str
    picture: str
    words: list[tuple[str, bool]]


@dataclass(frozen=True)
class Example:
    """One input.

    Attributes:
        picture: as a data URI, "" for texts; words: of a text, each with whether it is there at the end.
        tokens: in front of each block; layers: behind the steps, where there are several; tree: which tokens flowed together, a
            figure, "" where none is shown.
    """

    name: str
    picture: str
    words: list[tuple[str, bool]]
    tokens: list[float]
    layers: list[Layer]
    tree: str = ""


def examples(subject: EncoderSubject, plan: Plan, items: Sequence[EncoderInput]) -> list[Example]:
    """What a plan keeps of the first inputs; of the first of them in which tokens flow together, with the tree of these."""
    out: list[Example] = []
    for item in items[:COUNT]:
        inputs = subject.inputs([item])
        with Sieve(subject.model, plan) as sieve:
            subject.run(inputs)
            trace = sieve.last
        if trace is None:
            continue
        image, words, layers, tree = None, list[tuple[str, bool]](), list[Layer](), ""
        want = not any(one.tree for one in out)
        if subject.kind == "images":
            image = _patches(inputs, trace)
            if image is not None:
                layers = [
                    Layer(_said(b, r, "patches"), picture(_seen(inputs, trace, r, SMALL)), []) for b, r in _some(trace)
                ]
                tree = _of_patches(inputs, trace, item.name) if want else ""
        elif subject.kind == "sound":
            image = _frames(inputs, trace)
        else:
            words = _words(subject.processor, inputs, trace)
            layers = [Layer(_said(b, r, "tokens"), "", _left(words, trace, r)) for b, r in _some(trace)]
            tree = _of_words(words, trace, item.name) if want else ""
        if image is not None or words:
            uri = "" if image is None else picture(image)
            out.append(Example(item.name, uri, words, trace.layer_tokens, layers, tree))
    return out


def _some(trace: Trace) -> list[tuple[int, Reduction]]:
    """Steps that are shown, evenly over all; none where one is all that there is."""
    steps = trace.steps
    if len(steps) < 2:
        return []
    return [steps[i] for i in sorted({round(k * (len(steps) - 1) / (LAYERS - 1)) for k in range(LAYERS)})]


def _said(block: int, reduction: Reduction, what: str) -> str:
    return f"{trees.where(block)}: {int(reduction.counts[0])} of {reduction.n} {what}"


def _patches(inputs: dict[str, Any], trace: Trace) -> Image.Image | None:
    """Kept patches bright, merged ones in the colour of theirs; None where they lie on no grid."""
    grid, reduction = trace.stages[0].grid, trace.stages[-1].reduction
    return None if grid is None or grid[0] * grid[1] != reduction.n else _seen(inputs, trace, reduction, SIDE)


def _seen(inputs: dict[str, Any], trace: Trace, reduction: Reduction, side: int) -> Image.Image:
    grid = trace.stages[0].grid
    assert grid is not None
    return overlay(Shown(as_seen(inputs["pixel_values"]), reduction.to("cpu"), grid, None, ""), side)


def _of_patches(inputs: dict[str, Any], trace: Trace, name: str) -> str:
    """The tree of patches, each as it is seen."""
    grid = trace.stages[0].grid
    assert grid is not None
    rows, columns = grid
    size = trees.CELL - 4
    image = as_seen(inputs["pixel_values"]).resize((columns * size, rows * size), Image.Resampling.BICUBIC)

    def leaf(token: int, x: float, y: float) -> str:
        left, top = token % columns * size, token // columns * size
        uri = picture(image.crop((left, top, left + size, top + size)))
        return f'<image href="{uri}" x="{x - size / 2:.1f}" y="{y:.1f}" width="{size}" height="{size}"/>'

    return _tree(trace, leaf, size, name)


def _of_words(words: Sequence[tuple[str, bool]], trace: Trace, name: str) -> str:
    """The tree of a text's tokens."""
    assert trace.places is not None
    place = trace.places[0].tolist()

    def leaf(token: int, x: float, y: float) -> str:
        told = escape(words[place[token]][0][:14])
        return f'<text transform="translate({x - 3:.1f} {y + 6:.1f}) rotate(60)" font-size="11" fill="currentColor">{told}</text>'

    return _tree(trace, leaf, 90, name)


def _tree(trace: Trace, leaf: Any, foot: int, name: str) -> str:
    owners = [reduction.owner[0].cpu() for _, reduction in trace.steps]
    return trees.drawn(
        trees.grown(owners), [block for block, _ in trace.steps], leaf, foot, f"what flowed together in {name}"
    )


def _left(words: Sequence[tuple[str, bool]], trace: Trace, reduction: Reduction) -> list[tuple[str, bool]]:
    """A text's tokens, each with whether it is there behind a step."""
    assert trace.places is not None
    may, kept = trace.places[0].tolist(), set(reduction.kept[0][reduction.mask[0]].tolist())
    gone = {place for token, place in enumerate(may) if place >= 0 and token not in kept}
    return [(word, i not in gone) for i, (word, _) in enumerate(words)]


def _frames(inputs: dict[str, Any], trace: Trace) -> Image.Image | None:
    """A spectrogram, and under it which frames are there at the end; None of a wave."""
    import matplotlib

    features, stays = inputs.get("input_features"), trace.stays
    if features is None or stays is None:
        return None
    x = features[0].float().cpu().numpy()
    x = x if x.shape[0] < x.shape[1] else x.T
    x = (x - x.min()) / max(float(x.max() - x.min()), 1e-6)
    colours = (255 * matplotlib.colormaps["magma"](x[::-1])[..., :3]).astype(np.uint8)
    sound = Image.fromarray(colours).resize((2 * SIDE, SIDE // 2), Image.Resampling.BILINEAR)
    kept = Image.fromarray(np.where(stays[:1].numpy(), 255, 60).astype(np.uint8)).resize(
        (2 * SIDE, 18), Image.Resampling.NEAREST
    )
    out = Image.new("RGB", (2 * SIDE, SIDE // 2 + 22), "white")
    out.paste(sound, (0, 0))
    out.paste(kept.convert("RGB"), (0, SIDE // 2 + 4))
    return out


def _words(tokenizer: Any, inputs: dict[str, Any], trace: Trace) -> list[tuple[str, bool]]:
    ids, stays = inputs["input_ids"][0].tolist(), trace.stays
    if stays is None:
        return []
    told = tokenizer.convert_ids_to_tokens(ids)
    return [(str(word), bool(kept)) for word, kept in zip(told, stays[0].tolist(), strict=True)]
