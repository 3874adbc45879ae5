"""Shown: a few inputs with what a plan kept of them: patches and what went into each, words, frames of a spectrogram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tokensieve.bench.overlay import Shown, as_seen, overlay
from tokensieve.bench.pages import picture
from tokensieve.core.plan import Plan
from tokensieve.planner.encoders.items import EncoderInput
from tokensieve.planner.encoders.subject import EncoderSubject
from tokensieve.sites.model.trace import Trace
from tokensieve.sites.sieve import Sieve

COUNT = 4
"""Inputs that are shown."""
SIDE = 320
"""Of a picture, in pixels."""


@dataclass(frozen=True)
class Example:
    """One input.

    Attributes:
        picture: as a data URI, "" for texts; words: of a text, each with whether it is there at the end.
        tokens: in front of each block.
    """

    name: str
    picture: str
    words: list[tuple[str, bool]]
    tokens: list[float]


def examples(subject: EncoderSubject, plan: Plan, items: Sequence[EncoderInput]) -> list[Example]:
    """What a plan keeps of the first inputs."""
    out = []
    for item in items[:COUNT]:
        inputs = subject.inputs([item])
        with Sieve(subject.model, plan) as sieve:
            subject.run(inputs)
            trace = sieve.last
        if trace is None:
            continue
        image = (
            _patches(inputs, trace)
            if subject.kind == "images"
            else _frames(inputs, trace)
            if subject.kind == "sound"
            else None
        )
        words = _words(subject.processor, inputs, trace) if subject.kind == "texts" else []
        if image is not None or words:
            out.append(Example(item.name, "" if image is None else picture(image), words, trace.layer_tokens))
    return out


def _patches(inputs: dict[str, Any], trace: Trace) -> Image.Image | None:
    """Kept patches bright, merged ones in the colour of theirs; None where they lie on no grid."""
    grid, reduction = trace.stages[0].grid, trace.stages[-1].reduction
    if grid is None or grid[0] * grid[1] != reduction.n:
        return None
    return overlay(Shown(as_seen(inputs["pixel_values"]), reduction.to("cpu"), grid, None, ""), SIDE)


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
