"""What `tokensieve bench --questions` takes, over the model calls that it needs, by processor time of one thread.

Questions of the packaged model's test set are asked as a person's own, from a file, under visionzip and divprune at 192 and 64
tokens, with the baselines that stand beside them: from the arguments to the files on disk, the imports of torch and transformers
not counted. Calls are those of the encoder and the language model, with what sieves do within them. What is the same for few
questions and for many (loading, drawing, the page) is told by two sizes.

`python -m benchmarks.own_cost` prints the ratios and where the rest goes.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import StringIO
from pathlib import Path
from time import process_time
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from tokensieve.bench import own, plots, report
from tokensieve.bench.asking import QuestionPrompts
from tokensieve.bench.clocks import Peak
from tokensieve.bench.data import from_testbed
from tokensieve.bench.subject import Subject

SIZES = (55, 220)
METHODS, BUDGETS = ("visionzip", "divprune"), (192, 64)
LIMIT = 1.10
PARTS = {
    "reading": (own, "read_questions"), "loading": (Subject, "load"), "inputs": (QuestionPrompts, "inputs"),
    "peak memory": (Peak, "__enter__"), "plots": (plots, "pareto"), "page": (report, "write"),
}  # fmt: skip


def write(folder: Path, count: int) -> Path:
    """A file of so many questions, and their pictures."""
    lines = []
    for number, sample in enumerate(from_testbed(count, 0, "scenes")[:count]):
        sample.image.save(folder / f"{number}.png")
        lines.append({"image": f"{number}.png", "question": sample.question, "answer": sample.answer})
    file = folder / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return file


@contextmanager
def clocked(spent: Counter[str]) -> Iterator[None]:
    """Seconds of each part while this is open; calls within calls count once."""
    inside: list[str] = []

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if name in inside:
                return work(*args, **kwargs)
            inside.append(name)
            began = process_time()
            try:
                return work(*args, **kwargs)
            finally:
                spent[name] += process_time() - began  # type: ignore[assignment]
                inside.remove(name)

        return wrapped

    load = Subject.load

    def loaded(*args: Any, **kwargs: Any) -> Subject:
        subject = load(*args, **kwargs)
        vision = subject.anatomy.vision
        assert vision is not None
        for module in (subject.model, vision.root):
            module.forward = timed("calls", module.forward)
        return subject

    with ExitStack() as held:
        for name, (where, what) in PARTS.items():
            work = loaded if name == "loading" else getattr(where, what)
            made: Any = timed(name, work)
            held.enter_context(patch.object(where, what, staticmethod(made) if name == "loading" else made))
        yield


def measure(count: int) -> dict[str, float]:
    """Seconds in all, and of each part."""
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder), count)
        asked = own.OwnConfig("testbed", file, METHODS, BUDGETS, Path(folder) / "out", dtype="float32", device="cpu")
        with clocked(spent):
            began = process_time()
            own.questions(asked, Console(file=StringIO()))
            spent["all"] = process_time() - began  # type: ignore[assignment]
    return dict(spent)


def main(sizes: tuple[int, ...] = SIZES) -> int:
    torch.set_num_threads(1)
    found = {size: measure(size) for size in sizes}
    table = Table("seconds", *(f"{size} questions" for size in sizes))
    for name in ("all", "calls", *PARTS):
        table.add_row(name, *(f"{found[size].get(name, 0.0):.2f}" for size in sizes))
    ratios = {size: f["all"] / f["calls"] for size, f in found.items()}
    further = (found[sizes[-1]]["all"] - found[sizes[0]]["all"]) / (
        found[sizes[-1]]["calls"] - found[sizes[0]]["calls"]
    )
    table.add_row("all over calls", *(f"{ratios[size]:.2f}" for size in sizes))
    table.caption = f"each further question: {further:.2f} of its calls (at most {LIMIT:.2f})"
    Console().print(table)
    return int(further > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
