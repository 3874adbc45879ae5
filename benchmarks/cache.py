"""One page for the KV cache: what is still known of a context against the bytes that its cache really holds.

`python -m benchmarks.cache` measures what `out/cache-cost.json` and `out/cache.json` do not hold yet, times and memory
first, then round by round, and writes its part of docs/measured/cache-leaderboard.md after each cell. A round is one set of
contexts, the same for all methods: held-out Python to be continued, facts in held-out text, random words to be repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from textwrap import fill as wrapped
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

import tokensieve as ts
from benchmarks import cache_cost
from benchmarks.cache_plot import plot
from benchmarks.pages import fill
from benchmarks.resumed import Resumed, weights
from tokensieve.core.method import Method
from tokensieve.methods.cache.sepllm import separators
from tokensieve.sites.model.compatibility import cache_argument, cache_in
from tokensieve.testbed import lm
from tokensieve.testbed.lm.evaluate import stream

PAGE = Path(__file__).parent.parent / "docs" / "measured" / "cache-leaderboard.md"
PLOT = PAGE.parent.parent / "pictures" / "cache-pareto.png"
FORMAT = "tokensieve.cache.1"
BUDGETS, ROUNDS, LENGTH, NEXT = (0.25, 0.1, 0.5, 0.05), 4, 2048, 256
NEEDLES, FACTS, SPAN = 2, 16, 32
NAMES = ("random", "streamingllm", "h2o", "snapkv", "tova", "pyramidkv", "adakv", "keydiff", "expected-attention")
NAMES += ("a2sf", "vatp", "caote", "ems", "kvcompose", "sepllm", "zipcache", "tidaldecode")
TASKS = ("bits per byte", "needle", "facts", "copying", "code")


def made(name: str, tokenizer: Any) -> Method:
    """A method by name; those that need to be told something of the tokenizer are."""
    return ts.get_method(name, **({"separators": separators(tokenizer)} if name == "sepllm" else {}))


@torch.no_grad()
def follow(model: Any, ids: np.ndarray, context: int, one_by_one: bool = False) -> tuple[torch.Tensor, int]:
    """The logits ``(B, T - context, V)`` for ``ids[:, context:]``, and the bytes that the context's cache held.

    Args:
        one_by_one: give the rest token by token, for methods that act on decoded tokens alone.
    """
    rows = torch.as_tensor(ids, device=model.device)
    first = model(rows[:, :context], use_cache=True, logits_to_keep=1)
    held, logits, at = ts.cache_bytes(cache_in(first)), [first.logits], context
    while at < rows.shape[1] - 1:
        upto = at + 1 if one_by_one else rows.shape[1] - 1
        places = torch.arange(at, upto, device=model.device).expand(len(rows), -1)
        out = model(
            rows[:, at:upto],
            **cache_argument(model, cache_in(first)),
            attention_mask=torch.ones(len(rows), upto, dtype=torch.long, device=model.device),
            position_ids=places,
            use_cache=True,
        )
        logits.append(out.logits)
        at = upto
    return torch.cat(logits, 1), held


class CheckContext:
    """The testbed model and, for each round, its contexts."""

    def __init__(self) -> None:
        self.model, self.tokenizer = lm.load()
        self.say = lm.speech(self.tokenizer)
        self.python, self.text = stream(self.tokenizer, "code"), stream(self.tokenizer)

    def some(self, rng: np.random.Generator, ids: np.ndarray, count: int = LENGTH) -> np.ndarray:
        start = rng.integers(len(ids) - count)
        return ids[start : start + count]

    def measure(self, name: str, keep: float, number: int) -> dict[str, float]:
        """All tasks on the contexts of one round; bytes are of the Python context's cache."""
        if name == "full":
            return self._tasks(number, False)
        method = made(name, self.tokenizer)
        with ts.sieve(self.model, method, keep=keep, site="cache", seed=number):
            return self._tasks(number, method.sparse_decode)

    def _tasks(self, number: int, slow: bool) -> dict[str, float]:
        rng = np.random.default_rng((7, number))
        ids, context = self.some(rng, self.python)[None], LENGTH - NEXT
        logits, held = follow(self.model, ids, context, slow)
        gold = torch.as_tensor(ids[:, context:])
        nats = torch.nn.functional.cross_entropy(logits[0].float(), gold[0], reduction="sum").item()
        size = len(self.tokenizer.decode(ids[0, context:]).encode())
        needles = [lm.facts(rng, self.say, self.some(rng, self.text), LENGTH, 1) for _ in range(NEEDLES)]
        facts = [lm.facts(rng, self.say, self.some(rng, self.text), LENGTH, FACTS)]
        copies = [lm.copy(rng, self.say, self.some(rng, self.text), LENGTH, SPAN)]
        words = [(i, i + 1) for i in range(*copies[0].answers[0])]
        return {
            "bytes": held,
            "bits per byte": float(nats / np.log(2) / size),
            "code": (logits.argmax(-1) == gold).float().mean().item(),
            "needle": self._right(needles, needles[0].answers[0][0] - 1, slow),
            "facts": self._right(facts, facts[0].context, slow),
            "copying": self._right(copies, copies[0].context, slow, words),
        }

    def _right(
        self, samples: list[lm.Sample], context: int, slow: bool, answers: Sequence[tuple[int, int]] | None = None
    ) -> float:
        ids = np.stack([s.ids for s in samples])
        right = follow(self.model, ids, context, slow)[0].argmax(-1).numpy() == ids[:, context:]
        spans = [(row, span) for row, s in zip(right, samples, strict=True) for span in answers or s.answers]
        return mean(float(row[a - context : b - context].all()) for row, (a, b) in spans)


