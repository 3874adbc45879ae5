"""Side by side with kvpress 0.5.5: the same random model, prompt, method and count of kept entries, in two processes.

kvpress needs an older transformers, so it runs in an environment of its own, which `make kvpress` sets up. The two take turns,
so that a slow spell of the machine meets both; times are medians, ratios medians of the turns' ratios. Time is the prefill with
compression, and then that of a decoded token; memory is the bytes that the cache holds behind the decoded tokens, and the
largest resident set of prefill and decoding above what it was before, in processes whose allocator gives freed memory back
at once: else the peak tells of its habits. Entries are known by their keys, whose bits are those of the full cache.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

FOLDER = Path("out/kvpress")
TOKENS, KEEP, BATCH, NEW, TURNS, WARM, VOCAB = 4096, 1024, 2, 32, 3, 1, 2000
WINDOW = {"window": 32, "kernel": 5}
OURS: dict[str, dict[str, Any]] = {
    "snapkv": WINDOW, "keydiff": {}, "tova": {}, "streamingllm": {}, "expected-attention": {},
    "adakv": WINDOW | {"pooling": "mean"},
}  # fmt: skip
EAGER = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
"""Tells the GNU allocator to give what it frees back to the system."""
SAME = ("snapkv", "keydiff", "tova", "streamingllm")
"""Methods of which both are to keep the same entries."""


def save() -> None:
    """The random model, with attention that is not near uniform."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=1024, num_hidden_layers=2, num_attention_heads=16, num_key_value_heads=8, intermediate_size=2752,
        vocab_size=VOCAB, max_position_embeddings=2 * TOKENS,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(4)
            layer.self_attn.k_proj.weight.mul_(4)
    model.save_pretrained(FOLDER / "model")


def press(name: str) -> Any:
    """Theirs, for one prompt."""
    import kvpress  # type: ignore[import-not-found]

    ratio = {"compression_ratio": 1 - KEEP / TOKENS}
    snap = {"window_size": WINDOW["window"], "kernel_size": WINDOW["kernel"]}
    made = {
        "snapkv": lambda: kvpress.SnapKVPress(**ratio, **snap),
        "keydiff": lambda: kvpress.KeyDiffPress(**ratio),
        "tova": lambda: kvpress.TOVAPress(**ratio),
        "streamingllm": lambda: kvpress.StreamingLLMPress(**ratio),
        "expected-attention": lambda: kvpress.ExpectedAttentionPress(**ratio),
        "adakv": lambda: kvpress.AdaKVPress(kvpress.SnapKVPress(**ratio, **snap)),
    }
    return made[name]()


