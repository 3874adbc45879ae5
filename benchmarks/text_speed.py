"""What a report and an audit cost beside bare encoding, by processor time of one thread, in turns.

`python -m benchmarks.text_speed TOKENIZER...` (SmolLM2's if none is named) on 35 MB of Debian's manuals and Python's library.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import process_time

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.systems.tokenizers import MB, documents
from tokensieve.testbed import real
from tokensieve.text.corpus import batches
from tokensieve.text.encoding import Coder
from tokensieve.text.measure import GROUP, measure
from tokensieve.text.reach import reach

TURNS, SIZE = 3, 35 * MB


def timed(work: Callable[[], object]) -> float:
    began = process_time()
    work()
    return process_time() - began


def main(names: Sequence[str]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # of this process, in front of its first call
    texts = documents("both", False, SIZE)
    size = sum(d.size for d in texts)
    table = Table("tokenizer", "encoder", "bare, s", "report / bare", "each turn", "audit / its strings")
    for name in names or [str(real.get("smollm2"))]:
        coder = Coder(Path(name).name, name)
        tokenizer = coder.tokenizer

        def bare(tokenizer: object = tokenizer) -> None:
            for group in batches((d.text for d in texts), GROUP):
                tokenizer.encode_batch_fast(group, add_special_tokens=False)  # type: ignore[attr-defined]

        timed(bare)
        both = [(timed(bare), timed(lambda c=coder: measure([c], texts))) for _ in track(range(TURNS), name)]
        strings = [t for t in coder.vocabulary.texts if t]
        pairs = [
            (
                timed(lambda t=tokenizer, s=strings: t.encode_batch_fast(s, add_special_tokens=False)),
                timed(lambda c=coder: reach(c.tokenizer, c.vocabulary)),
            )
            for _ in range(TURNS)
        ]
        table.add_row(
            coder.name, coder.note, f"{median(b for b, _ in both):.1f}", f"{median(w / b for b, w in both):.3f}",
            " ".join(f"{w / b:.3f}" for b, w in both), f"{median(w / b for b, w in pairs):.2f}",
        )  # fmt: skip
    Console().print(table, f"{size / MB:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
