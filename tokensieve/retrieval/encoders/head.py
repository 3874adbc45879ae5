"""Heads: trained modules behind an encoder, saved in a folder that `load` and the command line take as an encoder."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from tokensieve.retrieval.encoders.encoded import CARD, Encoded, Encoder, Identity, join, lasting
from tokensieve.retrieval.heads.colberter import ColBERTer
from tokensieve.retrieval.heads.crisp import Crisp
from tokensieve.retrieval.heads.projection import Projection

FORMAT = "tokensieve.head.1"
WEIGHTS = "head.safetensors"
TOGETHER = 256
"""Texts read at once."""


class Head(Protocol):
    """What turns a frozen encoder's vectors into those of an index.

    Attributes:
        width, out: of a vector before and after.
        settings: what makes the same head again, as JSON holds it.
    """

    width: int

    @property
    def out(self) -> int: ...

    @property
    def settings(self) -> dict[str, Any]: ...

    def read(
        self, vectors: Tensor, offsets: Tensor, words: Tensor | None, query: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From ``(T, width)`` vectors of texts that end at ``offsets`` ``(n + 1,)``, and the word of each (-1 for none), to
        the vectors ``(M, out)``, the token at whose place each stands ``(M,)``, and their offsets."""
        ...


@torch.no_grad()
def through(head: Any, encoded: Encoded, query: bool) -> Encoded:
    """Encoded texts as a head reads them, in the order they have."""
    if encoded.vectors.shape[1] != head.width:
        raise ValueError(f"vectors are {encoded.vectors.shape[1]} wide; this head was made for width={head.width}")
    if len(encoded) == 0:
        return Encoded(torch.zeros(0, head.out), encoded.offsets, encoded.spans, encoded.signals, None)
    order, parts = encoded.lengths.argsort(stable=True), []
    for rows in order.split(TOGETHER):
        some = encoded.rows(rows)
        vectors, place, offsets = head.read(some.vectors, some.offsets, some.signals.get("word"), query)
        single = some.single
        if isinstance(head, ColBERTer) and single is not None:
            single = normalize(head.pool(single), dim=-1)
        kept = some.at(place, offsets, single)
        parts.append(Encoded(vectors, offsets, kept.spans, kept.signals, single))
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return join(parts).rows(back)


class Headed:
    """An encoder followed by a trained head.

    Args:
        encoder: the one whose vectors the head was trained on.
        head: a :class:`~tokensieve.retrieval.heads.projection.Projection`, :class:`~tokensieve.retrieval.heads.crisp.Crisp`,
            :class:`~tokensieve.retrieval.heads.colberter.ColBERTer`, or a module with the members of :class:`Head`.
        source: what :func:`tokensieve.retrieval.encoders.loading.load_encoder` makes the encoder from; None for the embedded one.

    Raises:
        ValueError: a head for vectors of another width.
    """

    def __init__(self, encoder: Encoder, head: Any, source: str | None = None):
        if head.width != encoder.identity.dim:
            raise ValueError(
                f"the head was made for width={head.width}; vectors of {encoder.identity.name} are {encoder.identity.dim} wide"
            )
        self.encoder, self.head, self.source = encoder, head.eval(), source and lasting(source)
        digest = sha256(f"{encoder.identity.digest}{json.dumps(head.settings, sort_keys=True)}".encode())
        for key, value in sorted(head.state_dict().items()):
            digest.update(f"{key}{tuple(value.shape)}".encode() + value.detach().float().contiguous().numpy().tobytes())
        name = f"{encoder.identity.name}+{type(head).__name__.lower()}"
        self.identity = Identity(name, digest.hexdigest(), head.out)

    @property
    def reader(self) -> Any:
        """How texts become tokens, where the encoder says so."""
        return getattr(self.encoder, "reader", None)

    def documents(self, items: Sequence[Any], needs: Collection[str] = ()) -> Encoded:
        return through(self.head, self.encoder.documents(items, needs), False)

    def queries(self, texts: Sequence[str]) -> Encoded:
        return through(self.head, self.encoder.queries(texts), True)

    def save(self, folder: str | Path) -> None:
        """Write the head and which encoder it belongs to; the encoder's own weights are not copied.

        Raises:
            ValueError: a head of a kind of your own, which :func:`load` could not make again.
        """
        kind = type(self.head).__name__.lower()
        if kind not in MAKERS:
            raise ValueError(
                f"a {type(self.head).__name__} cannot be loaded again; heads that can are {', '.join(MAKERS)}"
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        of = {"source": self.source, "name": self.encoder.identity.name, "digest": self.encoder.identity.digest}
        save_file({k: v.contiguous() for k, v in self.head.state_dict().items()}, folder / WEIGHTS)
        card = {"format": FORMAT, "kind": kind, "settings": self.head.settings, "encoder": of}
        (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _crisp(head: dict[str, Any], **rest: Any) -> Crisp:
    return Crisp(Projection(**head), **rest)


MAKERS: dict[str, Any] = {"projection": Projection, "crisp": _crisp, "colberter": ColBERTer}


def load(folder: str | Path, encoder: Encoder) -> Headed:
    """What :meth:`Headed.save` wrote, behind its encoder.

    Raises:
        ValueError: a folder of another format, or an encoder that is not the one the head was trained on.
    """
    card = card_of(folder)
    if card["encoder"]["digest"] != encoder.identity.digest:
        raise ValueError(
            f"the head in {folder} was trained on {card['encoder']['name']} {card['encoder']['digest'][:12]}, and this encoder "
            f"is {encoder.identity.name} {encoder.identity.digest[:12]}; load that one, or train the head again"
        )
    head: nn.Module = MAKERS[card["kind"]](**card["settings"])
    head.load_state_dict(load_file(Path(folder) / WEIGHTS))
    return Headed(encoder, head, card["encoder"]["source"])


def card_of(folder: str | Path) -> dict[str, Any]:
    """What a folder says of its head."""
    card = json.loads((Path(folder) / CARD).read_text(encoding="utf-8"))
    if card.get("format") != FORMAT or card.get("kind") not in MAKERS:
        raise ValueError(f"{folder} holds no head that can be read (format {card.get('format')!r})")
    return card
