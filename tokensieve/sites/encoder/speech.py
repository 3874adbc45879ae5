"""Speech: a Whisper encoder runs on what was said and a margin, not on thirty seconds whatever was said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.sites.model import calls, guards, towers
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.structure import pretrained

MARGIN = 1.0
"""Seconds of silence behind the last sound that stay by default."""
QUIET = 0.25
"""How far above the quietest frame the loudest band of a frame lies that is sound, as a share of the span to the loudest."""
HOP = 0.01
"""Seconds between two frames of a log-mel spectrogram (arXiv 2212.04356, 2.2)."""
NEST = "_tokensieve_speech"


def spoken(features: Tensor) -> Tensor:
    """Frames up to the last that holds sound, ``(B,)`` long, from log-mel features ``(B, bands, frames)``.

    What pads a clip is silence: its frames lie at the clip's own floor. A clip without any sound has none.
    """
    loud = features.float().amax(1)
    floor, top = loud.amin(1, keepdim=True), loud.amax(1, keepdim=True)
    sound = (loud - floor) > QUIET * (top - floor).clamp(min=1e-6)
    sound &= (top - floor) > 0.1  # of silence alone, noise is no sound
    at = torch.arange(1, features.shape[2] + 1, device=features.device)
    return torch.where(sound, at, 0).amax(1)


class SpeechCut:
    """A Whisper whose encoder is given the sound and ``margin`` seconds behind it: a context manager, or :meth:`attach` and
    :meth:`detach`; it nests with sieves of the same model.

    A batch is cut to the longest of its clips; sound up to the end is never cut, so that the windows of long audio but the last
    run whole. Decoder, `generate` and pipelines stay what they are. Positions are those of the frames, which begin as they did.

    Attributes:
        frames: of the encoder's own, 20 ms each, in the last pass and of a whole window; None in front of the first.

    Raises:
        ValueError: it is no Whisper, or a margin below 0.
    """

    def __init__(self, model: Any, margin: float = MARGIN):
        if not margin >= 0:
            raise ValueError(f"margin={margin!r}; it must be seconds, 0 or more")
        self.model, self.margin = pretrained(model), float(margin)
        root = towers.towers(self.model).get("encoder", self.model)
        found = [m for m in root.modules() if all(hasattr(m, part) for part in ("conv1", "conv2", "embed_positions"))]
        if not found or not hasattr(found[0].config, "max_source_positions"):
            raise ValueError(
                f"{type(self.model).__name__} is no Whisper: 'speech' cuts the padding that its encoder demands"
            )
        self.encoder: Any = found[0]
        self.frames: tuple[int, int] | None = None
        self._undo: list[Detach] = []

    def attach(self) -> SpeechCut:
        """Put the hooks on.

        Raises:
            RuntimeError: it is attached already, or another is.
        """
        if NEST in self.encoder.__dict__:
            raise RuntimeError("this model's speech is cut already; detach() that one first")
        self.encoder.__dict__[NEST] = self
        self._undo = [calls.around(self.encoder, "forward", self._around)]
        return self

    def detach(self) -> None:
        """Take them off; the model is what it was."""
        while self._undo:
            self._undo.pop()()
        self.encoder.__dict__.pop(NEST, None)

    def __enter__(self) -> SpeechCut:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(input_features: Tensor, *args: Any, **kwargs: Any) -> Any:
            encoder, config = self.encoder, self.encoder.config
            stride = encoder.conv1.stride[0] * encoder.conv2.stride[0]
            whole = config.max_source_positions
            if input_features.shape[-1] != whole * stride:  # it will be refused, in its own words
                return forward(input_features, *args, **kwargs)
            last = int(spoken(input_features).max()) + round(self.margin / HOP)
            kept = min(max(-(-last // stride), 1), whole)
            self.frames = (kept, whole)
            if kept == whole:
                return forward(input_features, *args, **kwargs)
            with _Shorter(encoder, kept):
                return forward(input_features[..., : kept * stride], *args, **kwargs)

        return run


class _Shorter:
    """While it is entered, an encoder demands, and has positions for, fewer frames."""

    def __init__(self, encoder: Any, frames: int):
        self.encoder, self.frames = encoder, frames

    def __enter__(self) -> None:
        config, table = self.encoder.config, self.encoder.embed_positions
        if table.num_embeddings != config.max_source_positions:
            raise guards.refusal("threads")
        self.whole = config.max_source_positions
        config.max_source_positions = table.num_embeddings = self.frames

    def __exit__(self, *_: object) -> None:
        self.encoder.config.max_source_positions = self.encoder.embed_positions.num_embeddings = self.whole


def speech(model: nn.Module, **options: Any) -> SpeechCut:
    """What ``tokensieve.sieve(model, "speech", margin=...)`` makes."""
    unknown = sorted(set(options) - {"margin"})
    if unknown:
        raise ValueError(f"'speech' has no option {unknown[0]!r}; it takes margin, seconds behind the last sound")
    return SpeechCut(model, **options)