class Worker:
    """One side: answers a line that names a method with what it took."""

    def __init__(self, side: str):
        torch.set_num_threads(1)
        self.side = side
        self.model: Any = LlamaForCausalLM.from_pretrained(FOLDER / "model", attn_implementation="sdpa").eval()
        self.ids = torch.randint(VOCAB, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
        cache = DynamicCache()
        with torch.no_grad():
            self.model(self.ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self.full = [[_named(keys) for keys in layer.keys.flatten(0, 1)] for layer in cache.layers]

    @torch.no_grad()
    def run(self, name: str) -> dict[str, Any]:
        if self.side == "ours":
            import tokensieve as ts

            prompt = decoding = ts.sieve(self.model, name, keep=KEEP, site="cache", **OURS[name])
        else:
            prompt, decoding = press(name)(self.model), nullcontext()
        cache, level = DynamicCache(), _level()
        with prompt:
            began = perf_counter()
            out = self.model(self.ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            prefill = perf_counter() - began
        kept = self._kept(cache)
        steps, token = [], out.logits[:, -1:].argmax(-1)
        with decoding:
            for i in range(NEW):
                began = perf_counter()
                place = torch.full((BATCH, 1), TOKENS + i)
                out = self.model(token, past_key_values=cache, position_ids=place, use_cache=True)
                steps.append(perf_counter() - began)
                token = out.logits[:, -1:].argmax(-1)
        peak, held = _status("VmHWM") - level, self._held(cache)
        return {"prefill": prefill, "decode": median(steps), "peak": peak, "held": held, "kept": kept}

    def _held(self, cache: Any) -> int:
        if self.side == "ours":
            from tokensieve import cache_bytes

            return cache_bytes(cache)
        return sum(x.untyped_storage().nbytes() for layer in cache.layers for x in (layer.keys, layer.values))

    def _kept(self, cache: Any) -> list[list[list[int]]]:
        """By layer and head, the tokens that are kept, in order of their positions; empty where entries only look evicted."""
        heads = [
            [_named(keys) for keys in layer.keys.flatten(0, 1)] if layer.keys.shape[2] else [] for layer in cache.layers
        ]
        known = [[{key: i for i, key in enumerate(head)} for head in layer] for layer in self.full]
        return [
            [sorted(at[key] for key in head) for head, at in zip(layer, all_, strict=False)]
            for layer, all_ in zip(heads, known, strict=True)
        ]


def _named(keys: torch.Tensor) -> list[bytes]:
    return [row.tobytes() for row in keys.contiguous().numpy()]


def _level() -> int:
    """The resident set, in bytes, once freed memory is given back; forgets the peak so far."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


class Side:
    """A worker in a process of its own."""

    def __init__(self, side: str, exact: bool = False):
        python = sys.executable if side == "ours" else str(FOLDER / ".venv" / "bin" / "python")
        command = [python, "-m", "benchmarks.kvpress", "--worker", side]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | (EAGER if exact else {})
        )
        self.versions = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with {self.process.wait()}; `make kvpress` sets up what it needs")
        return json.loads(line)

    def run(self, name: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(name, file=self.process.stdin, flush=True)
        return self._answer()


def work(side: str) -> None:
    import transformers

    worker = Worker(side)
    print(json.dumps({"transformers": transformers.__version__, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.run(line.strip())), flush=True)


def same(a: Sequence[Any], b: Sequence[Any]) -> float | None:
    """The share of entries that both keep; None where one side keeps heads of other numbers, or only looks as if it evicted."""
    pairs = [pair for x, y in zip(a, b, strict=True) for pair in zip(x, y, strict=False)]
    if not pairs or any(len(x) != len(y) for x, y in pairs):
        return None
    return sum(len(set(x) & set(y)) for x, y in pairs) / sum(len(x) for x, _ in pairs)


def main(out: Path = FOLDER / "kvpress.json", names: Sequence[str] = ()) -> None:
    """Some methods, or all; what the file already holds of others stays."""
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    if not (FOLDER / "model" / "config.json").exists():
        save()
    sides = {side: Side(side) for side in ("ours", "theirs")}
    exact = {side: Side(side, exact=True) for side in sides}
    data = {
        "format": "tokensieve.kvpress.1",
        "machine": platform.processor() or platform.machine(),
        "seed": 0,
        "rows": {},
    }
    if out.exists():
        data = json.loads(out.read_text())
    data["versions"] = {side: one.versions for side, one in sides.items()}
    for name in track(names or OURS, description="kvpress", console=Console(stderr=True)):
        uses_rope = [{side: one.run(name) for side, one in sides.items()} for _ in range(WARM + TURNS)][WARM:]
        weighed = [{side: one.run(name) for side, one in exact.items()}]
        row: dict[str, Any] = {}
        for what, told in (("prefill", uses_rope), ("decode", uses_rope), ("peak", weighed), ("held", weighed)):
            for side in sides:
                row[f"{what} {side}"] = median(t[side][what] for t in told)
            row[f"{what} ratio"] = median(t["ours"][what] / t["theirs"][what] for t in told)
        data["rows"][name] = row | {"same": same(uses_rope[-1]["ours"]["kept"], uses_rope[-1]["theirs"]["kept"])}
        out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    table = Table(
        "method", "prefill s", "token ms", "peak MB", "held MB", "same entries", title="ours / kvpress = ratio"
    )
    for name, row in data["rows"].items():
        cells = []
        for what, unit in (("prefill", 1.0), ("decode", 1e3), ("peak", 2**-20), ("held", 2**-20)):
            ours, theirs = (unit * row[f"{what} {side}"] for side in sides)
            cells.append(f"{ours:.2f} / {theirs:.2f} = {row[f'{what} ratio']:.2f}")
        equal = row["same"]
        told = "other counts" if equal is None else "all" if equal == 1 else f"{100 * equal:.2f}%"
        table.add_row(name, *cells, told + (" NOT" if name in SAME and equal != 1 else ""))
    Console(width=max(140, Console().width)).print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2])
    else:
        main(*([Path(sys.argv[1])] if len(sys.argv) > 1 else []), *([sys.argv[2:]] if len(sys.argv) > 2 else []))
