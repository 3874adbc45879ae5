"""Audio tokenizers of transformers: EnCodec, DAC, Mimi, X-Codec and their kin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokensieve.codec.tokenizer import register_adapter


class Audio:
    """An audio tokenizer of transformers for waveforms ``(B, 1, 1, L)`` from -1 to 1.

    Codes come as ``(B, N, C)``, a component for each codebook.

    Args:
        model: anything with ``encode(input_values) -> .audio_codes`` and ``decode(audio_codes) -> .audio_values``.

    Attributes:
        rate: the sampling rate that it takes, Hz.
        levels: of each codebook.
    """

    def __init__(self, model: Any):
        self.model, config = model.eval(), model.config
        self.rate = int(getattr(config, "sampling_rate", 0)) or None
        self._codes = int(config.codebook_size)
        self.levels: tuple[int, ...] = ()
        self._length = 0
        self._scales: Any = None

    @torch.no_grad()
    def encode(self, signals: Tensor) -> Tensor:
        """Indices ``(B, N, C)``."""
        wave = signals.flatten(2)
        self._length = wave.shape[-1]
        held = self.model.encode(wave)
        codes = held.audio_codes
        self._scales = getattr(held, "audio_scales", None)
        codes = codes[0] if codes.dim() == 4 else codes  # EnCodec: chunks come first
        self.levels = (self._codes,) * codes.shape[1]
        return codes.transpose(1, 2).long()

    @torch.no_grad()
    def decode(self, encoded: Tensor) -> Tensor:
        """Waveforms as long as those encoded last: what a tokenizer adds at the end is cut off."""
        codes = encoded.transpose(1, 2)
        chunks = {} if self._scales is None else {"audio_scales": self._scales}
        out = self.model.decode(audio_codes=codes[None] if chunks else codes, **chunks)
        wave = out.audio_values.reshape(len(encoded), 1, 1, -1)
        missing = self._length - wave.shape[-1]
        return torch.nn.functional.pad(wave, (0, max(0, missing)))[..., : self._length]


@register_adapter("transformers")
def load(path: str) -> Audio:
    """An audio tokenizer of transformers from a folder or a hub name."""
    from transformers import AutoModel

    return Audio(AutoModel.from_pretrained(path))
