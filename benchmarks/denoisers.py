"""Check every denoiser, for tokensieve/bench/compat/denoisers.json and docs/measured/denoisers.md.

`python -m benchmarks.denoisers [NAME ...]`: with names, only those are checked again, and the others keep what was found before.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import diffusers
import torch
from tqdm import tqdm

from tokensieve.bench.compat import denoisers
from tokensieve.bench.compat.denoiser_matrix import DenoiserVerdict, check, recorded

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "tokensieve" / "bench" / "compat" / "denoisers.json"
HEAD = """# Denoisers

Classes of diffusers, built with a tiny random configuration (parameters that begin at zero are drawn, too) and checked against
the plain model, in both forms of `site="diffusion"`; made by `python -m benchmarks.denoisers`, shown by
`tokensieve models --diffusers`.

- **keep=1**: bit for bit the plain model, and after a sieve the model is what it was.
- **hidden**: with half of the tokens (`divprune`: other ones in each row), the answer is that of the plain model whose attention
  does not see those that left, and in which they get what the form says: the output of the most similar one that stayed, or the
  state in which they left. Tables of angles, masks and the places of a text are right where this holds. Left out where attention
  is no softmax (Sana's is linear).
- **rows alone**: two calls are equal, each row of a batch answers as it does alone, and a text that shares a row with the latents
  is not touched.

*refused*: an error says so, before anything is answered. *unchecked*: it could not be built or called here.

"""


def page(rows: Sequence[DenoiserVerdict], versions: str) -> str:
    """The matrix as Markdown."""
    count = Counter(row.status for row in rows)
    lines = [f"{n} {status}" for status, n in count.most_common()]
    both = sum(len(row.checked) == 2 for row in rows)
    out = [HEAD + f"{', '.join(lines)} ({both} in both forms); {versions}.", "", '<div class="roomy" markdown>', ""]
    out += ["| class | | attention | stream | note |", "|---|---|---|---|---|"]
    for r in rows:
        forms = (", ".join(r.checked.get(form, ["no"])) for form in ("attention", "stream"))
        why = "; ".join(f"{form}: {text}" if form else text for form, text in r.why.items()).replace("|", "/")
        out.append(f"| {r.name} | {r.status} | {' | '.join(forms)} | {why} |")
    return "\n".join([*out, "", "</div>"]) + "\n"


def main(names: Sequence[str] = ()) -> None:
    before = {row.name: row for row in recorded()} if RECORD.is_file() else {}
    found = {name: check(name) for name in tqdm(names or denoisers.TINY)}
    rows = [row for name in denoisers.TINY if (row := found.get(name) or before.get(name))]
    versions = f"diffusers {diffusers.__version__}, torch {torch.__version__}"
    data = {"versions": versions, "models": [asdict(row) for row in rows]}
    RECORD.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (ROOT / "docs" / "measured" / "denoisers.md").write_text(page(rows, versions), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
