"""Coming: what a layer will call its attention kernel with, before it has run."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from tokensieve.sites.model import taps
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.calls import Detach


class _Reached(Exception):
    def __init__(self, call: taps.Call):
        super().__init__()
        self.call = call


class Coming:
    """A layer that can be run as far as its attention kernel: its norm, projections and rotation, and nothing behind them."""

    def __init__(self, language: Stack, index: int):
        attention = language.attentions[index]
        assert attention is not None
        self.layer, self.attention = language.layers[index], attention
        self._asked = False

    def attach(self) -> Detach:
        return taps.attach(self.attention, ahead=self._stop)

    def _stop(self, call: taps.Call) -> None:
        if self._asked:
            raise _Reached(call)

    def call(self, hidden: Tensor, kwargs: dict[str, Any]) -> taps.Call:
        """The call for these states, without the hooks on the layer. A cache among its arguments has to be :func:`copied`.

        Raises:
            ValueError: the layer computes attention by itself.
        """
        self._asked = True
        try:
            self.layer.forward(hidden, **kwargs)
        except _Reached as reached:
            return reached.call
        finally:
            self._asked = False
        raise ValueError(
            f"{type(self.attention).__name__} computes attention by itself and not through transformers' attention interface; "
            "its queries and keys cannot be read"
        )


def copied(cache: Any, index: int) -> Any:
    """A cache that shares everything with another but layer ``index``, which fills up apart from the other's."""
    out = copy.copy(cache)
    out.layers = list(cache.layers)
    if len(out.layers) > index:
        out.layers[index] = copy.copy(out.layers[index])
    return out
