"""Supply: which signal a site gives for each need of a stage, and those that are computed from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tokensieve.core.needs import Need
from tokensieve.core.reduction import Reduction
from tokensieve.core.signal_table import SIGNALS, Signal, signal
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage


def supplied(stage: Stage, available: tuple[str, ...]) -> list[str]:
    """For each need of a stage, the name that its site can supply: the signal itself or its first stand-in.

    Args:
        available: the signals that the site gives of itself.

    Raises:
        ValueError: a need that the site cannot supply.
    """
    out = []
    for need in stage.needs:
        name = next((n for n in (need.name, *need.instead) if n in available or _computed(n, stage.site)), None)
        if name is None:
            gives = [*available, *(n for n in SIGNALS if _computed(n, stage.site))]
            raise ValueError(
                f"{stage.method.name} needs {need.name}, which the {stage.site} site cannot give; it gives {', '.join(gives)} "
                f"{_way(stage, need.name)}"
            )
        out.append(name)
    return out


def _way(stage: Stage, name: str) -> str:
    if stage.in_encoder:
        return f"(or give it yourself: tokensieve.sieve(..., given={{{name!r}: a tensor, or a function}}))"
    return "(methods that read features only, such as 'divprune', run everywhere)"


def completed(signals: Signals, needs: Sequence[Need], site: str, model: nn.Module | None) -> Signals:
    """Signals with those that are registered from outside, and are computed at a site, where a need asks for one.

    Raises:
        ValueError: what computes one gives no tensor, or one that does not fit; it names both.
    """
    for need in needs:
        names = (need.name, *need.instead)
        if any(signals.has(name) for name in names):
            continue
        row = next((row for name in names if (row := _computed(name, site))), None)
        if row is not None:
            signals = _with(completed(signals, row.reads, site, model), row, model)
    return signals


def handed(signals: Signals, needs: Sequence[Need], given: Mapping[str, Any], layer: int, total: Reduction) -> Signals:
    """Signals with those that were given to the sieve, of the tokens that are there.

    Args:
        given: by name, a tensor of all tokens, of each row or of all alike, or a function of the signals and the layer.
        layer: the block in which tokens leave; total: what became of all tokens so far.

    Raises:
        ValueError: what is given is no tensor, or does not fit.
    """
    for name in dict.fromkeys(n for need in needs for n in (need.name, *need.instead) if n in given):
        value = given[name]
        if isinstance(value, Tensor):
            rows = value if value.dim() == len(signal(name).shapes[0]) else value.expand(total.batch, *value.shape)
            value = total.take(rows.to(signals.device), rows.dim() + (signal(name).axis or -1))
        else:
            value = value(signals, layer)
        if not isinstance(value, Tensor):
            raise ValueError(f"given={{{name!r}: ...}} is, or gives, {type(value).__name__}; it must be a tensor")
        signals = signals.over(**{name: value})
    return signals


def _computed(name: str, site: str) -> Signal | None:
    row = signal(name)
    return row if row.compute is not None and site in row.sites else None


def _with(signals: Signals, row: Signal, model: nn.Module | None) -> Signals:
    assert row.compute is not None
    who = f"{row.compute.__module__}.{getattr(row.compute, '__qualname__', type(row.compute).__name__)}"
    value = row.compute(signals, model)
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{who}, which computes the signal {row.name!r}, gives {type(value).__name__}; it must be a tensor"
        )
    try:
        return signals.over(**{row.name: value})
    except ValueError as error:
        raise ValueError(f"{who}, which computes the signal {row.name!r}: {error}") from error
