"""Pinned: the library's own methods keep what they kept when they were last looked at; no outside method is.

What a paper's recipe keeps is shown by its own tests; this notices when a change elsewhere moves it. `make pins` pins anew,
after a change that is meant: the difference of the file names the methods it moved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensieve.core import method_registry
from tokensieve.core.focus import Focus
from tokensieve.core.method import FocusMethod, Method
from tokensieve.core.signal_table import signal
from tokensieve.core.signals import Signals
from tokensieve.testing import draw
from tokensieve.testing.trial import B, H, N, Trial, W, expect, reads, reduces

FILE = Path(__file__).with_name("pins.json")
KEEPS = (4, 9, 18)
SEEDS = (20, 21)


def check_pinned(trial: Trial) -> None:
    """A registered method of the library keeps the same tokens, and merges them the same way, as when it was pinned."""
    pins = json.loads(FILE.read_text(encoding="utf-8")).get(trial.cls.name, {})
    for situation, was in (pins if _own(trial.cls) else {}).items():
        now = dict(_situations(trial.cls))[situation]()
        expect(
            now == was,
            f"to keep what it kept ({situation}); after a change that is meant, pin anew: make pins",
        )


def _own(cls: type[Method]) -> bool:
    return cls.__module__.startswith("tokensieve.methods.")


def _situations(cls: type[Method]) -> Iterator[tuple[str, Any]]:
    """By name, what gives the digest of what a method keeps: its options, what it is given beside its needs, its stand-ins."""
    small = dict(cls.small)
    plans = {"defaults": {}, "small": small}
    for f in fields(cls):
        span = f.metadata.get("range")
        for choice in getattr(span, "choices", ()) if isinstance(f.default, str) else ():
            plans[f"{f.name}={choice}"] = {**small, f.name: choice}
        if isinstance(f.default, bool):
            plans[f"{f.name}={not f.default}"] = {**small, f.name: not f.default}
    for name, options in plans.items():
        yield name, lambda options=options: _digest(Trial(cls, options), cls(**options).needs)
    for extra in draw.EXTRAS:
        if reads(cls, tuple(small.items()), extra):
            yield extra, lambda extra=extra: _digest(Trial(cls, small, (extra,)), cls(**small).needs)
    needs = tuple(cls(**small).needs)
    for i, need in enumerate(needs):
        for other in need.instead:
            rest = [n for j, n in enumerate(needs) if j != i and n.name != need.name]
            asks = [replace(need, name=other, instead=()), *rest]
            yield f"{other} for {need.name}", lambda asks=asks: _digest(Trial(cls, small), asks)


def _digest(trial: Trial, needs: Any) -> str:
    found = blake2b(digest_size=6)
    for seed in SEEDS:
        x, given = draw.features(B, N, seed=seed), draw.signals(draw.Asks(needs), B, N, seed=seed + 1)
        for extra in trial.extras:
            given.update(draw.extras(extra, B, N))
        if not trial.extras:
            given["text_mask"] = (
                (torch.arange(draw.TEXT) < torch.tensor([[draw.TEXT], [4], [6]])) if _texts(given) else None
            )
        for keep in KEEPS:
            if reduces(trial.cls):
                r = trial.run(x, keep, given)
                for part in (r.kept, r.mask.long(), r.owner):
                    found.update(part.numpy().tobytes())
            if isinstance(trial.made, FocusMethod):
                for part in _looks(trial.made.focus(Signals.of(x, grid=(H, W), **given), keep)):
                    found.update(part.numpy().tobytes())
    return found.hexdigest()


def _texts(given: dict[str, Any]) -> bool:
    return any(signal(name).text_axis is not None for name in given) and "text_text" not in given


def _looks(focus: Focus) -> list[Tensor]:
    return [v for v in (focus.text, focus.visual, focus.neurons) if v is not None]


def write() -> None:
    """Write the file anew, for all registered methods of the library."""
    pins = {
        name: {what: digest() for what, digest in _situations(method_registry.method_class(name))}
        for name in method_registry.list_methods()
        if _own(method_registry.method_class(name))
    }
    FILE.write_text(json.dumps(pins, indent=1) + "\n", encoding="utf-8")
