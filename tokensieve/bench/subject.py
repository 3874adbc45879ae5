"""The model under test, with its processor and its way of asking."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokensieve.bench.data import Sample
from tokensieve.bench.loading import device_of, dtype_of, from_hub
from tokensieve.sites.loading import processor_of
from tokensieve.sites.model.structure import Anatomy, find


@dataclass
class Subject:
    """A vision-language model that can be asked questions in batches."""

    name: str
    model: Any
    processor: Any

    @cached_property
    def anatomy(self) -> Anatomy:
        """Where its encoder and language model are."""
        return find(self.model)

    @classmethod
    def load(cls, name: str, device: str = "cpu", dtype: str = "float32", several: bool = False) -> Subject:
        """``testbed``, or any local or hub model that `AutoModelForImageTextToText` reads; safetensors only.

        ``several`` asks for the testbed's model of several pictures; ``device`` and ``dtype`` may be "auto".

        Raises:
            ValueError: not a vision-language model, or a device or dtype that is not there.
        """
        if several and name != "testbed":
            raise ValueError(f"{name}: clips, pairs and anyres are questions for the model 'testbed' alone; use scenes")
        if name == "testbed":
            from tokensieve import testbed

            load: Any = testbed.load_several if several else testbed.load
            where = device_of(device)
            model, processor = load(device=where, dtype=dtype_of(dtype, where))
        else:
            from transformers import AutoModelForImageTextToText

            try:
                processor = processor_of(name)
            except OSError as error:
                raise ValueError(f"cannot load {name!r}: {str(error).splitlines()[0]}") from error
            model = from_hub([AutoModelForImageTextToText], name, device, dtype)
        subject = cls(name, model, processor)
        if subject.anatomy.language is None:
            raise ValueError(f"{name} is an encoder without a language model; the bench asks vision-language models")
        return subject

    def inputs(self, samples: list[Sample]) -> Any:
        """Model inputs of a batch, padded on the left."""
        self.processor.tokenizer.padding_side = "left"
        several = [s.several for s in samples if s.several is not None]
        if several:
            return self.processor(several).to(self.model.device, self.model.dtype)
        asked = self.processor(
            images=[s.image for s in samples],
            text=[self.prompt(s.question) for s in samples],
            padding=True,
            return_tensors="pt",
        )
        return asked.to(self.model.device, self.model.dtype)

    def visual(self, ids: Tensor) -> Tensor:
        """``(B, L)`` bool: where visual tokens stand in a prompt."""
        marks = self.anatomy.placeholders(ids, None)
        return marks["image"] | marks["video"]

    def prompt(self, question: str) -> str:
        if self.name == "testbed":
            from tokensieve import testbed

            return testbed.prompt(question)
        if getattr(self.processor, "chat_template", None):
            turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
            return self.processor.apply_chat_template([turn], add_generation_prompt=True)
        return f"{self.processor.image_token} {question}"

    @torch.no_grad()
    def ask(self, inputs: Any, new_tokens: int) -> Any:
        """Greedy answers, with logits and cache."""
        return self.model.generate(
            **inputs, max_new_tokens=new_tokens, do_sample=False, output_logits=True, return_dict_in_generate=True
        )

    def texts(self, inputs: Any, out: Any) -> list[str]:
        """The answers, in lower case with single blanks."""
        said = self.processor.batch_decode(out.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [" ".join(t.lower().split()) for t in said]


@dataclass(frozen=True)
class Batch:
    """Prepared inputs of some samples."""

    samples: list[Sample]
    inputs: Any


def prepare(subject: Subject, samples: list[Sample], size: int) -> list[Batch]:
    groups = [samples[i : i + size] for i in range(0, len(samples), size)]
    return [Batch(g, subject.inputs(g)) for g in groups]
