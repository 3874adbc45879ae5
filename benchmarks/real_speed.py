"""What a smaller cache costs and gains on a real model: SmolLM2, a prompt of 4,096 tokens, a quarter kept, ratios in one run.

Two ratios. *compression*: the time that choosing and moving entries takes, of the time of a plain prefill; the prefill is
recorded once, and each method compresses a copy of it, as it would in a run of its own; what the copy takes is taken off.
*gain*: how many times faster a token
is decoded under a method than over the full cache, of what a bare cache of as many entries gains, with no sieve. What is
compared takes turns. Times are those of the processor in one thread, which other programs on the machine disturb little.

`python -m benchmarks.real_speed float32 bfloat16 snapkv zipcache` measures some, all if nothing is named; rows go to
`out/cache-smollm2-speed.json`, and `python -m benchmarks.real_page` puts them on the page.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import DynamicCache

import tokensieve as ts
from benchmarks.real_texts import Texts
from tokensieve.bench.results import environment
from tokensieve.core.files import write_json
from tokensieve.sites.cache.evicted_layer import EvictedLayer
from tokensieve.sites.cache.recording import Recording, record
from tokensieve.sites.model.compatibility import cache_argument
from tokensieve.testbed import real

TOKENS, KEEP, TURNS, WARM, STEPS = 4096, 0.25, 3, 1, 4
EVICTING = ("snapkv", "pyramidkv", "adakv", "keydiff", "streamingllm", "h2o", "ems")
NAMES = (*EVICTING, "zipcache")
FILE = Path("out/cache-smollm2-speed.json")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LIMITS = {"compression": {"zipcache": 0.10, "": 0.05}, "gain": 0.85, "zipcache over full": 1.5}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = process_time()
    out = work()
    return process_time() - began, out


def bare(found: Recording, held: Sequence[int]) -> DynamicCache:
    """A plain cache of the last so many entries of each layer."""
    cache = DynamicCache(config=found.model.config)
    for i, count in enumerate(held):
        layer: Any = found.cache.layers[i]
        cache.update(layer.keys[:, :, -count:].clone(), layer.values[:, :, -count:].clone(), i)
    return cache


@torch.no_grad()
def token(model: Any, cache: Any, place: int) -> float:
    """Seconds of one decoded token, at this place of the sequence."""
    given = cache_argument(model, cache)
    at, mask = torch.tensor([[place]]), torch.ones(1, cache.get_seq_length() + 1, dtype=torch.long)
    return timed(lambda: model(torch.tensor([[7]]), **given, attention_mask=mask, position_ids=at, use_cache=True))[0]


def measure(dtype: str, names: Sequence[str], console: Console) -> dict[str, Any]:
    """Compression and decoding of some methods; "full" is what their figures are shares of."""
    model, tokenizer = real.load("smollm2", dtype=DTYPES[dtype])
    prompt = torch.as_tensor(Texts(tokenizer).reference[None, :TOKENS])
    with torch.no_grad():
        model(prompt[:, :64])
        plain = timed(lambda: model(prompt, use_cache=True, logits_to_keep=1))[0]
    found = record(model, prompt)
    full = found.full()
    caches: dict[str, Any] = {}
    compressed: dict[str, list[float]] = {name: [] for name in names}
    for turn in track(range(WARM + TURNS), f"compression, {dtype}", console=console):
        copied, _ = timed(found.compressed)
        for name in names:
            with ts.sieve(model, name, keep=KEEP, site="cache", seed=0):
                seconds, caches[name] = timed(found.compressed)
            if turn >= WARM:
                compressed[name].append(seconds - copied)
    floors = {name: bare(found, entries(cache)) for name, cache in caches.items() if name != "zipcache"}
    del found
    gc.collect()
    steps: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for turn in track(range((WARM + TURNS) * STEPS), f"decoding, {dtype}", console=console):
        whole = token(model, full, TOKENS + turn)
        for name in names:
            least = token(model, floors[name], TOKENS + turn) if name in floors else whole
            with ts.sieve(model, name, keep=KEEP, site="cache", seed=0):
                ours = token(model, caches[name], TOKENS + turn)
            if turn >= WARM * STEPS:
                steps[name].append((whole, least, ours))
    rows: dict[str, Any] = {"full": {"prefill s": plain, "token ms": 1e3 * median(w for w, *_ in steps[names[0]])}}
    for name in names:
        rows[name] = {
            "compression": median(compressed[name]) / plain,
            "token": median(o / w for w, _, o in steps[name]),
            "times full": median(w / o for w, _, o in steps[name]),
            "bare": median(w / f for w, f, _ in steps[name]) if name in floors else None,
            "gain": median(f / o for _, f, o in steps[name]) if name in floors else None,
        }
    return rows


def entries(cache: Any) -> list[int]:
    """How many entries each layer holds, in the mean of its heads."""
    out = []
    for layer in cache.layers:
        assert isinstance(layer, EvictedLayer)
        held = (layer.places >= 0).sum(2).float().mean() + layer.columns.shape[1]  # type: ignore[union-attr]
        out.append(round(float(held)))
    return out


def show(data: dict[str, Any]) -> None:
    for dtype, rows in data.items():
        table = Table("method", "compression", "token / full", "times full", "bare", "of the bare gain", title=dtype)
        for name, row in rows.items():
            if name == "full":
                table.caption = f"prefill {row['prefill s']:.1f} s, token {row['token ms']:.1f} ms"
                continue
            most = LIMITS["compression"].get(name, LIMITS["compression"][""])  # type: ignore[attr-defined]
            fine = row["gain"] >= LIMITS["gain"] if row["gain"] else row["token"] <= LIMITS["zipcache over full"]
            table.add_row(
                name,
                f"{row['compression']:.1%}{'' if row['compression'] <= most else f' above {most:.0%}'}",
                f"{row['token']:.2f}{'' if fine or row['gain'] else ' above 1.5'}",
                f"{row['times full']:.2f}",
                f"{row['bare']:.2f}" if row["bare"] else "",
                f"{row['gain']:.2f}{'' if fine else ' below 0.85'}" if row["gain"] else "",
            )
        Console().print(table)


def main(dtypes: Sequence[str] = (), names: Sequence[str] = ()) -> None:
    """Rows that the file already holds of others stay."""
    torch.set_num_threads(1)
    data = json.loads(FILE.read_text(encoding="utf-8"))["rows"] if FILE.exists() else {}
    for dtype in dtypes or DTYPES:
        data[dtype] = data.get(dtype, {}) | measure(dtype, names or NAMES, Console(stderr=True))
        FILE.parent.mkdir(parents=True, exist_ok=True)
        write_json(FILE, {"benchmark": "real_speed", "environment": environment(), "rows": data})
    show(data)


if __name__ == "__main__":
    asked = sys.argv[1:]
    main([a for a in asked if a in DTYPES], [a for a in asked if a not in DTYPES])
