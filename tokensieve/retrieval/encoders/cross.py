"""Cross-encoders: a model that reads a query and a passage together, and says how well the one answers the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from tokensieve.retrieval.encoders.loading import FILES

BATCH, LONGEST = 16, 512
"""Pairs, and tokens of a pair, that are read at once."""


class Scorer(Protocol):
    """What scores passages for a query; higher is better."""

    def scores(self, query: str, passages: Sequence[str]) -> list[float]:
        """One number for each passage."""
        ...


class CrossEncoder:
    """A transformers model with one output for a pair of texts, such as those of sentence-transformers.

    Args:
        name: for people.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str = "") -> None:
        outputs = model.config.num_labels
        if outputs != 1:
            raise ValueError(
                f"{name or type(model).__name__} has {outputs} outputs; a cross-encoder that ranks has one (num_labels=1)"
            )
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name or type(model).__name__
        limit = getattr(model.config, "max_position_embeddings", LONGEST)
        self.longest = min(tokenizer.model_max_length, limit, LONGEST)

    @torch.inference_mode()
    def scores(self, query: str, passages: Sequence[str]) -> list[float]:
        """Logits; the end of what is too long is not read, of the passage first."""
        device = next(self.model.parameters()).device
        order = sorted(range(len(passages)), key=lambda i: len(passages[i]))
        out = [0.0] * len(passages)
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            given = self.tokenizer(
                [query] * len(some), [passages[i] for i in some], padding=True, truncation=True,
                max_length=self.longest, return_tensors="pt",
            ).to(device)  # fmt: skip
            for i, score in zip(some, self.model(**given).logits[:, 0].float().tolist(), strict=True):
                out[i] = score
        return out


def load_cross_encoder(source: str | Path, device: str = "cpu") -> CrossEncoder:
    """A cross-encoder from a folder, or by its name on the Hugging Face hub, whose files are fetched.

    Raises:
        ValueError: there is none, it has several outputs, its weights are no safetensors, or it needs code of its own.
    """
    import transformers

    folder = Path(source)
    if not folder.is_dir():
        if folder.is_absolute() or str(source).startswith(".") or str(source).count("/") != 1:
            raise ValueError(f"{source} is no folder and no name on the Hugging Face hub (owner/name)")
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(source), allow_patterns=list(FILES)))
    try:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as problem:
        why = str(problem).split("\n", 1)[0]
        raise ValueError(
            f"{source} holds no cross-encoder that can be read (safetensors, no code of its own): {why}"
        ) from problem
    return CrossEncoder(model.to(device), tokenizer, Path(str(source)).name)
