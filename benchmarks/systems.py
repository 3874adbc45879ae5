"""`make systems`: re-run the check of every published system that is delivered, and write the record.

A row is `shown` where the effect its table entry asks for was measured here, `runs` where the method is right and runs but the
effect did not show at this scale; the numbers stand beside it either way. Nothing is set by hand.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import tokensieve as ts
from benchmarks import digits
from tokensieve import testbed

RECORD = Path(ts.__file__).parent / "data" / "record.json"
PER_KIND = 40
INSIDE = {"layers": 1}  # of 4: the paper's second of 32 is as early; by the second of 4 the text has read the image
SEED = 7
Outcome = tuple[bool, dict[str, Any]]
CHECKS: dict[int, Callable[[Bed], Outcome]] = {}


class Bed:
    """The testbed model and its held-out questions; accuracies are measured once and kept."""

    def __init__(self) -> None:
        self.model, self.processor = testbed.load()
        self.items = testbed.test_set(n_scenes=150, questions_per_kind=PER_KIND, seed=SEED)
        self._known: dict[str, list[bool]] = {}
        self._vit: Any = None

    @property
    def vit(self) -> Any:
        if self._vit is None:
            self._vit = digits.train()
        return self._vit

    def right(self, name: str, keep: int | float, kind: str | None = None, **options: Any) -> float:
        """Accuracy over all kinds (balanced), or of one."""
        key = json.dumps([name, keep, options], sort_keys=True)
        if key not in self._known:
            with ts.sieve(self.model, name, keep=keep, seed=SEED, **options):
                self._known[key] = testbed.correct(self.model, self.processor, self.items, batch=25)
        flags = [ok for ok, item in zip(self._known[key], self.items, strict=True) if kind in (None, item.kind)]
        return round(sum(flags) / len(flags), 4)

    @torch.no_grad()
    def kept(self, name: str, keep: int | float, count: int = 60, **options: Any) -> list[tuple[Any, torch.Tensor]]:
        """Items and the original visual tokens that were kept for them, one by one."""
        out = []
        with ts.sieve(self.model, name, keep=keep, seed=SEED, **options) as s:
            for item in self.items[:: len(self.items) // count]:
                testbed.answers(self.model, self.processor, [item.image], [item.question.text])
                assert s.last is not None
                out.append((item, s.last.stages[-1].reduction.kept[0]))
        return out

    def on_object(self, name: str, keep: int | float, **options: Any) -> float:
        """Share of kept tokens whose patch centre lies in a box of what is asked about."""
        hits = total = 0
        for item, kept in self.kept(name, keep, **options):
            centres = [((int(k) % 24) * 14 + 7, (int(k) // 24) * 14 + 7) for k in kept]
            hits += sum(any(x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in item.boxes) for x, y in centres)
            total += len(centres)
        return round(hits / total, 4)

    @torch.no_grad()
    def vit_right(self, name: str, keep: int | float, **options: Any) -> float:
        with ts.sieve(self.vit, name, keep=keep, site="encoder", seed=SEED, **options):
            return round(digits.accuracy(self.vit), 4)


def check(system: int) -> Callable[[Callable[[Bed], Outcome]], Callable[[Bed], Outcome]]:
    def add(function: Callable[[Bed], Outcome]) -> Callable[[Bed], Outcome]:
        CHECKS[system] = function
        return function

    return add


def _beats(numbers: dict[str, float], winner: str, strict: tuple[str, ...], weak: tuple[str, ...] = ()) -> bool:
    return all(numbers[winner] > numbers[k] for k in strict) and all(numbers[winner] >= numbers[k] for k in weak)


@check(380)
def visionzip(bed: Bed) -> Outcome:
    """At 64 of 576: above dominant-only, random and average pooling."""
    n = {
        "visionzip": bed.right("visionzip", 64),
        "dominant only": bed.right("visionzip", 64, contextual=0.0),
        "random": bed.right("random", 64),
        "pool": bed.right("pool", 64),
    }
    return _beats(n, "visionzip", ("dominant only", "random", "pool")), n


@check(57)
def fastervlm(bed: Bed) -> Outcome:
    """At 5%: above language-model text attention and random; share of kept tokens on the object for both rankings."""
    n = {
        "fastervlm": bed.right("fastervlm", 29),
        "fastv": bed.right("fastv", 29, **INSIDE),
        "random": bed.right("random", 29),
        "on the object: cls attention": bed.on_object("fastervlm", 29),
        "on the object: text attention": bed.on_object("fastv", 29, **INSIDE),
    }
    return _beats(n, "fastervlm", ("fastv", "random")), n


@check(6)
def vtc_cls(bed: Bed) -> Outcome:
    """At 64: the ensemble of layers at least equals the last layer alone, and exceeds text attention and random."""
    n = {
        "vtc-cls": bed.right("vtc-cls", 64),
        "last layer": bed.right("fastervlm", 64, encoder_layer=-1),
        "fastv": bed.right("fastv", 64, **INSIDE),
        "random": bed.right("random", 64),
    }
    return _beats(n, "vtc-cls", ("fastv", "random"), ("last layer",)), n


@check(27)
def hiprune(bed: Bed) -> Outcome:
    """At 11%: above deep-layer attention top-k and random; the same code on an encoder without CLS."""
    n: dict[str, Any] = {
        "hiprune": bed.right("hiprune", 63),
        "deep layer": bed.right("fastervlm", 63, encoder_layer=-1),
        "random": bed.right("random", 63),
    }
    x = torch.randn(2, 576, 32, generator=torch.Generator().manual_seed(SEED))
    received = {i: x[..., i].softmax(-1) for i in range(-24, 0)}
    kept = ts.reduce(x, "hiprune", 63, received_attention=received, grid=(24, 24))
    n["without CLS keeps"] = kept.counts.tolist()
    return _beats(n, "hiprune", ("deep layer", "random")) and kept.counts.tolist() == [63, 63], n


@check(67)
def divprune(bed: Bed) -> Outcome:
    """At 10%: smallest distance between kept tokens and accuracy above CLS top-k and random."""
    n = {name: bed.right(name, 58) for name in ("divprune", "fastervlm", "random")}
    near = {f"min distance: {name}": _closest(bed, name) for name in ("divprune", "fastervlm", "random")}
    far = near["min distance: divprune"] > max(near["min distance: fastervlm"], near["min distance: random"])
    return far and _beats(n, "divprune", ("fastervlm", "random")), n | near


@torch.no_grad()
def _closest(bed: Bed, name: str) -> float:
    """Mean over images of the smallest cosine distance between two kept tokens, at the handoff."""
    values = []
    for item, kept in bed.kept(name, 58, count=20):
        pixels = bed.processor.image_processor([item.image], return_tensors="pt")["pixel_values"]
        features = bed.model.get_image_features(pixels).pooler_output[0][kept]
        unit = torch.nn.functional.normalize(features, dim=-1)
        distance = 1 - unit @ unit.T
        values.append(float(distance[~torch.eye(len(kept), dtype=torch.bool)].min()))
    return round(sum(values) / len(values), 5)


@check(279)
def dart(bed: Bed) -> Outcome:
    """576 to 64: above random and attention-ranked pruning, at the same layer; under fused attention."""
    n: dict[str, Any] = {
        "dart": bed.right("dart", 64, **INSIDE),
        "random": bed.right("random", 64, site="prefill", **INSIDE),
        "fastv": bed.right("fastv", 64, **INSIDE),
        "attention": bed.model.config.text_config._attn_implementation,
    }
    return _beats(n, "dart", ("random", "fastv")) and n["attention"] == "sdpa", n


@check(270)
def sparsevlm(bed: Bed) -> Outcome:
    """576 to 192, 128, 64: above last-token pruning at each; above the no-recycling ablation at 64."""
    n = {f"{name} {k}": bed.right(name, k, **INSIDE) for k in (192, 128, 64) for name in ("sparsevlm", "fastv")}
    n["no recycling 64"] = bed.right("sparsevlm", 64, recycled=0.0, **INSIDE)
    above = all(n[f"sparsevlm {k}"] > n[f"fastv {k}"] for k in (192, 128, 64))
    return above and n["sparsevlm 64"] > n["no recycling 64"], n


@check(62)
def token_transforming(bed: Bed) -> Outcome:
    """Digits ViT, no training, 40% fewer FLOPs: above bipartite merging and top-k pruning."""
    keep = 24  # equal steps from 64 to 24 over 6 layers: a mean of 40.7 of 64 tokens and CLS, about 0.6 of the FLOPs
    n = {
        "token-transforming": bed.vit_right("token-transforming", keep),
        "tome": bed.vit_right("tome", keep),
        "top-k": bed.vit_right("fastervlm", keep),
        "full": bed.vit_right("uniform", 64),
    }
    return _beats(n, "token-transforming", ("tome", "top-k")), n


@check(345)
def atc(bed: Bed) -> Outcome:
    """Digits ViT, no training, a quarter kept: above ToMe and top-k; the cluster count exact for every M."""
    n: dict[str, Any] = {
        "atc": bed.vit_right("atc", 0.25),
        "tome": bed.vit_right("tome", 0.25),
        "top-k": bed.vit_right("fastervlm", 0.25),
    }
    x = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(SEED))
    made = [ts.reduce(x, "atc", m) for m in range(1, 65)]
    n["exact for every M"] = all(int(r.counts[0]) == m and bool((r.owner >= 0).all()) for m, r in enumerate(made, 1))
    return _beats(n, "atc", ("tome", "top-k")) and n["exact for every M"], n


@check(323)
def gap(bed: Bed) -> Outcome:
    """Location questions, half kept at random: original ids recover at least half of what renumbering loses."""
    n = {
        "full": bed.right("uniform", 1.0, kind="location"),
        "original": bed.right("random", 0.5, kind="location"),
        "compact": bed.right("random", 0.5, kind="location", positions="compact"),
    }
    lost = n["full"] - n["compact"]
    n["lost by renumbering"] = round(lost, 4)
    return lost > 0.02 and n["original"] - n["compact"] >= lost / 2, n


@check(357)
def ficoco(bed: Bed) -> Outcome:
    """Vision and language variants above ToMe and FastV at equal tokens."""
    n = {
        "vision": bed.right("ficoco", 64),
        "tome": bed.right("tome", 64),
        "language": bed.right("ficoco-l", 64, **INSIDE),
        "fastv": bed.right("fastv", 64, **INSIDE),
    }
    return n["vision"] > n["tome"] and n["language"] > n["fastv"], n


def write(rows: dict[str, dict[str, Any]], questions: int) -> None:
    """The record, to a temporary name first, then renamed."""
    record = {
        "format": "tokensieve.record.1",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "transformers")} | {"tokensieve": ts.__version__},
        "seed": SEED,
        "questions": questions,
        "rows": rows,
    }
    part = RECORD.with_suffix(".part")
    part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    part.replace(RECORD)


def main() -> int:
    bed = Bed()
    rows: dict[str, dict[str, Any]] = {}
    for system in track(sorted(CHECKS), description="checks", console=Console(stderr=True)):
        shown, numbers = CHECKS[system](bed)
        rows[str(system)] = {
            "status": "shown" if shown else "runs",
            "check": (CHECKS[system].__doc__ or "").strip(),
            "numbers": numbers,
        }
    write(rows, len(bed.items))
    table = Table("id", "system", "status", "numbers")
    names = {s.id: s.name for s in ts.systems()}
    for system, row in sorted(rows.items(), key=lambda kv: int(kv[0])):
        numbers = ", ".join(f"{k} {v}" for k, v in row["numbers"].items())
        table.add_row(system, names[int(system)], row["status"], numbers)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
