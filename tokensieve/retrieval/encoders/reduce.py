"""Reduce: the site "vectors", where the stored vectors of encoded texts become fewer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.core.method import Method
from tokensieve.core.method_registry import get_method
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts.budget import Budget
from tokensieve.retrieval.encoders.encoded import Encoded, ends, join

if TYPE_CHECKING:
    from scipy.sparse import csr_array

BATCH, ROWS = 2**15, 128
"""Tokens and texts of a batch."""
FAR = 1 << 62
READ = ("idf", "stop", "word", "received_attention")


@torch.no_grad()
def reduce(encoded: Encoded, method: str | Method, keep: Budget, *, seed: int = 0) -> Encoded:
    """Fewer vectors for each text.

    What becomes of several vectors has length 1 again. Its span is theirs, from the first to the last character, where they are
    neighbours, and that of the one at whose place it stands where they are not.

    Args:
        encoded: with the signals that the method needs (``idf`` from :class:`Frequencies`, the others from the encoder).
        method: a registered name (``tokensieve.list_methods(site="vectors")`` lists them) or a :class:`Method`.
        keep: vectors per text (int), or a share of each text's (float).
        seed: for methods that draw.

    Raises:
        ValueError: the method does not run at this site, or a budget is out of range; `MissingSignal` names a signal that is
            not there.
    """
    if len(encoded) == 0:
        return encoded
    parts, order = [], []
    for rows, place, r in _each(encoded, method, keep, seed):
        single = None if encoded.single is None else encoded.single[rows]
        kept = encoded.at(place.gather(1, r.kept)[r.mask], ends(r.counts), single)
        if not r.drops:
            mixed = normalize(r.apply(encoded.vectors[place])[r.mask], dim=-1)
            spans = _spans(encoded.spans[place], r)[r.mask]
            kept = Encoded(mixed, kept.offsets, spans, kept.signals, single)
        parts.append(kept)
        order.append(rows)
    back = torch.empty(len(encoded), dtype=torch.long)
    back[torch.cat(order)] = torch.arange(len(encoded))
    return join(parts).rows(back)


def _spans(spans: Tensor, r: Reduction) -> Tensor:
    """The characters of each slot, ``(B, M, 2)``, of tokens' spans ``(B, N, 2)``; those of markers begin below 0."""
    own = spans.gather(1, r.kept[..., None].expand(-1, -1, 2))
    slot, step = r.owner.clamp(min=0), torch.arange(r.n).expand_as(r.owner)
    member = r.owner >= 0

    def over(values: Tensor, of: Tensor, how: str, none: int) -> Tensor:
        return torch.full_like(r.kept, none).scatter_reduce(1, slot, values.where(of, none), how)

    held = torch.zeros_like(r.kept).scatter_add_(1, slot, member.long())
    near = over(step, member, "amax", -1) - over(step, member, "amin", FAR) + 1 == held
    said = member & (spans[..., 0] >= 0)
    first, last = over(spans[..., 0], said, "amin", FAR), over(spans[..., 1], said, "amax", -1)
    return torch.stack([first, last], 2).where((near & (last >= 0))[..., None], own)


@torch.no_grad()
def as_matrix(encoded: Encoded, method: str | Method, keep: Budget, *, seed: int = 0) -> tuple[csr_array, Tensor]:
    """What :func:`reduce` does, as a sparse matrix ``(M, T)`` that the ``(T, d)`` vectors are multiplied with.

    Dot products with the reduced vectors are then the matrix times those with all vectors.

    Returns:
        the matrix, and the offsets of the texts among the M vectors, ``(n + 1,)``.
    """
    from scipy.sparse import csr_array

    each = list(_each(encoded, method, keep, seed))
    lengths = torch.empty(len(encoded), dtype=torch.long)
    for rows, _, r in each:
        lengths[rows] = r.counts
    offsets = ends(lengths)
    slots, tokens, weights = [], [], []
    for rows, place, r in each:
        share = torch.ones_like(place, dtype=torch.float32)
        if not r.drops:
            mixed = torch.linalg.vector_norm(r.apply(encoded.vectors[place]), dim=2).clamp(min=1e-12)
            share = (share if r.weight is None else r.weight) / mixed.gather(1, r.owner.clamp(min=0))
        inside = r.owner >= 0
        slots.append((offsets[rows][:, None] + r.owner)[inside])
        tokens.append(place[inside])
        weights.append(share[inside])
    where = (torch.cat(slots).numpy(), torch.cat(tokens).numpy())
    return csr_array((torch.cat(weights).numpy(), where), shape=(int(offsets[-1]), len(encoded.vectors))), offsets


