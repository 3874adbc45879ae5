"""The page "What works under a sieve": runs every cell, writes what came of it.

`python -m benchmarks.works [docs/measured/works.md]`
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from tests import works_models, works_running  # noqa: F401 (they fill the table)
from tests.works import NONE, SITES, SITUATIONS, Situation, outcome

PAGE = Path("docs/measured/works.md")
HEAD = """# What works under a sieve

Situations by [site](../how-to/sites.md). Every cell ran, most against the answer of the same stage in the plainest
situation or of the plain model with the dropped tokens masked; where numbers differ by nature (int8, float16, autocast) answers
are finite and near, and beams and `output_attentions` are at some sites only seen to run and to repeat. "Refused" is an error
whose sentence names the way out; empty cells do not apply. "reading" stands for methods at `cache` under which nothing leaves.
Made by `python -m benchmarks.works`; `tests/test_works.py`
runs the same cells.

`output_attentions` under a sieve gives maps of the tokens that are there: a layer that holds fewer has smaller ones.
`use_cache=False` under a stage at `cache` is the plain model's answer, with one warning. Pictures are refused to be cut by
`prefill_chunk_size`; a chunk that holds whole ones goes through.
"""


def ran(one: Situation) -> dict[str, tuple[str, str]]:
    """What came of each cell of a row.

    Raises:
        ModuleNotFoundError: the package that it needs is not there.
    """
    if one.needs and importlib.util.find_spec(one.needs) is None:
        raise ModuleNotFoundError(f"{one.name!r} needs {one.needs}; pip install -e '.[dev]'")
    return {site: outcome(one.name, site) if one.expect[site] else (NONE, "") for site in SITES}


def page() -> str:
    """The page, as Markdown."""
    rows, said = [], []
    for one in SITUATIONS.values():
        cells = ran(one)
        rows.append(f"| {one.name} | " + " | ".join(cells[site][0] for site in SITES) + " |")
        for sentence in dict.fromkeys(sentence for _, sentence in cells.values() if sentence):
            said.append(f"- **{one.name}**: {sentence}")
    head = ["| | " + " | ".join(f"`{s}`" for s in SITES) + " |", "|---" * (len(SITES) + 1) + "|"]
    return "\n".join([HEAD, *head, *rows, "", "## What a refusal says", "", *said, ""])


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else PAGE).write_text(page())
