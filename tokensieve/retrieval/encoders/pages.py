"""Encode pages as images by ColPali-style models of transformers (ColPali, ColQwen2, ColModernVBert)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from tokensieve.retrieval.encoders.encoded import Encoded, Identity, ends, join
from tokensieve.retrieval.sources.passages import is_text

BATCH = 4


class PageEncoder:
    """One vector per patch and prompt token of a page, and per token of a query, of length 1.

    Args:
        model: a model of transformers whose output has ``embeddings`` (ColPaliForRetrieval and its like).
        processor: its processor, with ``process_images`` and ``process_queries``.
        name: for people.
    """

    def __init__(self, model: nn.Module, processor: Any, name: str = ""):
        self.model, self.processor = model.eval(), processor
        self.name = name or type(model).__name__

    @cached_property
    def identity(self) -> Identity:
        config: Any = self.model.config
        digest = sha256(type(self.processor).__name__.encode())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return Identity(self.name, digest.hexdigest(), int(config.embedding_dim))

    def documents(self, items: Sequence[Any], needs: Collection[str] = ()) -> Encoded:
        """Pages as PIL images, or arrays.

        Raises:
            ValueError: another thing; processors take a text for the address of an image, and fetch it.
        """
        for i, item in enumerate(items):
            if not isinstance(item, (Image, np.ndarray, Tensor)):
                raise ValueError(
                    f"page {i} is a {type(item).__name__}; {self.name} reads images, texts only as queries"
                )
        return self._encode([self.processor.process_images(items[i : i + BATCH]) for i in range(0, len(items), BATCH)])

    def queries(self, texts: Sequence[str]) -> Encoded:
        wrong = [t for t in texts if not is_text(t)]
        if wrong:
            raise ValueError(f"a query is a string of Unicode, not {wrong[0]!r}")
        # One by one: queries are short, and none depends on its neighbours' padding.
        return self._encode([self.processor.process_queries([text]) for text in texts])

    @torch.no_grad()
    def _encode(self, batches: Sequence[Any]) -> Encoded:
        device = next(self.model.parameters()).device
        parts = []
        for batch in batches:
            given = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            embedded = self.model(**given).embeddings.float().cpu()
            valid = batch["attention_mask"].bool().cpu()
            ids = batch["input_ids"].cpu()[valid]
            vectors = normalize(embedded[valid], dim=-1)
            parts.append(Encoded(vectors, ends(valid.sum(1)), torch.full((len(vectors), 2), -1), {"ids": ids}))
        if not parts:
            return Encoded(torch.zeros(0, self.identity.dim), ends(torch.zeros(0)), torch.zeros(0, 2, dtype=torch.long))
        return join(parts)
