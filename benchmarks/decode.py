"""Decoding over a compressed cache: a randomly initialised Llama of about 300 M parameters, 4 rows of 8,192 tokens, keep=0.25.

The floor is the same model, without a sieve, over the cache of a prompt as short as what was kept; the other end is the full
cache. What a step costs does not depend on what the entries hold, so caches are filled with random numbers and the sieve
evicts behind a question of 64 tokens that goes through the model. What compression costs is measured where it happens, in a
prefill of one row of 8,192 tokens, with one layer of the same shape: both sides grow with the number of layers and rows. All
that is compared takes turns within one run; ratios are medians of the turns' ratios.

`python -m benchmarks.decode OUT 16 compression snapkv h2o` measures only that, with 16 key-value heads.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import tokensieve as ts
from tokensieve.bench.results import environment
from tokensieve.sites.model.compatibility import cache_argument

CONTEXT, KEEP, BATCH, QUESTION, LAYERS, VOCAB = 8192, 0.25, 4, 64, 18, 32000
TURNS, WARM, STEPS = 5, 1, 2
DECODED = ("snapkv", "adakv")
"""Where heads keep equally many entries, all methods leave the same layout; `adakv` stands for those where they do not."""
COMPRESSED = ("random", "streamingllm", "keydiff", "tova", "snapkv", "pyramidkv", "adakv", "expected-attention", "h2o")
COMPRESSED += ("a2sf", "vatp", "caote", "kvcompose", "ems", "zipcache")
KV_HEADS = (16, 4)
LIMITS = {"over floor": 1.10, "times full": 2.0, "share": 0.05}


def build(kv_heads: int, layers: int = LAYERS) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=1024, num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=kv_heads,
        intermediate_size=2752, vocab_size=VOCAB, max_position_embeddings=2 * CONTEXT, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def some(count: int, batch: int = BATCH) -> torch.Tensor:
    return torch.randint(10, VOCAB, (batch, count), generator=torch.Generator().manual_seed(0))


def filled(model: Any, count: int) -> DynamicCache:
    """A cache of ``count`` random entries; layers share them, as nothing writes to them."""
    config, cache = model.config, DynamicCache(config=model.config)
    shape = (BATCH, config.num_key_value_heads, count, config.hidden_size // config.num_attention_heads)
    g = torch.Generator().manual_seed(1)
    keys, values = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    for i in range(config.num_hidden_layers):
        cache.update(keys.clone(), values.clone(), i)
    return cache


@torch.no_grad()
def step(model: Any, cache: DynamicCache, ids: torch.Tensor) -> None:
    past = cache.get_seq_length()
    mask = torch.ones(len(ids), past + ids.shape[1], dtype=torch.long)
    places = torch.arange(past, past + ids.shape[1]).expand(len(ids), -1)
    held = cache_argument(model, cache)
    model(ids, **held, attention_mask=mask, position_ids=places, use_cache=True, logits_to_keep=1)


def seconds(model: Any, cache: DynamicCache, ids: torch.Tensor) -> float:
    """Of one decoded token."""
    began = perf_counter()
    for _ in range(STEPS):
        step(model, cache, ids)
    return (perf_counter() - began) / STEPS


def decode(kv_heads: int, names: Sequence[str], console: Console) -> list[dict[str, Any]]:
    if not names:
        return []
    model = build(kv_heads)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    caches: dict[str, DynamicCache] = {}
    for name in names:  # the full cache is filled last: two of them are never held at once
        caches[name] = filled(model, CONTEXT - QUESTION)
        with ts.sieve(model, name, keep=KEEP, site="cache"):
            step(model, caches[name], some(QUESTION))
        gc.collect()
    kept = int(CONTEXT * KEEP)
    floor, full = filled(model, kept), filled(model, CONTEXT)
    one, idle = some(1), ts.Plan([])
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for turn in track(range(WARM + TURNS), description=f"decode, {kv_heads} KV heads", console=console):
        whole, least = seconds(model, full, one), seconds(model, floor, one)
        for name in names:
            with ts.sieve(model, idle):
                ours = seconds(model, caches[name], one)
            if turn >= WARM:
                taken[name].append((ours, least, whole))
    held = {name: ts.cache_bytes(cache) / ts.cache_bytes(full) for name, cache in caches.items()}
    return [
        {
            "kv heads": kv_heads,
            "method": name,
            "parameters m": size,
            "ours ms": 1e3 * median(t[0] for t in runs),
            "floor ms": 1e3 * median(t[1] for t in runs),
            "full ms": 1e3 * median(t[2] for t in runs),
            "over floor": median(a / b for a, b, _ in runs),
            "times full": median(c / a for a, _, c in runs),
            "held": held[name],
        }
        for name, runs in taken.items()
    ]


@torch.no_grad()
def prefill(model: Any, ids: torch.Tensor) -> float:
    began = perf_counter()
    model(ids, use_cache=True, logits_to_keep=1)
    return perf_counter() - began


def compression(kv_heads: int, names: Sequence[str], console: Console, uses_rope: int = 3) -> list[dict[str, Any]]:
    """What choosing, recording what it reads, and gathering cost, as a share of a prefill without a sieve."""
    if not names:
        return []
    gc.collect()
    model, ids = build(kv_heads, 1), some(CONTEXT, 1)
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    prefill(model, ids)
    for _ in track(range(uses_rope), description=f"compression, {kv_heads} KV heads", console=console):
        plain = prefill(model, ids)
        for name in names:
            sieve = ts.sieve(model, name, keep=KEEP, site="cache")
            sieve.timed = True
            with sieve:
                ours = prefill(model, ids)
            taken[name].append((plain, ours, sieve.seconds))
    return [
        {
            "kv heads": kv_heads,
            "method": name,
            "prefill ms": 1e3 * median(t[0] for t in runs),
            "compression ms": 1e3 * median(t[2] for t in runs),
            "share": median(c / p for p, _, c in runs),
            "over plain": median(o / p for p, o, _ in runs),
        }
        for name, runs in taken.items()
    ]


def show(decoded: list[dict[str, Any]], compressed: list[dict[str, Any]]) -> None:
    columns = ("KV heads", "method", "ours ms", "floor ms", "full ms", "over floor", "times full", "held")
    table = Table(*columns, title=f"a decoded token, {BATCH} rows of {CONTEXT} tokens, keep={KEEP}")
    for r in decoded:
        fast = "" if r["kv heads"] < 16 else " ok" if r["times full"] >= LIMITS["times full"] else " below 2"
        near = " ok" if r["over floor"] <= LIMITS["over floor"] else " above 1.1"
        times = (f"{r[k]:.1f}" for k in ("ours ms", "floor ms", "full ms"))
        last = (f"{r['over floor']:.3f}{near}", f"{r['times full']:.2f}{fast}", f"{100 * r['held']:.1f}%")
        table.add_row(str(r["kv heads"]), r["method"], *times, *last)
    Console().print(table)
    columns = ("KV heads", "method", "prefill ms", "compression ms", "share of prefill", "whole over plain")
    table = Table(*columns, title=f"compression behind a prompt of {CONTEXT} tokens")
    for r in compressed:
        fine = " ok" if r["share"] <= LIMITS["share"] else " above 5%"
        times = (f"{r['prefill ms']:.0f}", f"{r['compression ms']:.1f}", f"{100 * r['share']:.1f}%{fine}")
        table.add_row(str(r["kv heads"]), r["method"], *times, f"{r['over plain']:.3f}")
    Console().print(table)


def main(
    out: Path | None = None, names: Sequence[str] = (), kv_heads: Sequence[int] = KV_HEADS, parts: Sequence[str] = ()
) -> None:
    """Some methods, or all; rows that the file already holds of others stay, so that a run can be had in parts."""
    console = Console(stderr=True)
    rows: dict[str, list[dict[str, Any]]] = {"decode": [], "compression": []}
    if out is not None and out.exists():
        rows = {what: json.loads(out.read_text())[what] for what in rows}
    for heads in kv_heads:
        for what, measure, all_ in (("decode", decode, DECODED), ("compression", compression, COMPRESSED)):
            if parts and what not in parts:
                continue
            new = measure(heads, [name for name in names if name in all_] or ([] if names else all_), console)
            done = {(r["kv heads"], r["method"]) for r in new}
            rows[what] = [r for r in rows[what] if (r["kv heads"], r["method"]) not in done] + new
            if out is not None:
                result = {"benchmark": "decode", "environment": environment(), "seed": 0, **rows}
                out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(rows["decode"], rows["compression"])


if __name__ == "__main__":
    asked = sys.argv[2:]
    numbers = [int(a) for a in asked if a.isdigit()]
    some_parts = [a for a in asked if a in ("decode", "compression")]
    methods = [a for a in asked if not a.isdigit() and a not in some_parts]
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None, methods, numbers or KV_HEADS, some_parts)
