"""Speech: a Whisper encoder runs on what was said, a margin, and a few frames of the silence behind, not on thirty seconds.

The decoder has learnt that a window ends in silence: where it sees none, it says the same again and again. A few silent frames
that stand where they would in the whole window, spread evenly, tell it as much as all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.sites.model import calls, guards, towers
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.structure import pretrained

MARGIN = 0.5
"""Seconds of silence behind the last sound that stay by default."""
REST = 16
"""Frames of the silence behind the margin that stay by default; docs/how-to/encoder-speed.md has the word errors of both."""
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
    """A Whisper whose encoder is given the sound, ``margin`` seconds behind it, and ``rest`` frames of the silence from there to
    the end of the window: a context manager, or :meth:`attach` and :meth:`detach`; it nests with sieves of the same model.

    A batch is cut to the longest of its clips; sound up to the end is never cut, so that the windows of long audio but the last
    run whole. Decoder, `generate` and pipelines stay what they are. Each frame has the position that it has in the whole window.

    Args:
        margin: seconds; rest: frames of the encoder, 20 ms each, spread evenly.

    Attributes:
        frames: of the encoder, in the last pass and of a whole window; None in front of the first.

    Raises:
        ValueError: it is no Whisper, or a margin or rest below 0.
    """

    def __init__(self, model: Any, margin: float = MARGIN, rest: int = REST):
        if not margin >= 0:
            raise ValueError(f"margin={margin!r}; it must be seconds, 0 or more")
        if not isinstance(rest, int) or rest < 0:
            raise ValueError(f"rest={rest!r}; it must be a number of frames, 0 or more")
        self.model, self.margin, self.rest = pretrained(model), float(margin), rest
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
            if kept + self.rest >= whole:
                self.frames = (whole, whole)
                return forward(input_features, *args, **kwargs)
            behind = torch.linspace(kept, whole - 1, self.rest, device=input_features.device).round().long()
            place = torch.cat([torch.arange(kept, device=behind.device), behind])
            self.frames = (len(place), whole)
            silent = input_features[..., (whole - self.rest) * stride :]
            with _Shorter(encoder, place):
                return forward(torch.cat([input_features[..., : kept * stride], silent], -1), *args, **kwargs)

        return run


class _Shorter:
    """While it is entered, an encoder demands fewer frames, which stand at ``place``, ``(m,)`` long."""

    def __init__(self, encoder: Any, place: Tensor):
        self.encoder, self.place = encoder, place

    def __enter__(self) -> None:
        config, table = self.encoder.config, self.encoder.embed_positions
        if table.num_embeddings != config.max_source_positions:
            raise guards.refusal("threads")
        self.whole = config.max_source_positions
        config.max_source_positions = table.num_embeddings = len(self.place)
        self.undo = calls.around(table, "forward", lambda plain: lambda at: plain(self.place[at]))

    def __exit__(self, *_: object) -> None:
        self.undo()
        self.encoder.config.max_source_positions = self.encoder.embed_positions.num_embeddings = self.whole


def speech(model: nn.Module, **options: Any) -> SpeechCut:
    """What ``tokensieve.sieve(model, "speech", margin=..., rest=...)`` makes."""
    unknown = sorted(set(options) - {"margin", "rest"})
    if unknown:
        raise ValueError(
            f"'speech' has no option {unknown[0]!r}; it takes margin, seconds behind the last sound, and rest, frames of the "
            "silence behind them"
        )
    return SpeechCut(model, **options)
