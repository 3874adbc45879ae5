"""Check every architecture, for tokensieve/bench/compat/models.json and docs/measured/models.md.

`python -m benchmarks.models [NAME ...]`: with names, only those are checked again, and the others keep what was found before.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from benchmarks.pages import verdicts
from tokensieve.bench.compat import tiny_models
from tokensieve.bench.compat.matrix import check, recorded

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "tokensieve" / "bench" / "compat" / "models.json"
HEAD = """# Models

Every architecture of transformers' image-text-to-text mapping, built with a tiny random configuration and checked against the
plain model; made by `python -m benchmarks.models`, shown by `tokensieve models`.

- **keep=all**: `generate` answers token for token like the plain model, and after the sieve the model is what it was.
- **handoff**, **prefill**: with tokens gone in front of the language model, or in front of its layer 2, every layer's cache has
  the expected length, and the logits of every step are those of the plain model with the dropped tokens masked (where the
  language model has recurrent layers, lengths only).
- **cross**: where text attends to images by cross-attention, image keys gone behind the first such layer: caches of the
  expected length, and the logits of the plain model with those keys masked in the later ones.
- **rows alone**: a batch with left padding, one image in one row and two in the other, answers like its rows alone.
- **sdpa**, **eager**: under which attention kernels all this holds.
- **encoder signals**: what the encoder says of its patches reaches the visual tokens made of them, as gradients show; without
  it, methods that read CLS or received attention, or the encoder's keys, raise an error that names another.
- **video**: the same with videos.

*refused*: `sieve` raises a `ValueError` that says so. *unchecked*: it could not be built or given a prompt here; a sieve may
work.

"""


def main(names: Sequence[str] = ()) -> None:
    before = {row.name: row for row in recorded()} if RECORD.is_file() else {}
    found = {name: check(name) for name in tqdm(names or tiny_models.names())}
    rows = [row for name in tiny_models.names() if (row := found.get(name) or before.get(name))]
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    data = {"versions": versions, "models": [asdict(row) for row in rows]}
    RECORD.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    (ROOT / "docs" / "measured" / "models.md").write_text(HEAD + verdicts(rows, versions), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
