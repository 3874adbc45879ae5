"""Remembered: which pictures features are of, known by the features themselves for as long as they live."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from tokensieve.sites.visual.layout import EncoderPass
from tokensieve.sites.visual.pictures import Pictures


class Remembered:
    """By each tensor of features, its pictures; by the output that held them, those and the features. Keeps neither alive."""

    def __init__(self) -> None:
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, look: EncoderPass, out: Any, features: Any) -> Pictures:
        """The pictures of one call that encodes them; ``out`` is what it returned, ``features`` a tensor or several."""
        every = [(look, i) for i in range(len(look.lengths))]
        if isinstance(features, Tensor):
            self._known[features] = every
        elif len(features) == len(every):
            for one, picture in zip(features, every, strict=True):
                self._known[one] = [picture]
        if not isinstance(out, tuple):
            self._known[out] = (every, features)
        return every

    def find(self, output: Any) -> Pictures | None:
        """The pictures that features are of, by the tensors themselves; None where they are not known."""
        features = features_of(output)
        parts = [features] if isinstance(features, Tensor) else features or []
        if not parts:
            return None
        found = [self._known.get(part) for part in parts]
        if all(found):
            return [picture for part in found for picture in part]
        # `generate` copies features for beams and cuts them into chunks; then they are told apart by what they hold.
        for every, made in [one for one in self._known.values() if isinstance(one, tuple)]:
            alike = isinstance(made, list) and len(made) == len(parts) and all(map(operator.is_, made, parts))
            same = every if alike else _copied(parts, every, made) if len(made) == len(every) else None
            if same is not None:
                return same
        return None


def features_of(output: Any) -> Any:
    """The features of pictures in what encodes them gave."""
    if isinstance(output, Tensor):
        return output
    return output[1] if isinstance(output, tuple) else getattr(output, "pooler_output", None)


def _copied(parts: Sequence[Tensor], every: Pictures, made: Sequence[Tensor]) -> Pictures | None:
    """The pictures whose features, ``(n, D)`` each in ``made``, stand one behind the other in ``parts``, bit for bit; or None."""
    rows = torch.cat([part.flatten(0, -2) for part in parts])
    old = [one.reshape(-1, one.shape[-1]) for one in made]
    out, at = [], 0
    while at < len(rows):
        same = (i for i, one in enumerate(old) if torch.equal(rows[at : at + len(one)], one))
        number = next(same, None)
        if number is None:
            return None
        out.append(every[number])
        at += len(old[number])
    return out
