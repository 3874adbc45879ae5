"""The cache leaderboard on a real model: SmolLM2-135M-Instruct, of which each method compresses a copy of one prefill.

`python -m benchmarks.real_cache` measures what `out/cache-smollm2.jsonl` does not hold yet, step by step of ``PLAN`` and within
each step text by text over all tasks, so that every cell has as many texts whenever it is stopped. A line of the file is one
text. `python -m benchmarks.real_page` writes its part of docs/measured/cache-leaderboard.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

import tokensieve as ts
from benchmarks.cache import NAMES as ALL
from benchmarks.cache import made
from benchmarks.real_texts import TASKS, Text, Texts
from benchmarks.resumed import weights
from tokensieve.bench.results import environment
from tokensieve.core.method import Method
from tokensieve.sites.cache.recording import record, replayable
from tokensieve.sites.model.compatibility import cache_argument
from tokensieve.testbed import real

FORMAT = "tokensieve.cache_smollm2.1"
FILE = Path("out/cache-smollm2.jsonl")
NAMES = tuple(name for name in ALL if replayable(ts.plan(name, 0.5, site="cache")))
"""Those that compress at the end of a prompt; one that only reads less while decoding holds every byte."""
FEW = ("random", "streamingllm", "h2o", "snapkv", "adakv", "keydiff", "kvcompose", "zipcache")


@dataclass(frozen=True)
class Step:
    """A part of the plan: so many texts of each task, at a length, under methods and budgets."""

    length: int
    texts: int
    budgets: tuple[float, ...]
    names: tuple[str, ...] = NAMES


PLAN = (
    Step(2048, 50, (0.25,)),
    Step(1024, 50, (0.25,)),
    Step(2048, 50, (0.5, 0.1)),
    Step(4096, 20, (0.25,)),
    Step(7680, 10, (0.25,), FEW),
)
SHARES = (0.2, 0.4, 1.0)
"""Of each step's texts: every step comes to one of these before any goes on to the next."""


def measure(model: Any, tokenizer: Any, text: Text, step: Step) -> dict[str, dict[str, float]]:
    """What the full cache and each method's copy of it know of a text, by "method@budget"."""
    return compared(
        model, text, {f"{n}@{k}": (made(n, tokenizer), k) for n in step.names for k in step.budgets}, seed=0
    )


def compared(
    model: Any, text: Text, methods: Mapping[str, tuple[Method, float]], seed: int
) -> dict[str, dict[str, float]]:
    """What the full cache and each method's copy of it know of a text, of which one prefill is made.

    Args:
        methods: by name, with the share that each keeps.
    """
    found = record(model, torch.as_tensor(text.ids[None, : text.context]))
    rows = {"full": judged(model, found.full(), found.logits, text)}
    for name, (method, keep) in methods.items():
        with ts.sieve(model, method, keep=keep, site="cache", seed=seed):
            cache = found.compressed()
        rows[name] = judged(model, cache, found.logits, text)
    return rows


@torch.no_grad()
def judged(model: Any, cache: Any, first: torch.Tensor, text: Text) -> dict[str, float]:
    """What a prompt's cache holds, the mean nats of a token of the answers, and the share of answers that are right throughout.

    Args:
        first: ``(1, V)``, the logits at the prompt's last token, which compression comes too late for.
    """
    held, rest = ts.cache_bytes(cache), torch.as_tensor(text.ids[None, text.context : -1])
    logits = first
    if rest.shape[1]:
        places = torch.arange(text.context, len(text.ids) - 1)[None]
        mask = torch.ones(1, len(text.ids) - 1, dtype=torch.long)
        with ts.sieve(model, ts.Plan([])):
            out = model(rest, **cache_argument(model, cache), attention_mask=mask, position_ids=places, use_cache=True)
        logits = torch.cat([first, out.logits[0]])
    gold = torch.as_tensor(text.ids[text.context :])
    nats = torch.nn.functional.cross_entropy(logits.float(), gold, reduction="none").numpy()
    right = (logits.argmax(-1) == gold).numpy()
    spans = [slice(a - text.context, b - text.context) for a, b in text.answers]
    return {
        "bytes": held,
        "nats": float(np.mean(np.concatenate([nats[s] for s in spans]))),
        "right": float(np.mean([right[s].all() for s in spans])),
    }


def lines(file: Path = FILE) -> Iterator[dict[str, Any]]:
    """What was measured; a line that breaks off is none.

    Raises:
        ValueError: the file holds something else.
    """
    if not file.exists():
        return
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        if number == 0 and found.get("format") != FORMAT:
            raise ValueError(f"{file} holds no lines of {FORMAT}; delete it, or name another file")
        yield found


def key(task: str, step: Step, number: int) -> str:
    return f"{task}/{step.length}/{','.join(map(str, step.budgets))}/{number}"


def run(file: Path = FILE) -> None:
    """Measure what is left of the plan."""
    model, tokenizer = real.load("smollm2")
    of = weights(real.get("smollm2") / "model.safetensors")
    head, *done = lines(file) if file.exists() else ({},)
    if head and head["weights"] != of["weights"]:
        raise ValueError(f"{file} holds results of other weights; delete it, or name another file")
    file.parent.mkdir(parents=True, exist_ok=True)
    known, texts = {line["key"] for line in done}, Texts(tokenizer)
    cells = [(s, i, task) for part in SHARES for s in PLAN for i in range(round(part * s.texts)) for task in TASKS]
    left = {key(task, step, i): (step, i, task) for step, i, task in cells if key(task, step, i) not in known}
    with file.open("a", encoding="utf-8") as out:
        if not head:
            out.write(json.dumps({"format": FORMAT, **environment(), **of}) + "\n")
        elif not file.read_text(encoding="utf-8").endswith("\n"):
            out.write("\n")
        for step, i, task in track(list(left.values()), "SmolLM2's cache", console=Console(stderr=True)):
            text = texts.get(task, step.length, i)
            rows = measure(model, tokenizer, text, step)
            facts = {"key": key(task, step, i), "task": task, "length": step.length, "number": i, "text": text.digest}
            out.write(json.dumps(facts | {"rows": rows}) + "\n")
            out.flush()


if __name__ == "__main__":
    run(*map(Path, sys.argv[1:]))
