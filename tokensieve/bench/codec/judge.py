"""Judge: one tokenizer on the held-out signals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tokensieve.bench.codec import coded
from tokensieve.bench.codec.distortion import kernel_distance, psnr, ssim
from tokensieve.bench.codec.signals import SignalSet
from tokensieve.bench.paired import interval
from tokensieve.codec import Codes, Tokenizer
from tokensieve.codec.packing import check_indices

BATCH = 16
ROUNDS = 3
SHOWN = 6
"""Signals whose reconstructions are shown."""


@dataclass(frozen=True)
class Judge:
    """What all rows have in common.

    Attributes:
        signals: the data.
        features: of :func:`~tokensieve.bench.codec.distortion.features`; originals: those of the test part.
        seed: of what is drawn.
    """

    signals: SignalSet
    features: Callable[[Tensor], Tensor]
    originals: Tensor
    seed: int

    def distortion(self, back: Tensor, kept: Tensor) -> dict[str, Any]:
        """Columns of reconstructions of the test signals that ``kept (n,)`` says."""
        test = self.signals.test[kept]
        each: list[float | None] = [None] * len(kept)
        for i, value in zip(kept.nonzero()[:, 0].tolist(), psnr(test, back, self.signals.peak).tolist(), strict=True):
            each[i] = value
        found = [v for v in each if v is not None]
        near, low, high = kernel_distance(self.originals[kept], self.features(back), self.seed)
        return {
            "psnr": sum(found) / len(found), "psnr_each": each, "psnr_interval": interval(found, self.seed),
            "ssim": float(ssim(test, back).mean()) if self.signals.kind == "images" else None,
            "feature": near, "feature_interval": (low, high),
        }  # fmt: skip

    def bounded(self, back: Tensor) -> Tensor:
        """Values as signals can have them."""
        return back.float().clamp(0.0 if self.signals.kind == "images" else -1.0, 1.0)

    def tokenizer(self, made: Tokenizer, name: str) -> tuple[dict[str, Any], Tensor]:
        """The row of a tokenizer, and what it made of the first test signals.

        Raises:
            ValueError: it takes another sampling rate, decodes to another shape, raises on every signal, or has codes that its
            levels do not allow.
        """
        rate = getattr(made, "rate", None)
        if self.signals.kind == "speech" and rate not in (None, self.signals.rate):
            raise ValueError(f"{name} takes speech of {rate} Hz; this has {self.signals.rate} Hz: resample it first")
        back, indices, kept, skipped = coded_by(made, self.signals.test, self.signals.names, name)
        row = self.distortion(self.bounded(back), kept) | {"skipped": skipped}
        row |= self._times(made, kept)
        shown = self.bounded(back)[:SHOWN]
        levels = tuple(getattr(made, "levels", ()) or ())
        if indices is None or not levels:
            bits = getattr(made, "bits", None)
            return row | {"tokens": None if indices is None else indices.shape[1], "bits": bits}, shown
        _, train, trained, _ = coded_by(made, self.signals.train, None, name)
        assert train is not None
        _check_codes(train, indices, levels, name)
        row |= {"tokens": indices.shape[1], "bits": indices.shape[1] * sum(math.log2(n) for n in levels)}
        row |= coded.described(train, indices, levels, self.seed)
        test = self.signals.test[kept]
        row["survival"] = _survival(made, back, indices, name)
        if hasattr(made, "neighbours"):
            moved = coded.swapped(indices, made.neighbours, self.seed)
            worse = torch.cat([_decoded(made, part, without_components(made, test[:1])) for part in moved.split(BATCH)])
            row["psnr_swapped"] = float(psnr(test, self.bounded(worse), self.signals.peak).mean())
        if self.signals.labels is not None:
            labels = (self.signals.labels[0][trained], self.signals.labels[1][kept])
            row["probe"] = coded.probe(_flat(made, train), _flat(made, indices), labels)
        return row, shown

    def _times(self, made: Tokenizer, kept: Tensor) -> dict[str, float]:
        """Milliseconds a signal, medians of a few rounds on one batch."""
        part = self.signals.test[kept][:BATCH]
        spent: dict[str, list[float]] = {"encode_ms": [], "decode_ms": []}
        for _ in range(ROUNDS):
            start = time.perf_counter()
            held = made.encode(part)
            middle = time.perf_counter()
            made.decode(held)
            spent["encode_ms"].append(middle - start)
            spent["decode_ms"].append(time.perf_counter() - middle)
        return {name: 1000 * median(times) / len(part) for name, times in spent.items()}


def coded_by(
    made: Tokenizer, signals: Tensor, names: tuple[str, ...] | None, who: str
) -> tuple[Tensor, Tensor | None, Tensor, dict[str, str]]:
    """Reconstructions and indices ``(n, N, C)`` of the signals that a tokenizer takes, which these are, and why it raised on
    others.

    Raises:
        ValueError: it decodes to another shape, gives codes of several shapes, or takes none.
    """
    backs: list[Tensor] = []
    codes: list[Tensor | None] = []
    kept: list[bool] = []
    skipped: dict[str, str] = {}

    def one(part: Tensor) -> None:
        held = made.encode(part)
        back = made.decode(held)
        if back.shape != part.shape:
            raise Misshapen(
                f"{who} decodes {tuple(part.shape)} to {tuple(back.shape)}; it must give the shape that it was given"
            )
        if not bool(back.isfinite().all()):
            raise ValueError("what it decodes is not finite")
        indices = indices_of(held)
        if indices is not None and codes and codes[0] is not None:
            _check_even(codes[0], indices, who)
        backs.append(back.detach())
        codes.append(indices)

    for start in range(0, len(signals), BATCH):
        part = signals[start : start + BATCH]
        try:
            one(part)
            kept += [True] * len(part)
        except Misshapen:
            raise
        except Exception:
            # One of them may be at fault: whichever it is shall be named, and the others count.
            for i in range(len(part)):
                try:
                    one(part[i : i + 1])
                    kept.append(True)
                except Misshapen:
                    raise
                except Exception as problem:
                    kept.append(False)
                    at = str(start + i) if names is None else names[start + i]
                    skipped[at] = f"{type(problem).__name__}: {problem}"
    if not backs:
        raise ValueError(f"{who} raises on every signal; {next(iter(skipped.items()), ('', ''))}")
    whole = [c for c in codes if c is not None]
    indices = torch.cat(whole) if len(whole) == len(codes) else None
    return torch.cat(backs), indices, torch.tensor(kept), skipped


class Misshapen(ValueError):
    """A tokenizer decodes to another shape, or its codes are of several."""


def _survival(made: Tokenizer, back: Tensor, indices: Tensor, who: str) -> float | None:
    """Share of codes that are the same when what they decode to is encoded again; None where it is not taken."""
    try:
        _, again, there, _ = coded_by(made, back, None, who)
    except Misshapen:
        raise
    except ValueError:
        return None
    assert again is not None
    return float((again == indices[there]).all(-1).float().mean())


def _check_codes(train: Tensor, test: Tensor, levels: tuple[int, ...], who: str) -> None:
    _check_even(train, test, who)
    for indices in (train, test):
        try:
            check_indices(indices, levels)
        except ValueError as problem:
            raise ValueError(f"{who}: {problem}") from problem
        if bool((indices < 0).any()):
            raise ValueError(f"{who} gives -1, no token; what is compared has as many tokens for each signal")


def _check_even(one: Tensor, other: Tensor, who: str) -> None:
    if one.shape[1:] != other.shape[1:]:
        raise Misshapen(
            f"{who} gives codes {tuple(one.shape[1:])} for one signal and {tuple(other.shape[1:])} for another; "
            "what is compared has as many for each"
        )


def indices_of(held: Any) -> Tensor | None:
    """Indices ``(B, N, C)`` of what a tokenizer encoded; None where it is no codes."""
    if isinstance(held, Codes):
        return held.indices
    if isinstance(held, Tensor) and held.dtype == torch.int64 and held.dim() in (2, 3):
        return held if held.dim() == 3 else held[..., None]
    return None


def without_components(made: Tokenizer, signal: Tensor) -> bool:
    """Whether a tokenizer's codes come without a dimension of components."""
    held = made.encode(signal)
    return isinstance(held, Tensor) and held.dim() == 2


def _decoded(made: Tokenizer, indices: Tensor, flat: bool) -> Tensor:
    return made.decode(indices[..., 0] if flat else indices)


@torch.no_grad()
def _flat(made: Any, indices: Tensor) -> Tensor:
    """``(n, values)``: what stands for a signal: the values of its codes, or the share of each code where there are none."""
    held = getattr(made, "quantizer", None)
    if held is not None:
        return torch.cat([held.lookup(part) for part in indices.split(BATCH)]).flatten(1)
    count = max(made.levels)
    return torch.stack([torch.bincount(row.flatten(), minlength=count).float() / row.numel() for row in indices])
