"""Methods of the cache judged on a real model: SmolLM2, of which each method compresses a copy of one prefill.

All that any check asks of it is measured once, text by text, and kept in ``FILE``, from which a stopped run goes on.
`python -m benchmarks.systems.smollm2` measures and shows it; checks ask for differences, which are paired by text.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import tokensieve as ts
from benchmarks.cache import follow
from benchmarks.real_cache import compared
from benchmarks.real_texts import Text, Texts
from benchmarks.resumed import Resumed, weights
from benchmarks.systems.bed import SEED
from tokensieve.bench import paired as stats
from tokensieve.core.method import Method
from tokensieve.core.needs import AccumulatedAttention
from tokensieve.core.signals import Signals
from tokensieve.methods.cache.zipcache import ZipCache
from tokensieve.sites.cache.recording import record
from tokensieve.testbed import real

FORMAT, FILE = "tokensieve.systems_smollm2.1", Path("out/systems-smollm2.json")
DECODED = Path("out/systems-smollm2-decoded.json")
LENGTH, SAMPLES, TEXTS = 1024, 6, 8
READ, ASKED = ("perplexity", "code"), ("facts before", "facts after")
"""Tasks judged by nats a token, and by answers that are right throughout."""
OF, BETWEEN = ": nats, % right, % of the bytes", ": nats, % right"
"""What a record's numbers are."""


@dataclass(frozen=True)
class ByAccumulation(ZipCache):
    """Salient is what gathered most attention, whatever its age."""

    @property
    def needs(self):
        return (AccumulatedAttention(),)


@dataclass(frozen=True)
class Noted(ZipCache):
    """Notes what it ranks by, layer by layer."""

    ranks: ClassVar[list[torch.Tensor]] = []

    def score(self, s: Signals) -> torch.Tensor:
        self.ranks.append(super().score(s))
        return self.ranks[-1]


def tried() -> dict[str, tuple[Method, float]]:
    """By name, every method that some check asks for, and what it keeps; random holds as many bytes as zipcache at 0.12."""
    out = {f"{n}@0.2": (ts.get_method(n), 0.2) for n in ("random", "streamingllm", "h2o", "a2sf", "ems")}
    out["h2o + caote@0.2"] = ts.get_method("caote", scorer="h2o"), 0.2
    out |= {f"{n}@0.5": (ts.get_method(n), 0.5) for n in ("random", "h2o", "vatp")}
    out["random@0.12"] = ts.get_method("random"), 0.12
    out |= {"zipcache@0.4": (ZipCache(), 0.4), "2 bits@0.4": (ZipCache(high=2), 0.4)}
    return out | {"by accumulation@0.4": (ByAccumulation(), 0.4)}


@functools.cache
def measured() -> dict[str, dict[str, dict[str, float]]]:
    """By task and number of the text, the rows of all methods."""
    methods = tried()
    of: dict[str, Any] = {"length": LENGTH, "tried": {name: repr(made) for name, made in methods.items()}}
    found = Resumed.open(FILE, FORMAT, of | weights(real.get("smollm2") / "model.safetensors"))
    keys = [(task, number) for number in range(SAMPLES) for task in READ + ASKED]
    missing = [key for key in keys if f"{key[0]} {key[1]}" not in found.data["rows"]]
    if missing:
        model, tokenizer = real.load("smollm2", dtype=torch.float32)
        texts = Texts(tokenizer)
        for task, number in track(missing, description="SmolLM2", console=Console(stderr=True)):
            found.add(
                f"{task} {number}", lambda t=task, n=number: compared(model, texts.get(t, LENGTH, n), methods, SEED)
            )
    return {f"{task} {number}": found.data["rows"][f"{task} {number}"] for task, number in keys}


def overlap(share: float) -> float:
    """Of the tokens that all queries of a text rank on top, the share that zipcache's probes rank there too, over all layers."""
    model, tokenizer = real.load("smollm2", dtype=torch.float32)
    text = Texts(tokenizer).get("code", LENGTH, 0)
    found, tops = record(model, torch.as_tensor(text.ids[None, : text.context])), []
    count = int(share * text.context)
    for probes in (ZipCache.probes, 1.0):
        Noted.ranks.clear()
        with ts.sieve(model, Noted(probes=probes), keep=share, site="cache"):
            found.compressed()
        tops.append([set(x[0].topk(count).indices.tolist()) for x in Noted.ranks])
    return round(mean(len(a & b) / count for a, b in zip(*tops, strict=True)), 4)