def measure(file: Path) -> None:
    """All cells, resumed from ``file``; the page is written after each."""
    costs = cache_cost.measure(file.with_stem(f"{file.stem}-cost"), NAMES)
    found, bed = Resumed.open(file, FORMAT, weights(lm.path() / "model.safetensors")), CheckContext()
    pairs = [("full", 1.0)] + [(name, keep) for keep in BUDGETS for name in NAMES]
    cells = [(name, keep, number) for number in range(ROUNDS) for name, keep in pairs]
    for name, keep, number in track(cells, description="cache", console=Console(stderr=True)):
        if found.add(f"{name}@{keep}#{number}", partial(bed.measure, name, keep, number), f"{name}, keep {keep}"):
            fill(PAGE, "packaged", page(found.data, costs))
    fill(PAGE, "packaged", page(found.data, costs))
    known = [r for r in range(ROUNDS) if all(r in rounds(found.data, k) for k in BUDGETS)]
    rows = {n: {k: r for k in BUDGETS if (r := _row(found.data, n, k, known))} for n in NAMES}
    plot(_row(found.data, "full", 1.0, known), rows, PLOT)


def rounds(data: dict[str, Any], keep: float) -> list[int]:
    """The rounds in which every method was measured; where there is none yet, the first."""
    names = [name for name in NAMES if f"{name}, keep {keep}" not in data["left"]]
    return [r for r in range(ROUNDS) if all(f"{n}@{keep}#{r}" in data["rows"] for n in names)] or [0]


def page(data: dict[str, Any], costs: dict[str, Any]) -> str:
    """The page as Markdown."""
    what = (
        f"What the packaged language model still knows of {LENGTH} tokens (continuations and questions included) once its "
        "cache is compressed at the end of the prompt. `held` is measured (`ts.cache_bytes`): all that the cache keeps after "
        "the prompt, whatever for, in % of the full cache's. Bits per byte (less is better) and code (next token right) "
        f"are of {NEXT} tokens of held-out Python that follow {LENGTH - NEXT}; needle is one fact in held-out text (in the first "
        f"round at 0.78 and 0.87 of it), its "
        f"question read with the prompt; facts are {FACTS} of them, asked after compression, so that no method could know "
        f"what for; copying are the words rightly repeated of {SPAN} random ones, likewise."
    )
    why = (
        "The model has 3.8 M parameters and 4 layers and recalls mostly by exact matching: it compares methods and finds "
        "mistakes, and does not predict a real model's loss. `tidaldecode` drops nothing and reads less (here 3 of 4 layers "
        "read all). `zipcache` drops nothing: it keeps the share in 4 bits and the rest in 2. "
        f"{data['cpu']}, {data['threads']} threads, torch {data['versions']['torch']}, "
        f"transformers {data['versions']['transformers']}."
    )
    picture = "![What is still known against the bytes held](../pictures/cache-pareto.png)"
    out = [wrapped(what, 128), "", wrapped(why, 128), "", picture]
    for keep in sorted(BUDGETS, reverse=True):
        known = rounds(data, keep)
        rows = [(name, _row(data, name, keep, known)) for name in NAMES]
        told = sorted(((n, r) for n, r in rows if r), key=lambda pair: pair[1]["bits per byte"])
        if not told:
            continue
        count = f"{len(known)} round{'s' * (len(known) > 1)}: {len(known)} context(s) a task, {NEEDLES * len(known)} needles."
        out += ["", f"### keep = {keep:g}", "", count, ""]
        out += ["| method | held | " + " | ".join(TASKS) + " |", "|---|" + "---:|" * (1 + len(TASKS))]
        full = _row(data, "full", 1.0, known)
        for name, row in [("**full**", full), *told]:
            cells = [f"{100 * row['bytes'] / full['bytes']:.1f}%", f"{row['bits per byte']:.3f}"]
            cells += [f"{100 * row[task]:.1f}%" for task in TASKS[1:]]
            out.append(f"| {'**random**' if name == 'random' else name} | " + " | ".join(cells) + " |")
        missing = [n for n, r in rows if not r and f"{n}, keep {keep}" not in data["left"]]
        if missing:
            out += ["", f"Not measured yet: {', '.join(missing)}."]
    out += cache_cost.section(costs)
    if data["left"]:
        out += ["", "### Not measured here", "", *(f"- `{name}`: {why}" for name, why in sorted(data["left"].items()))]
    return "\n".join(out)


def _row(data: dict[str, Any], name: str, keep: float, known: list[int]) -> dict[str, float]:
    """Means over rounds; empty where one is missing."""
    runs = [data["rows"].get(f"{name}@{keep}#{r}") for r in known]
    return {k: mean(run[k] for run in runs) for k in runs[0]} if all(runs) else {}


def main(file: Path = Path("out/cache.json")) -> None:
    measure(file)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
