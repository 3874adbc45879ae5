"""Reduce: a method on plain arrays, outside any model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokensieve.core import budget
from tokensieve.core.method import Method
from tokensieve.core.method_registry import get_method
from tokensieve.core.reduction import Reduction
from tokensieve.core.signal_table import SIGNALS
from tokensieve.core.signals import Signals


def reduce(x: Any, method: str | Method, keep: budget.Budget, *, seed: int = 0, **signals: Any) -> Reduction:
    """Reduce an array of tokens, outside any model.

    Args:
        x: ``(B, N, D)`` or ``(N, D)``, a tensor or anything NumPy reads.
        method: a registered name (``tokensieve.list_methods()`` lists them) or a :class:`Method`.
        keep: an int (tokens per row), a float in (0, 1] (share of the row's valid tokens), or a :class:`Keep`.
        seed: for methods that draw.
        signals: what the method needs, by keyword: ``cls_attention``, ``received_attention``, ``text``, ``keys``, ``values``,
            ``grid``, ``mask``, ... (`tokensieve signals` lists them). Arrays, or tensors on any device.

    Returns:
        The :class:`Reduction`; ``.apply(x)`` gives the reduced tokens.

    Raises:
        ValueError: a budget outside its range, NaN or infinite input, shapes that do not fit; `MissingSignal`, a ValueError,
            names a signal that the method needs and how to pass it.

    Example:
        >>> import torch, tokensieve as ts
        >>> x = torch.randn(2, 576, 64)
        >>> ts.reduce(x, "divprune", keep=64).apply(x).shape
        torch.Size([2, 64, 64])
    """
    made = get_method(method) if isinstance(method, str) else method
    x = _tensor(x)
    one = x.dim() == 2
    x = x[None] if one else x
    given: dict[str, Any] = {k: _beside(v, x, one) for k, v in signals.items() if v is not None}
    unknown = sorted(name for name in given if name not in SIGNALS or name == "features")
    if unknown:
        raise ValueError(f"unknown signals {unknown}; known are {sorted(set(SIGNALS) - {'features'})}")
    if "mask" in given:
        given["mask"] = given["mask"].bool()
    return made(Signals.of(x, seed=seed, **given), keep)


def _beside(v: Any, x: Tensor, one: bool) -> Any:
    """A signal on the device of ``x`` and in its precision, at least single; with a batch axis where ``x`` is one row."""
    if isinstance(v, Mapping):
        return {k: _beside(a, x, one) for k, a in v.items()}
    if not isinstance(v, (Tensor, np.ndarray, list)):
        return v
    out = _tensor(v).to(x.device)
    out = out.to(torch.promote_types(x.dtype, torch.float32)) if out.is_floating_point() else out
    return out[None] if one else out


def _tensor(v: Any) -> Tensor:
    return v if isinstance(v, Tensor) else torch.as_tensor(np.asarray(v))