READING: dict[str, tuple[Method | None, float]] = {
    "full": (None, 1.0),
    "window": (ts.get_method("streamingllm"), 0.05),
    "tidaldecode": (ts.get_method("tidaldecode", dense=1), 0.05),
    "once": (ts.get_method("tidaldecode", dense=1, again=1 / 30), 0.05),
}
"""Of 30 layers the second selects, and the 13th anew, or the second alone."""


def answered(model: Any, text: Text) -> dict[str, float]:
    """The share of a text's questions that are answered right throughout, told token by token where methods act on those."""
    out, ids = {}, text.ids[None]
    for name, (method, keep) in READING.items():
        plan = ts.Plan([]) if method is None else ts.plan(method, keep, site="cache")
        with ts.sieve(model, plan, seed=SEED):
            logits = follow(model, ids, text.context, method is not None and method.sparse_decode)[0]
        right = logits[0].argmax(-1).numpy() == ids[0, text.context :]
        out[name] = mean(float(right[a - text.context : b - text.context].all()) for a, b in text.answers)
    return out


@functools.cache
def decoded() -> dict[str, list[float]]:
    """Right answers of each way of reading a whole cache, text by text."""
    of = {"length": LENGTH, "tried": {name: repr(made) for name, made in READING.items()}}
    found = Resumed.open(DECODED, FORMAT, of | weights(real.get("smollm2") / "model.safetensors"))
    missing = [i for i in range(TEXTS) if str(i) not in found.data["rows"]]
    if missing:
        model, tokenizer = real.load("smollm2", dtype=torch.float32)
        texts = Texts(tokenizer)
        for number in track(missing, description="SmolLM2, decoding", console=Console(stderr=True)):
            found.add(str(number), lambda n=number: answered(model, texts.get("facts after", LENGTH, n)))
    return {name: [found.data["rows"][str(i)][name] for i in range(TEXTS)] for name in READING}


def each(name: str, tasks: Sequence[str]) -> list[float]:
    """Nats a token, or the share of right answers, text by text."""
    what = "nats" if tasks == READ else "right"
    return [rows[name][what] for key, rows in measured().items() if key.rpartition(" ")[0] in tasks]


def difference(ours: str, theirs: str, tasks: Sequence[str] = READ) -> stats.Difference:
    """Of ours less theirs, paired by text."""
    return stats.paired(each(ours, tasks), each(theirs, tasks))


def less(ours: str, *theirs: str) -> bool:
    """Whether ours takes fewer nats than each of the others, by intervals that leave 0 out."""
    return all(d.distinguishable and d.mean < 0 for d in (difference(ours, other) for other in theirs))


def more(ours: str, *theirs: str) -> bool:
    """Whether ours has more right answers than each of the others, likewise."""
    return all(d.distinguishable and d.mean > 0 for d in (difference(ours, other, ASKED) for other in theirs))


def told(ours: str, *theirs: str) -> dict[str, Any]:
    """For a record: nats and right answers of each in %, and intervals of the differences of ours from the others'."""
    out: dict[str, Any] = {"texts": SAMPLES * len(READ + ASKED)}
    for name in (ours, *theirs):
        held = mean(r[name]["bytes"] / r["full"]["bytes"] for r in measured().values())
        out[f"{name}{OF}"] = [
            round(mean(each(name, READ)), 4),
            round(100 * mean(each(name, ASKED)), 1),
            round(100 * held, 1),
        ]
    for other in theirs:
        pair = difference(ours, other), difference(ours, other, ASKED)
        out[f"{ours} less {other}{BETWEEN}"] = [interval(pair[0], 1, 4), interval(pair[1], 100, 1)]
    return out


def interval(found: stats.Difference, scale: float, digits: int) -> list[float]:
    """Its two ends, for a record."""
    assert found.low is not None
    assert found.high is not None
    return [round(scale * found.low, digits), round(scale * found.high, digits)]


def show() -> None:
    table = Table("method", "nats", "less full", "right", "held", title=f"{SAMPLES} texts a task of {LENGTH} tokens")
    for name in ("full", *tried()):
        found = told(name, "full") if name != "full" else told("full")
        between = found.get(f"{name} less full{BETWEEN}", [""])[0]
        own = found[f"{name}{OF}"]
        table.add_row(name, *(str(x) for x in (own[0], between, *own[1:])))
    Console().print(table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    show()
