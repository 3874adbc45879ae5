"""What a method of the cache costs and saves: prefill, a decoded token and peak memory, in turns with the full cache.

A random Llama whose cache outweighs its weights, one prompt of 4,096 tokens, a quarter kept. Times are taken in turns with the
plain model's, and ratios are medians of the turns' ratios. Peaks are largest resident sets above what they were before the
prompt, each in a fresh process whose allocator gives freed memory back at once: else the peak tells of its habits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import LlamaConfig, LlamaForCausalLM

import tokensieve as ts
from benchmarks.kvpress import EAGER
from benchmarks.resumed import Resumed
from tokensieve.bench.clocks import Peak
from tokensieve.sites.model.compatibility import cache_argument, cache_in

TOKENS, KEEP, NEW, TURNS, VOCAB = 4096, 0.25, 16, 3, 1000
FIGURES = ("prefill", "compression", "token", "peak", "held")
"""Shares of the full cache's figures; of compression, of the plain prefill."""
FORMAT = "tokensieve.cache_cost.1"


def build() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8, intermediate_size=1376,
        vocab_size=VOCAB, max_position_embeddings=2 * TOKENS, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def sieve(model: Any, name: str) -> AbstractContextManager[Any]:
    """Around the plain model for "full"."""
    if name == "full":
        return nullcontext()
    options: dict[str, Any] = {"separators": tuple(range(0, VOCAB, 25))} if name == "sepllm" else {}
    made = ts.sieve(model, name, keep=KEEP, site="cache", **options)
    made.timed = True
    return made


@torch.no_grad()
def generate(model: Any, name: str) -> dict[str, float]:
    """Seconds of a prefill, of compression within it and of a decoded token, and the bytes that the cache holds behind all."""
    ids = torch.randint(VOCAB, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    with sieve(model, name) as attached:
        began = perf_counter()
        out = model(ids, use_cache=True, logits_to_keep=1)
        prefill, steps = perf_counter() - began, []
        compression = attached.seconds if attached else 0.0
        cache = cache_in(out)
        held = cache_argument(model, cache)
        for place in range(TOKENS, TOKENS + NEW):
            token, began = out.logits[:, -1:].argmax(-1), perf_counter()
            seen = torch.ones(1, place + 1, dtype=torch.long)
            at = torch.tensor([[place]])
            out = model(token, **held, attention_mask=seen, position_ids=at, use_cache=True)
            steps.append(perf_counter() - began)
    return {"prefill": prefill, "compression": compression, "token": median(steps), "held": ts.cache_bytes(cache)}


def cell(name: str) -> dict[str, float]:
    """A method's figures as shares of the full cache's; of "full" itself what they are shares of."""
    model = build()
    generate(model, name)
    uses_rope = [{which: generate(model, which) for which in ("full", name)} for _ in range(TURNS)]
    peaks = {which: peak(which) for which in ("full", name)}
    if name == "full":
        return {k: median(t[name][k] for t in uses_rope) for k in uses_rope[0][name]} | {"peak": peaks[name]}
    row = {k: median(t[name][k] / t["full"][k] for t in uses_rope) for k in ("prefill", "token", "held")}
    row["compression"] = median(t[name]["compression"] / t["full"]["prefill"] for t in uses_rope)
    return row | {"peak": peaks[name] / peaks["full"]}


def measure(file: Path, names: Sequence[str]) -> dict[str, Any]:
    """All methods and the full cache, resumed from ``file``."""
    found = Resumed.open(file, FORMAT, {"seed": 0})
    for name in track(("full", *names), description="cache, costs", console=Console(stderr=True)):
        found.add(name, partial(cell, name))
    return found.data


def section(data: dict[str, Any]) -> list[str]:
    """Lines of Markdown, the cheapest token first."""
    full = data["rows"]["full"]
    told = (
        f"A random Llama of 4 layers and 8 key-value heads, one prompt of {TOKENS:,} tokens, keep={KEEP:g}, {NEW} tokens "
        f"decoded; medians of {TURNS} turns, taken with the full cache's: {full['prefill']:.2f} s, "
        f"{1e3 * full['token']:.1f} ms a token, {full['peak'] / 2**20:.0f} MB at the peak and "
        f"{full['held'] / 2**20:.0f} MB held. All in % of these, compression in % of the prefill. The peak is of a whole "
        "prompt at once, of which the pass itself takes most; in chunks it falls with what is held (see "
        "[The KV cache](../how-to/cache.md#what-it-costs-and-saves))."
    )
    out = ["", "### What it costs", "", textwrap.fill(told, 128), ""]
    out += ["| method | prefill | compression | a decoded token | peak | held |", "|---|" + "---:|" * len(FIGURES)]
    rows = sorted((kv for kv in data["rows"].items() if kv[0] != "full"), key=lambda kv: kv[1]["token"])
    return out + [
        f"| {name} | " + " | ".join(f"{100 * row[k]:.{1 if k == 'compression' else 0}f}%" for k in FIGURES) + " |"
        for name, row in rows
    ]


def peak(name: str) -> float:
    command = [sys.executable, "-m", "benchmarks.cache_cost", name]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | EAGER, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def child(name: str) -> float:
    """Bytes, in a fresh process."""
    model = build()
    with torch.no_grad():
        model(torch.zeros(1, 64, dtype=torch.long))  # what a first pass takes once and for all
    with Peak(torch.device("cpu")) as found:
        generate(model, name)
    assert found.bytes is not None, "the peak of a process is read under Linux"
    return float(found.bytes)


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1])))
