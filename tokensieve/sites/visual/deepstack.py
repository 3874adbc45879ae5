"""Deepstack: features of the encoder's blocks that a model adds to the states of visual tokens behind its first layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokensieve.sites.model.quirks import DEEPSTACK
from tokensieve.sites.visual.token_stream import Stream


class Deepstack:
    """Taken over from the language model, whose own sum expects every visual token to be there.

    Attributes:
        layers: for each layer the features added to the states in front of it, ``(I, n, D)``, one row per image.
    """

    def __init__(self, layers: dict[int, Tensor]):
        self.layers = layers

    @classmethod
    def take(cls, kwargs: dict[str, Any], stream: Stream, depth: int) -> tuple[Deepstack, dict[str, Any]]:
        """The arguments of a language model without such features, which go through the hooks of its layers instead.

        Raises:
            ValueError: features behind the last of ``depth`` layers, where no hook adds them.
        """
        layers: dict[int, Tensor] = {}
        kwargs = dict(kwargs)
        for names in DEEPSTACK:
            if any(kwargs.get(name) is None for name in names):
                continue
            visual, features = (kwargs[name] for name in names)
            if len(features) >= depth:
                raise ValueError(
                    f"features of the encoder's blocks are added behind {len(features)} of {depth} layers, up to the last"
                )
            kwargs |= dict.fromkeys(names)
            for i, rows in enumerate(features):
                whole = rows.new_zeros(*visual.shape, rows.shape[-1])
                whole[visual] = rows
                layers[i + 1] = stream.pick(whole, stream.images.place.clamp(min=0))
        return cls(layers), kwargs

    def add(self, index: int, hidden: Tensor, stream: Stream) -> Tensor:
        """``hidden``, ``(B, l, D)``, in front of a layer, with the features of the tokens that are there."""
        if index not in self.layers:
            return hidden
        features = stream.reduction.apply(self.layers[index])
        place, mask = stream.slots()
        row = stream.images.row[:, None].expand_as(place)
        hidden = hidden.clone()
        hidden[row[mask], place[mask]] += features[mask].to(hidden)
        return hidden
