"""Check every encoder, for tokensieve/bench/compat/encoders.json and docs/measured/encoders.md.

`python -m benchmarks.encoders [NAME ...]`: with names (model types or classes), only those are checked again.
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
from tokensieve.bench.compat.encoders import check, recorded
from tokensieve.bench.compat.tiny_encoders import architectures

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "tokensieve" / "bench" / "compat" / "encoders.json"
HEAD = """# Encoders

Every architecture of transformers' mappings for text encoding, images, backbones, audio classification, CTC, speech to text and
video classification, and a list of our own, built with a tiny random configuration and checked against the plain model; made by
`python -m benchmarks.encoders`, shown by `tokensieve models --encoders`.

- **keep=1.0**: all outputs are the plain model's, bit for bit, and after the sieve they are again.
- **shapes**: at a half, outputs have their shapes and are finite, and fewer tokens meet the last block.
- **places**: with half of the tokens dropped behind block 1, or between its attention and its MLP, the others' states are those
  of the plain model when later blocks do not see the dropped ones. Not told of blocks that convolve, or whose attention does not
  go through transformers' interface.
- **padding**: a row with padding is what it is alone.
- **gradients**: a loss on the outputs reaches the first block.

*refused*: `sieve` raises a `ValueError` that says why. *unchecked*: it could not be built or given an input here; a sieve may
work.

"""


def main(names: Sequence[str] = ()) -> None:
    before = {row.name: row for row in recorded()} if RECORD.is_file() else {}
    every = architectures()
    some = [a for a in every if not names or a.name in names or a.kind in names]
    found = {a.kind: check(a) for a in tqdm(some)}
    rows = [row for a in every if (row := found.get(a.kind) or before.get(a.kind))]
    rows = list({row.name: row for row in rows}.values())
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    data = {"versions": versions, "encoders": [asdict(row) for row in rows]}
    RECORD.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    (ROOT / "docs" / "measured" / "encoders.md").write_text(HEAD + verdicts(rows, versions), encoding="utf-8")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main(sys.argv[1:])
