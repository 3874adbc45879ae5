"""A small encoder for tests of whatever stands on one: each word is a fixed random vector."""

from __future__ import annotations

import re
from hashlib import sha256

import torch
from torch.nn.functional import normalize

from tokensieve.retrieval.encoders.encoded import Encoded, Identity, ends
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.sources.texts import Text

DIM = 16
STOP = {"a", "the", "how", "do", "i", "is", "of"}


def laid(folder, texts):
    """Texts as files of a folder, by their names."""
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def put(at, texts):
    """An index of texts, by their names; each knows its length."""
    made = Library.create(at, Recipe(keep=1.0, codec="float32"), Words())
    made.put([Text(name, text, {"size": len(text)}) for name, text in texts.items()])
    made.close()
    return made


class Words:
    """Vectors of lower-cased words, markers first; like words are equal."""

    def __init__(self, name: str = "words"):
        self.identity = Identity(name, sha256(name.encode()).hexdigest(), DIM)
        self.read: list[str] = []

    def documents(self, items, needs=()):
        self.read += items
        return self._encode(items)

    def queries(self, texts):
        return self._encode(texts)

    def _encode(self, texts):
        rows, spans, stops, lengths = [], [], [], []
        for text in texts:
            found = list(re.finditer(r"\w+|[^\w\s]", text))
            rows += [_vector("[CLS]"), *(_vector(m.group().lower()) for m in found)]
            spans += [(-1, -1), *(m.span() for m in found)]
            stops += [False, *(m.group().lower() in STOP for m in found)]
            lengths.append(1 + len(found))
        vectors = torch.stack(rows) if rows else torch.zeros(0, DIM)
        return Encoded(
            vectors,
            ends(torch.tensor(lengths, dtype=torch.long)),
            torch.tensor(spans, dtype=torch.long).view(-1, 2),
            {"stop": torch.tensor(stops, dtype=torch.bool)},
        )


def _vector(word):
    seed = int.from_bytes(sha256(word.encode()).digest()[:6], "little")
    return normalize(torch.randn(DIM, generator=torch.Generator().manual_seed(seed)), dim=0)
