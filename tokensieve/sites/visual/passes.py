"""A pass: what is known of one forward pass of a vision-language model, from its first hook to its last."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from tokensieve.sites.model.taps import Call
from tokensieve.sites.visual.deepstack import Deepstack
from tokensieve.sites.visual.pictures import Pictures
from tokensieve.sites.visual.token_stream import Stream


@dataclass
class Pass:
    """One forward pass. Every pass has one of its own, and none reads another's.

    Attributes:
        around: whether the language model is called within the model's own forward pass.
        kinds: for "image" and "video", ``(B, L)`` bool, where its placeholders stand; empty in a pass without any.
        padding: ``(B, L)``, the mask of the prompt; None where there is none.
        pictures: for each kind the pictures that stand there, as far as they are known by the features that enter.
        ids: the position ids that the language model was given; None where its layers are told them.
        stream: the tokens that are there; None in a pass without placeholders.
        deep: features added to visual tokens behind the first layers.
        calls: by layer, the attention call of the layer before it, where that is read.
    """

    around: bool
    kinds: dict[str, Tensor] = field(default_factory=dict)
    padding: Tensor | None = None
    pictures: dict[str, Pictures] = field(default_factory=dict)
    ids: Tensor | None = None
    stream: Stream | None = None
    deep: Deepstack = field(default_factory=lambda: Deepstack({}))
    calls: dict[int, Call] = field(default_factory=dict)
