"""The run: tokenizers times budgets, each row kept as soon as it is measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensieve.bench.codec import classic, signals, specs
from tokensieve.bench.codec.autoencoder import Autoencoder
from tokensieve.bench.codec.distortion import features, noise_floor
from tokensieve.bench.codec.judge import SHOWN, Judge
from tokensieve.bench.codec.signals import SignalSet
from tokensieve.bench.codec.verdict import NEAR
from tokensieve.bench.results import environment
from tokensieve.codec import Quantizer, quantizer
from tokensieve.core.files import write, write_json

FORMAT = "tokensieve.codec.1"
SCENES = 1000
CONTINUOUS, PUBLISHED, REVIVED = "continuous twin", "vq, as published", "vq, revived"
MOST_BASELINE_BITS = 14
FEWEST_STEPS = 20


@dataclass(frozen=True)
class Config:
    """What is asked for.

    Attributes:
        data: a folder of images or speech; None for generated scenes.
        tokenizers: specs as they are typed.
        tokens: budgets.
        out: where results go.
        size: pixels of a side; steps: of training each autoencoder; seed; limit: of signals at most.
        save: where fitted tokenizers go; None for nowhere.
    """

    data: Path | None
    tokenizers: tuple[str, ...]
    tokens: tuple[int, ...]
    out: Path
    size: int = 64
    steps: int = 300
    seed: int = 0
    limit: int | None = None
    save: Path | None = None


@dataclass(frozen=True)
class Arm:
    """A row to come: its key, its name, the function that measures it, and whether an autoencoder is trained."""

    key: str
    name: str
    work: Callable[[], dict[str, Any]]
    trains: bool


Report = Callable[[str, float, float], None]
"""Told what is worked at, how much is done, and of how much."""


def run(config: Config, report: Report = lambda what, done, of: None) -> dict[str, Any]:
    """Measure, or go on measuring; returns what ``results.json`` holds.

    Raises:
        ValueError: a spec or a folder that cannot be, or an ``out`` that holds other settings.
    """
    report("reading", 0, 1)
    asked = [specs.parse(text) for text in config.tokenizers]
    if len({s.name for s in asked}) < len(asked):
        raise ValueError("a tokenizer is named twice")
    if config.steps < FEWEST_STEPS:
        raise ValueError(f"--steps {config.steps}; at least {FEWEST_STEPS}, and the same for all")
    data = _data(config)
    for tokens in config.tokens:
        specs.grid(tuple(data.test.shape[1:]), tokens)  # type: ignore[arg-type]
    bench = Bench(config, data, asked)
    cells = bench.cells()
    worth = [config.steps / 300 + 0.7 if c.trains else 0.2 for c in cells]
    todo = [(c, w) for c, w in zip(cells, worth, strict=True) if c.key not in bench.rows]
    of, done = sum(w for _, w in todo), 0.0
    bench.progress = lambda share: report(f"{bench.now}", done + share * bench.weight, of)
    for cell, weight in todo:
        bench.now, bench.weight = cell.key, weight
        report(cell.key, done, of)
        bench.add(cell.key, {"name": cell.name, **cell.work()})
        done += weight
    report("done", of, of or 1)
    return bench.results


def _data(config: Config) -> SignalSet:
    if config.size < 8:
        raise ValueError(f"--size {config.size}; at least 8 pixels")
    if config.data is None:
        return signals.scenes(config.limit or SCENES, config.size)
    return signals.folder(config.data, config.size, config.limit)


class Bench:
    """The state of a run."""

    def __init__(self, config: Config, data: SignalSet, asked: Sequence[specs.Spec]):
        self.config, self.data, self.asked = config, data, asked
        self.now, self.weight = "", 0.0
        self.progress: Callable[[float], None] = lambda share: None
        self.shape: tuple[int, int, int] = tuple(data.test.shape[1:])  # type: ignore[assignment]
        self._judge: Judge | None = None
        self.results = self._opened()

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return self.results["rows"]

    def _opened(self) -> dict[str, Any]:
        settings = {
            "data": self.data.mark,
            "size": self.config.size,
            "steps": self.config.steps,
            "seed": self.config.seed,
        }
        file = self.config.out / "results.json"
        fresh = {
            "format": FORMAT, "settings": settings, "environment": environment(), "kind": self.data.kind,
            "source": self.data.source, "rate": self.data.rate, "shape": list(self.shape), "train": len(self.data.train),
            "test": len(self.data.test), "names": list(self.data.names), "skipped": self.data.skipped,
            "labels": self.data.labels is not None, "rows": {},
        }  # fmt: skip
        self.config.out.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            return fresh
        try:
            old = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as problem:
            raise ValueError(f"{file} is no results file: {problem}") from problem
        if old.get("format") != FORMAT or old.get("settings") != settings:
            changed = [k for k in settings if old.get("settings", {}).get(k) != settings[k]] or ["format"]
            raise ValueError(
                f"{file} holds a run with other settings ({', '.join(changed)}); choose another --out, or delete it"
            )
        return old

    @property
    def judge(self) -> Judge:
        """Made when first asked for: a run that is complete needs none."""
        if self._judge is None:
            name, of = features(self.data.kind, self.data.rate)
            originals = of(self.data.test)
            self.results |= {"features": name, "noise_floor": noise_floor(originals)}
            self._judge = Judge(self.data, of, originals, self.config.seed)
            self._picture("originals", self.data.test[:SHOWN])
        return self._judge

    def add(self, key: str, row: dict[str, Any]) -> None:
        """Keep a row, whole or not at all."""
        self.rows[key] = row
        write_json(self.config.out / "results.json", self.results)

    def cells(self) -> list[Arm]:
        """All rows, in the order of the table."""
        out = []
        own = [s for s in self.asked if s.tokenizer]
        for spec in own:
            out.append(Arm(f"{spec.name}@own", spec.name, partial(self._own, spec), False))
        for tokens in self.config.tokens:
            made = self._quantizers(tokens)
            out.append(self._trained(CONTINUOUS, tokens, None))
            out += [self._trained(name, tokens, make) for name, make in made.items()]
            out += [
                cell
                for bits in merged([self._bits(tokens, m()) for m in made.values()])
                for cell in self._classics(bits)
            ]
        unique: dict[str, Arm] = {}
        for cell in out:
            unique.setdefault(cell.key, cell)
        return list(unique.values())

    def _quantizers(self, tokens: int) -> dict[str, Callable[[], Quantizer]]:
        made: dict[str, Callable[[], Quantizer]] = {
            s.name: partial(s.quantizer, tokens, self.shape) for s in self.asked if s.quantizer
        }
        bits = min(round(next(iter(made.values()))().bits), MOST_BASELINE_BITS) if made else MOST_BASELINE_BITS
        made[PUBLISHED] = lambda: quantizer("vq", codes=2**bits, dim=specs.LATENT, kmeans=False, revive=0.0)
        made[REVIVED] = lambda: quantizer("vq", codes=2**bits, dim=specs.LATENT)
        return made

    def _bits(self, tokens: int, made: Quantizer) -> int:
        count = tokens if made.aligned else int(made.count)  # type: ignore[arg-type]
        return round(count * made.bits)

    def _trained(self, name: str, tokens: int, make: Callable[[], Quantizer] | None) -> Arm:
        return Arm(f"{name}@{tokens}", name, lambda: self._fit(name, tokens, make), True)

    def _fit(self, name: str, tokens: int, make: Callable[[], Quantizer] | None) -> dict[str, Any]:
        judge, steps = self.judge, self.config.steps
        same = self._same(name, tokens, make)
        if same is not None:
            return same | {"role": "baseline"}
        torch.manual_seed(self.config.seed)
        made = Autoencoder(self.shape, tokens, None if make is None else make(), self.data.rate)
        notes = made.fit(self.data.train, steps, self.config.seed, lambda step: self.progress(0.6 * step / steps))
        row, shown = judge.tokenizer(made, name)
        self._picture(f"{name}@{tokens}", shown)
        if self.config.save is not None and make is not None:
            made.save(
                self.config.save
                / f"{name}@{tokens}".replace(":", "-").replace(",", "-").replace("/", "-").replace(" ", "")
            )
        mean = self.data.train.mean(0, keepdim=True).expand_as(self.data.test)
        blank = float((self.data.test - mean).square().flatten(1).mean(1).log10().mul(-10).mean())
        collapsed = make is not None and (row.get("distinct", 99) < 3 or row["psnr"] <= blank)
        return row | {
            "asked_tokens": tokens, "own_rate": row["tokens"] not in (None, tokens), "notes": notes, "collapsed": collapsed,
            "role": "ceiling" if make is None else "baseline" if name in (PUBLISHED, REVIVED) else "tokenizer",
        }  # fmt: skip

    def _same(self, name: str, tokens: int, make: Callable[[], Quantizer] | None) -> dict[str, Any] | None:
        """The row of a tokenizer asked for that a baseline is the same as."""
        if make is None or name not in (PUBLISHED, REVIVED):
            return None
        config = make().config
        for spec in self.asked:
            row = self.rows.get(f"{spec.name}@{tokens}")
            if row and spec.quantizer and spec.quantizer(tokens, self.shape).config == config:
                folder = self.config.out / "pictures"
                shutil.copyfile(
                    folder / f"{file_name(f'{spec.name}@{tokens}')}.png",
                    folder / f"{file_name(f'{name}@{tokens}')}.png",
                )
                return {k: v for k, v in row.items() if k != "name"}
        return None

    def _own(self, spec: specs.Spec) -> dict[str, Any]:
        assert spec.tokenizer is not None
        made = spec.tokenizer()
        fit = getattr(made, "fit", None)
        if callable(fit) and not isinstance(made, Autoencoder):
            fit(self.data.train, self.config.steps, self.config.seed, lambda step: None)
        row, shown = self.judge.tokenizer(made, spec.name)
        self._picture(f"{spec.name}@own", shown)
        if row.get("bits"):
            for cell in self._classics(round(row["bits"])):
                if cell.key not in self.rows:
                    self.add(cell.key, {"name": cell.name, **cell.work()})
        return row | {"own_rate": True, "role": "tokenizer", "notes": [], "collapsed": False}

    def _classics(self, bits: int) -> list[Arm]:
        names = ("PCA", "bicubic", "JPEG", "WebP") if self.data.kind == "images" else ("PCA", "fewer samples")
        return [Arm(f"{n}@{bits}bits", n, partial(self._classic, n, bits), False) for n in names]

    def _classic(self, name: str, bits: int) -> dict[str, Any]:
        judge, test = self.judge, self.data.test
        row: dict[str, Any] = {"role": "baseline", "rate_bits": bits, "tokens": None}
        if name in ("JPEG", "WebP"):
            files = [classic.image_file(image, name.upper(), bits / 8) for image in test]
            back = torch.stack([image for image, _ in files])
            row |= {
                "bits": 8 * sum(size for _, size in files) / len(files),
                "fits": [8 * size <= bits for _, size in files],
            }
        else:
            made = classic.pca(self.data.train, bits) if name == "PCA" else classic.fewer(self.data.train, bits)
            back = made.reconstruct(test)
            row |= {"bits": made.spent(self.shape), "fits": [True] * len(test)}
        back = judge.bounded(back)
        self._picture(f"{name}@{bits}bits", back[:SHOWN])
        return row | judge.distortion(back, torch.ones(len(test), dtype=torch.bool))

    def _picture(self, key: str, shown: Tensor) -> None:
        """Images side by side as a PNG; of speech, waveforms as they are plotted later."""
        from tokensieve.bench.codec.pictures import strip

        folder = self.config.out / "pictures"
        folder.mkdir(exist_ok=True)
        write(folder / f"{file_name(key)}.png", lambda part: strip(shown, self.data.kind).save(part, "PNG"))


def merged(rates: Sequence[int]) -> list[int]:
    """Rates in bits, the largest first, without those that a larger one is within a hundredth of."""
    out: list[int] = []
    for bits in sorted(rates, reverse=True):
        if not out or bits < out[-1] * (1 - NEAR):
            out.append(bits)
    return out


def file_name(key: str) -> str:
    """A row's key as a file's name."""
    return "".join(c if c.isalnum() or c in "-@." else "_" for c in key)
