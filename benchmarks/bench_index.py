"""What `tokensieve bench-index` takes over the searches that it makes.

`python -m benchmarks.bench_index` indexes part of Python's library, asks it 100 questions through
`tokensieve.retrieval.evaluation.measure.measure`, and prints the time of all of it over that of encoding the questions and
searching, which it takes within the same run: the median of five rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.folders import _code
from benchmarks.load_client import QUERIES
from tokensieve.retrieval.evaluation.measure import Question, measure
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.sources.texts import Text

MODULES, ROUNDS, TIMES = 12, 5, 5


class Timed:
    """A call that adds up what it takes."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call, self.seconds = call, 0.0

    def __call__(self, *given: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return self.call(*given, **named)
        finally:
            self.seconds += time.perf_counter() - start


def main() -> None:
    with TemporaryDirectory() as folder:
        library = Library.create(Path(folder) / "index")
        library.put(Text(name, data.decode(), reader="code") for name, data in list(_code())[:MODULES])
        library.tune()
        names = sorted(library.names())
        questions = [Question(f"{q} {i}", (names[i % len(names)],), f"{q} {i}") for i in range(TIMES) for q in QUERIES]
        searches = library.hits
        encoder = library.encoder
        queries = encoder.queries
        over = []
        for _ in range(ROUNDS):
            hits, encode = Timed(searches), Timed(queries)
            library.hits, encoder.queries = hits, encode  # type: ignore[method-assign]
            start = time.perf_counter()
            measure(library, questions)
            spent = time.perf_counter() - start
            over.append(spent / (hits.seconds + encode.seconds))
        library.close()
        print(
            f"{len(library)} passages, {len(questions)} questions: {median(over):.3f} ({min(over):.3f} to {max(over):.3f})"
        )


if __name__ == "__main__":
    main()
