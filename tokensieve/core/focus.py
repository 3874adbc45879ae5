"""Focus: what of a language-model layer the visual tokens take part in, apart from which of them are there."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Focus:
    """What a method at ``site="focus"`` leaves of a layer; None, or (), leaves all of it. Rows B are images.

    Attributes:
        text: ``(B, Q, N)`` bool, the visual tokens that each text token sees; Q are the text tokens of this pass.
        visual: ``(B, N, N)`` bool, the visual tokens of the image that each of them sees, in passes that bring them.
        off: the heads that do not work on vision: their visual tokens are seen by none and get nothing.
        neurons: ``(B, F)`` bool, the feed-forward neurons that run in passes that bring no visual tokens.
    """

    text: Tensor | None = None
    visual: Tensor | None = None
    off: tuple[int, ...] = ()
    neurons: Tensor | None = None
