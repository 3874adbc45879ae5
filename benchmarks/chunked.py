"""Peak memory of a prompt of 65,536 tokens that goes through in chunks, a quarter of its cache kept.

A random Llama of few and narrow layers, whose cache outweighs all else. `held` is what the cache holds in the end, the most it
ever does behind a layer; `process` is the largest resident set less what it was before the prompt: the cache, what a pass
computes, and what choosing takes. Both are shares of the uncompressed cache, whose size is that of an uncompressed cache of the
first chunk times the number of chunks. Every method runs in a fresh process, whose allocator gives freed memory back at once:
else the peak tells of its habits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

import tokensieve as ts
from benchmarks.kvpress import EAGER
from tokensieve.bench.clocks import Peak
from tokensieve.bench.results import environment

TOKENS, CHUNK, KEEP, VOCAB, LIMIT = 65536, 1024, 0.25, 1000, 0.35
NAMES = ("snapkv", "keydiff", "streamingllm", "adakv")


def build() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8, intermediate_size=1376,
        vocab_size=VOCAB, max_position_embeddings=TOKENS, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def cell(name: str) -> dict[str, Any]:
    """Runs in a fresh process."""
    model = build()
    ids = torch.randint(VOCAB, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    whole = ts.cache_bytes(ts.prefill(model, ids[:, :CHUNK])) * TOKENS // CHUNK

    sieve = ts.sieve(model, name, keep=KEEP, site="cache")
    with sieve:
        ts.prefill(model, ids[:, : 2 * CHUNK], chunk=CHUNK)  # what a first pass takes once and for all
        with Peak(torch.device("cpu")) as peak:
            began = perf_counter()
            cache = ts.prefill(model, ids, chunk=CHUNK)
            took = perf_counter() - began
    assert peak.bytes is not None, "the peak of a process is read under Linux"
    return {
        "method": name,
        "whole mb": whole / 2**20,
        "held": ts.cache_bytes(cache) / whole,
        "process": peak.bytes / whole,
        "seconds": took,
    }


def main(out: Path | None = None, names: Sequence[str] = ()) -> None:
    """Some methods, or a few that stand for all."""
    rows = []
    for name in track(names or NAMES, description="chunked", console=Console(stderr=True)):
        command = [sys.executable, "-m", "benchmarks.chunked", "--cell", name]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | EAGER, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    title = f"{TOKENS} tokens in chunks of {CHUNK}, keep={KEEP}; % of the uncompressed {rows[0]['whole mb']:.0f} MB"
    table = Table("method", "held", "peak of the process", "s", title=title)
    for r in rows:
        fine = " ok" if r["process"] <= LIMIT else f" above {LIMIT:.0%}"
        shares = (f"{100 * r[k]:.1f}%" for k in ("held", "process"))
        table.add_row(r["method"], *shares, f"{r['seconds']:.0f}{fine}")
    Console().print(table)
    if out is not None:
        result = {"benchmark": "chunked", "environment": environment(), "seed": 0, "rows": rows}
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cell"]:
        print(json.dumps(cell(sys.argv[2])))
    else:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else None, sys.argv[2:])
