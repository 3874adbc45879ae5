"""Signals: what a method may read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokensieve.core.checks import TOKEN_AXIS, each, expect, finite, widened
from tokensieve.core.needs import HOW, Need
from tokensieve.core.noise import noise

LayerTensor = Tensor | Mapping[int, Tensor]
"""One tensor, or one per encoder layer: ``{-2: a, -1: b}``."""


class MissingSignal(ValueError):
    """A method needs a signal that was not given."""


@dataclass(frozen=True, eq=False)
class Signals:
    """What is known about the N tokens of each of B rows; everything but ``features`` is optional.

    Half-precision tensors are widened to float32 for selection. Unless said otherwise, tensors are batch first.

    Attributes:
        features: ``(B, N, D)``.
        mask: ``(B, N)`` bool, False at padding.
        grid: ``(rows, columns)`` with rows x columns = N where the tokens lie on one (row-major).
        cls_attention, received_attention, cls_similarity: ``(B, heads, N)`` or ``(B, N)``, or a mapping from layer to such.
        pagerank: ``(B, heads, N)`` or ``(B, N)``, what attention among all tokens gathers at each in a few steps.
        text_attention: ``(B, heads, T, N)`` or ``(B, T, N)``, rows of text tokens over visual tokens.
        text_text: ``(B, Q, T)``, rows of Q text tokens (the last of the T) over text tokens, averaged over heads.
        last_attention: ``(B, heads, N)`` or ``(B, N)``, the row of the last prompt token.
        text: ``(B, T, D)``; ``text_mask``: ``(B, T)`` bool, False at padding.
        paired: ``(B, T)`` bool, the text tokens that belong to this row's image.
        keys, values: ``(B, N, D')`` or ``(B, heads, N, d)``, or a mapping from layer to such.
        window_attention: ``(B, heads, W, N)`` or ``(B, W, N)``, rows of the last W tokens over the entries of a cache.
        accumulated_attention: ``(B, heads, N)`` or ``(B, N)``, attention summed over all queries so far.
        expected_logits: ``(B, heads, N)`` or ``(B, N)``, the log of attention, not normalised, to be expected from the next ones.
        probe_attention: ``(B, heads, N)`` or ``(B, N)``, mean attention from those that see each entry of a few queries.
        visual: ``(B, N)``, above 0 at the cache entries of visual tokens.
        visual_share: ``(B, heads, N)`` or ``(B, N)``, how much of each token's own attention went to visual tokens.
        token_ids: ``(B, N)``, the vocabulary's number of each token.
        relevance: ``(B, N)`` or ``(B, T, N)``, similarity to the text (or to each text token) in a space they share.
        entropy: ``(B, N)``, the entropy of each patch's pixel values, in bits.
        ranking: ``(B, N)``, what an earlier stage ranked the tokens by.
        neurons: ``(B, N, F)``, what enters the last projection of a feed-forward network: above 0 where a neuron is active;
            text_neurons: ``(B, T, F)``, the same for the text.
        idf: ``(B, N)``, the inverse document frequency of each token in a collection of texts.
        stop: ``(B, N)``, above 0 at tokens of stop words and punctuation.
        word: ``(B, N)`` long, equal at tokens of the same word of a text, also where it comes again; -1 at tokens of none.
        sizes: ``(B, N)``, how many source tokens each token already stands for.
        crop: ``(B, N)`` long, where an image comes in several: 0 for the thumbnail, 1, 2, ... for the crops, -1 for tokens of
            none (line ends).
        head: ``(B, N)`` long, the key-value head of each entry, where a row holds those of several.
        frame: ``(B, N)`` long, the frame of a video that each token belongs to, in order of time; -1 for tokens of none.
        spot: ``(B, N, 2)`` float, the centre ``(y, x)`` of what a token sees, in the whole picture, in [0, 1].
        seed: for methods that draw.
    """

    features: Tensor
    mask: Tensor | None = None
    grid: tuple[int, int] | None = None
    cls_attention: LayerTensor | None = None
    received_attention: LayerTensor | None = None
    cls_similarity: LayerTensor | None = None
    pagerank: Tensor | None = None
    text_attention: Tensor | None = None
    text_text: Tensor | None = None
    last_attention: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    paired: Tensor | None = None
    keys: LayerTensor | None = None
    values: LayerTensor | None = None
    window_attention: Tensor | None = None
    accumulated_attention: Tensor | None = None
    expected_logits: Tensor | None = None
    probe_attention: Tensor | None = None
    visual: Tensor | None = None
    visual_share: Tensor | None = None
    token_ids: Tensor | None = None
    relevance: Tensor | None = None
    entropy: Tensor | None = None
    ranking: Tensor | None = None
    neurons: Tensor | None = None
    text_neurons: Tensor | None = None
    idf: Tensor | None = None
    stop: Tensor | None = None
    word: Tensor | None = None
    sizes: Tensor | None = None
    crop: Tensor | None = None
    head: Tensor | None = None
    frame: Tensor | None = None
    spot: Tensor | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.features.dim() != 3:
            raise ValueError(f"features must have shape (B, N, D); got {tuple(self.features.shape)}")
        b, n, _ = self.features.shape
        if n == 0 or b == 0:
            raise ValueError(f"features hold no token: shape {tuple(self.features.shape)}")
        if self.mask is not None:
            expect("mask", self.mask, (b, n))
            if not self.mask.any(1).all():
                raise ValueError("mask leaves a row without any token; every row must hold at least one")
        if self.grid is not None and self.grid[0] * self.grid[1] != n:
            raise ValueError(f"grid={self.grid} holds {self.grid[0] * self.grid[1]} tokens; features hold {n}")
        self._check_text()
        for name, axis in TOKEN_AXIS.items():
            for value in each(getattr(self, name)):
                if value.shape[0] != b or value.shape[axis] != n:
                    raise ValueError(
                        f"{name} has shape {tuple(value.shape)}; pass {HOW.get(name, name)}, here B={b}, N={n}"
                    )
        for f in fields(self):
            value = getattr(self, f.name)
            for one in each(value):
                finite(f.name, one, self.mask)
            object.__setattr__(self, f.name, widened(value))

    def _check_text(self) -> None:
        b, _, d = self.features.shape
        if self.text is not None and (self.text.dim() != 3 or self.text.shape[0] != b or self.text.shape[2] != d):
            raise ValueError(f"text has shape {tuple(self.text.shape)}; pass {HOW['text']}, here B={b}, D={d}")
        lengths = {
            name: value.shape[axis]
            for name, axis in (
                ("text", 1),
                ("text_mask", 1),
                ("paired", 1),
                ("text_attention", -2),
                ("text_text", -1),
                ("text_neurons", 1),
            )
            if (value := getattr(self, name)) is not None
        }
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the text signals hold different numbers of tokens: {lengths}")

    @property
    def batch(self) -> int:
        return self.features.shape[0]

    @property
    def n(self) -> int:
        return self.features.shape[1]

    @property
    def device(self) -> torch.device:
        return self.features.device

    @cached_property
    def valid(self) -> Tensor:
        """``(B, N)`` bool: tokens that are not padding."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.features.shape[:2], dtype=torch.bool, device=self.device)

    @cached_property
    def weight(self) -> Tensor:
        """``(B, N)`` float: sizes, or ones."""
        return self.valid.to(self.features.dtype) if self.sizes is None else self.sizes

    @cached_property
    def heads(self) -> Tensor:
        """``(B, N)`` long: :attr:`head`, or one head for all."""
        return torch.zeros_like(self.valid, dtype=torch.long) if self.head is None else self.head

    @cached_property
    def spots(self) -> Tensor | None:
        """``(B, N, 2)``: :attr:`spot`, or the centres of the grid's cells; None where there is neither."""
        if self.spot is not None or self.grid is None:
            return self.spot
        y, x = ((torch.arange(n, device=self.device) + 0.5) / n for n in self.grid)
        return torch.cartesian_prod(y, x).to(self.features.dtype).expand(self.batch, -1, -1)

    def has(self, name: str) -> bool:
        return getattr(self, name) is not None

    def get(self, need: Need, layer: int | None = None) -> tuple[str, Tensor]:
        """The signal a need asks for, or the first stand-in that is present: (its name, its tensor).

        Raises:
            MissingSignal: neither is there; the message says how to pass it.
        """
        for name in (need.name, *need.instead):
            value = getattr(self, name)
            if value is not None:
                return name, _at(name, value, layer)
        ways = " or ".join(HOW.get(n, n) for n in (need.name, *need.instead))
        raise MissingSignal(f"this method needs the signal {need.name!r}; pass {ways}")

    def metric(self, need: Need, layer: int | None = None) -> Tensor:
        """Keys or values as ``(B, N, D')``, heads joined; their stand-in otherwise."""
        _, x = self.get(need, layer)
        return x if x.dim() == 3 else x.transpose(1, 2).flatten(2)

    def noise(self, salt: int = 0) -> Tensor:
        """``(B, N)`` uniform in [0, 1), drawn from the seed and the row's own contents: the same in any batch (see
        :func:`tokensieve.core.noise.noise`)."""
        return noise(self.features, self.valid, self.seed * 7919 + salt)

    def over(self, **changes: Any) -> Signals:
        """A copy with some signals replaced."""
        return replace(self, **changes)

    def row(self, index: int) -> Signals:
        """One row of the batch, as a batch of one."""

        def of(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {layer: of(tensor) for layer, tensor in value.items()}
            return value[index : index + 1] if isinstance(value, Tensor) else value

        made = object.__new__(Signals)  # what the batch was checked for holds for its rows
        made.__dict__.update({f.name: of(getattr(self, f.name)) for f in fields(self)})
        return made


def _at(name: str, value: LayerTensor, layer: int | None) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if layer is None:
        return value[max(value)]
    if layer not in value:
        raise MissingSignal(f"this method reads {name} at layer {layer}; {name} holds layers {sorted(value)}")
    return value[layer]