def _each(
    encoded: Encoded, method: str | Method, keep: Budget, seed: int
) -> Iterator[tuple[Tensor, Tensor, Reduction]]:
    """For texts of about equal length together: which they are, the places of their vectors ``(B, N)``, and the reduction."""
    made = get_method(method) if isinstance(method, str) else method
    if "vectors" not in made.sites:
        raise ValueError(
            f"{made.name} runs at {', '.join(made.sites)}; tokensieve.list_methods(site='vectors') lists what fits"
        )
    for rows in _batches(encoded.lengths):
        lengths = encoded.lengths[rows]
        step = torch.arange(int(lengths.max()))
        mask = step < lengths[:, None]
        place = encoded.offsets[rows][:, None] + torch.where(mask, step, 0)
        signals: dict[str, Any] = {k: encoded.signals[k][place] for k in READ if k in encoded.signals}
        yield rows, place, made(Signals(features=encoded.vectors[place], mask=mask, seed=seed, **signals), keep)


def _batches(lengths: Tensor) -> list[Tensor]:
    """Texts of about equal length together."""
    if int(lengths.min()) == 0:
        raise ValueError(f"text {int(lengths.argmin())} has no vectors; every text must hold at least one")
    order = lengths.argsort(stable=True)
    out, start = [], 0
    while start < len(order):
        ahead = order[start : start + ROWS]
        fits = (lengths[ahead] * torch.arange(1, len(ahead) + 1) <= BATCH).sum()
        size = max(int(fits), 1)
        out.append(ahead[:size])
        start += size
    return out


class Frequencies:
    """In how many texts each token of the vocabulary occurs; grows and shrinks with a collection.

    Attributes:
        texts: how many texts were counted.
        counts: ``(V,)`` long.
    """

    def __init__(self, texts: int = 0, counts: Tensor | None = None):
        self.texts = texts
        self.counts = torch.zeros(0, dtype=torch.long) if counts is None else counts

    def add(self, encoded: Encoded) -> Frequencies:
        """Count the texts."""
        return self._count(encoded, 1)

    def remove(self, encoded: Encoded) -> Frequencies:
        """Take counted texts out again."""
        return self._count(encoded, -1)

    def __add__(self, other: Frequencies) -> Frequencies:
        """Those of both, which must count different texts."""
        short, long = sorted((self.counts, other.counts), key=len)
        counts = long.clone()
        counts[: len(short)] += short
        return Frequencies(self.texts + other.texts, counts)

    def _count(self, encoded: Encoded, by: int) -> Frequencies:
        self.texts += by * len(encoded)
        text = torch.arange(len(encoded)).repeat_interleave(encoded.lengths)
        pairs = torch.stack([text, encoded.signals["ids"]], 1)
        # Each token once per text.
        once = torch.unique(pairs[pairs[:, 1] >= 0], dim=0)[:, 1]
        found = torch.bincount(once, minlength=len(self.counts))
        found[: len(self.counts)] = self.counts + by * found[: len(self.counts)]
        self.counts = found
        return self

    def idf(self, ids: Tensor) -> Tensor:
        """log((1 + texts) / (1 + those with the token)); that of a token never seen for ids beyond, 0 for ids below 0."""
        padded = torch.cat([self.counts, torch.zeros(1, dtype=torch.long)])
        seen = padded[ids.clamp(0, len(self.counts))].double()
        return torch.where(ids < 0, 0.0, ((1 + self.texts) / (1 + seen)).log().float())

    def mark(self, encoded: Encoded) -> Encoded:
        """The texts with the signal ``idf``."""
        return encoded.with_signals(idf=self.idf(encoded.signals["ids"]))
