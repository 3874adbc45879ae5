"""The demo: methods of each kind on the packaged model at equal cost and, where SmolLM2 is here, methods of its cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tokensieve.bench import own
from tokensieve.bench.data import Sample, from_testbed
from tokensieve.bench.results import Results
from tokensieve.testbed import real

METHODS = ("visionzip", "fastervlm", "divprune", "tome", "pyramiddrop", "vscan")
"""One of each kind and more: by attention, by diversity, inside the encoder, inside the language model, at several stages."""
MEANS = (256, 160)
"""Visual tokens, of 576, in the mean over the language model's layers; every one of the methods and baselines reaches both."""
COUNT = 200
CACHE_METHODS, CACHE_KEEP = ("snapkv", "keydiff", "adakv"), (0.25,)
TEXTS, WINDOW = 4, 512
"""Topics of Python's reference, and the tokens that are read of each."""


def demo(out: Path, console: Console) -> list[Results]:
    """Ask the packaged model and, where it is there, SmolLM2; the results of both.

    SmolLM2 is never fetched: `tokensieve real get smollm2` does that.
    """
    file = questions(from_testbed(COUNT, 0), out / "questions")
    asked = own.OwnConfig("testbed", file, METHODS, MEANS, out, new_tokens=4, dtype="float32", device="cpu")
    made = [own.questions(asked, console)]
    if not real.there("smollm2"):
        console.print(
            "The second half shows a cache that is compressed on a real model, SmolLM2: tokensieve real get smollm2, and again"
        )
        return made
    folder = texts(out / "texts")
    config = own.OwnConfig("smollm2", folder, CACHE_METHODS, CACHE_KEEP, out / "cache", window=WINDOW, device="cpu")
    return [*made, own.texts(config, console)]


def questions(samples: Sequence[Sample], folder: Path) -> Path:
    """Write questions as people have theirs: a file of JSON lines, and pictures beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, sample in enumerate(samples):
        sample.image.save(folder / f"{i}.png")
        asked = {"image": f"{i}.png", "question": sample.question, "answer": sample.answer, "kind": sample.kind}
        lines.append(json.dumps({**asked, "id": f"q{i}"}))
    file = folder / "q.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def texts(folder: Path) -> Path:
    """Write the longest topics of Python's reference, one a file."""
    from pydoc_data.topics import topics

    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(topics, key=lambda n: -len(topics[n]))[:TEXTS]:
        (folder / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    return folder
