"""The choice: which tokens of a picture stay, in vLLM's worker. Nothing is raised here: an error would end the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.parts import select

LOGGER = logging.getLogger("vllm.tokensieve")
WARNED: set[str] = set()


def thinned(
    stage: Stage,
    rows: Tensor,
    width: int,
    runs: Sequence[tuple[int, int]],
    told: Callable[[], Sequence[Mapping[str, Any]]],
) -> tuple[Tensor, Tensor]:
    """What is left of a picture.

    Args:
        rows: ``(N, D)``, what vLLM's encoder made of it; the first ``width`` columns are the features.
        runs: for each run how many tokens there are, and how many stay.
        told: the signals of each run; asked for once.

    Returns:
        ``(K, D)``, and the place of each in its run, ``(K,)``.
    """
    able: Stage | None = stage
    try:
        signals = told()
    except Exception as error:
        warn(stage, error)
        able, signals = None, [{} for _ in runs]
    kept, places, start = [], [], 0
    for (n, k), given in zip(runs, signals, strict=True):
        part = rows[start : start + n]
        step = _step(able, part[:, :width], k, given)
        kept.append(step.apply(part[None])[0])
        places.append(step.kept[0])
        start += n
    return torch.cat(kept), torch.cat(places)


def _step(stage: Stage | None, x: Tensor, k: int, given: Mapping[str, Any]) -> Reduction:
    """What a stage keeps of a run ``(n, D)``, or evenly spaced tokens where it is None or fails."""
    n = len(x)
    if k == n:
        return Reduction.identity(1, n, x.device)
    if stage is not None:
        try:
            here = {name: _on(value, x.device) for name, value in given.items()}
            step = stage.method(Signals.of(x[None], **here), torch.tensor([k], device=x.device))
            if step.m == k and bool(step.mask.all()):
                return step
            raise ValueError(f"it kept {int(step.mask.sum())} tokens of {n} where {k} were to stay")
        except Exception as error:
            warn(stage, error)
    valid = torch.ones(1, n, dtype=torch.bool, device=x.device)
    return Reduction.keep(select.evenly(torch.tensor([k], device=x.device), valid))


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {at: x.to(device) for at, x in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def warn(stage: Stage, error: Exception) -> None:
    """Say what a method failed of."""
    said(f"{stage.method.name} failed ({error}); evenly spaced tokens of such pictures stay")


def said(what: str) -> None:
    """Say something once."""
    if what not in WARNED:
        WARNED.add(what)
        LOGGER.warning(what)
