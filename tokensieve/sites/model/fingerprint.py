"""Fingerprint: which language model a cache belongs to."""

from __future__ import annotations

import hashlib
import json
import weakref
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class Fingerprint:
    """A name for a language model's shape and weights, made when somebody asks: caches remember it, few are ever compared.

    Offloaded weights and those of a class of their own (quantized, sharded) are not read; the shape then stands for them.
    A copy of a cache shares it, and what is pickled is the name alone.
    """

    def __init__(self, model: nn.Module | None, name: str = ""):
        self._model = None if model is None else weakref.ref(model)
        self._name = name

    def __str__(self) -> str:
        if not self._name:
            model = None if self._model is None else self._model()
            if model is None:
                raise ValueError("the model that filled this cache is gone; save or compare a cache while it is there")
            self._name = f"{_weights(model)}/{_shape(model)}"
        return self._name

    def fits(self, other: Fingerprint) -> bool:
        """Whether they may be of one model: one object, or the same weights, or the same shape where weights cannot be read."""
        if self._model is not None and other._model is not None and self._model() is other._model():
            return True
        (weights, _, shape), (theirs, _, other_shape) = (str(x).partition("/") for x in (self, other))
        return weights == theirs if weights and theirs else shape == other_shape

    def __deepcopy__(self, memo: Any) -> Fingerprint:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Fingerprint, (None, str(self))


def _facts(model: nn.Module) -> Any:
    config: Any = model.config
    shape = {
        k: v
        for k, v in config.to_dict().items()
        if not k.startswith("_") and k not in ("dtype", "transformers_version")
    }
    return hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode())


def _shape(model: nn.Module) -> str:
    return _facts(model).hexdigest()[:16]


def _weights(model: nn.Module) -> str:
    """Of some numbers of some weights; empty where one cannot be read."""
    out, weights = _facts(model), list(model.parameters())
    for weight in weights[:: max(1, len(weights) // 8)]:
        if not _readable(weight):
            return ""
        flat = weight.detach().flatten()
        out.update(flat[:: max(1, len(flat) // 64)].float().cpu().numpy().tobytes())
    return out.hexdigest()[:16]


def _readable(weight: Tensor) -> bool:
    return (
        not weight.is_meta
        and not is_traceable_wrapper_subclass(weight)
        and not is_traceable_wrapper_subclass(weight.data)
    )
