"""A cache layer that remembers which prompt tokens its entries stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokensieve.sites.cache.growable_layer import GrowableLayer
from tokensieve.sites.model import guards
from tokensieve.sites.model.compatibility import SIEVABLE, Cache, DynamicLayer
from tokensieve.sites.model.fingerprint import Fingerprint


@dataclass
class Seen:
    """Where a layer's images and the text behind them stand among its entries, for layers that see part of them.

    Attributes:
        entry: ``(B, V)`` long, the entries of visual tokens, -1 at padding; image: ``(B, V)`` long, which image of its row.
        text: ``(B, T)`` long, the entries of text tokens behind the first of them, -1 at padding.
        rows: ``(B, T, V)``, how much these attend to those, where that is read.
        neurons: ``(B, F)`` bool, the feed-forward neurons that run from here on; None for all.
        off: heads that do not work on vision, by the stage of the layer.
    """

    entry: Tensor
    image: Tensor
    text: Tensor
    rows: Tensor | None = None
    neurons: Tensor | None = None
    off: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def change(self, how: Callable[[Tensor], Tensor]) -> None:
        """Change the batch dimension of everything."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, how(value))

    def crop(self, entries: int) -> None:
        """Forget what stands at ``entries`` or later."""
        self.entry, self.image = (torch.where(self.entry < entries, x, -1) for x in (self.entry, self.image))
        self.text = torch.where(self.text < entries, self.text, -1)


def taken_back(tokens_to_remove: int) -> int:
    """How many tokens a crop takes back.

    Raises:
        ValueError: a number above 0, which some releases of transformers take for the length to keep, and others refuse.
    """
    if tokens_to_remove > 0:
        raise ValueError(f"crop({tokens_to_remove}): to take tokens back, pass a number below 0, as in crop(-3)")
    return -tokens_to_remove


class SievedLayer(GrowableLayer):
    """A dynamic cache layer that holds fewer entries than the sequence has tokens.

    To `generate` and to the mask builder it reports the length of the whole sequence, so that positions, slicing and a
    second turn go on as if nothing had left; ``columns`` says which column of the full mask each entry stands for.

    Attributes:
        columns: ``(B, entries)`` long; -1 at padding entries (rows that keep fewer tokens than the longest). None behind a reset,
            until entries come.
        holes: True where there are such padding entries.
        length: tokens of the sequence so far, kept or not.
        shift: ``(..., B)``, by how much the position ids of later tokens are lowered; None where they are not.
        seen: where its images stand, where a stage at site="focus" limits what is seen of them.
        model: the one that filled it; None where that is not known.
        awaited: whether a sieve has seen to the mask of the coming pass.
    """

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.columns: Tensor | None = None
        self.holes = False
        self.length = 0
        self.shift: Tensor | None = None
        self.seen: Seen | None = None
        self.model: Fingerprint | None = None
        self.awaited = False
        self._next: tuple[Tensor, int, bool, Tensor | None] | None = None

    @classmethod
    def of(cls, cache: Cache, index: int, batch: int, device: torch.device) -> SievedLayer:
        """The sieved layer at ``index`` of a cache, put in the place of a plain dynamic one.

        Raises:
            ValueError: the layer is of a kind whose entries cannot leave (static, quantized, ...).
        """
        while len(cache.layers) <= index:
            cache.layers.append(DynamicLayer())
        old = cache.layers[index]
        if isinstance(old, cls):
            if old.columns is None:
                old.columns = torch.empty(batch, 0, dtype=torch.long, device=device)
            return old
        if type(old) not in SIEVABLE:
            raise ValueError(
                f"layer {index} of the cache is a {type(old).__name__}; tokens can leave a DynamicCache only (pass one, "
                "or no cache)"
            )
        new = cls()
        new.__dict__.update(old.__dict__)
        new.length = old.get_seq_length()
        held = old.keys.shape[-2] if old.is_initialized else 0  # a sliding window holds the last ones
        new.columns = torch.arange(new.length - held, new.length, device=device).expand(batch, -1)
        cache.layers[index] = new
        return new

    def expect(self, columns: Tensor, length: int, holes: bool, shift: Tensor | None = None) -> None:
        """Say what the next :meth:`update` brings. What a pass says that ends before that is forgotten.

        Args:
            columns: of its entries; length: how many tokens they stand for; holes: whether padding is among them.
            shift: by how much more the ids of all later tokens are lowered; None where they are not.
        """
        self._next = (columns, length, holes, shift)

    def ordinary(self) -> None:
        """Say that the next :meth:`update` brings ordinary tokens."""
        self._next = None

    def upcoming(self, query: int) -> Tensor:
        """Columns of all entries once ``query`` ordinary tokens have been added."""
        assert self.columns is not None
        new = torch.arange(self.length, self.length + query, device=self.columns.device)
        return torch.cat([self.columns, new.expand(self.columns.shape[0], -1)], 1)

    def before(self, mask: Tensor | None) -> Tensor | None:
        """The mask of all entries, from that of those that ``columns`` speaks of; announces the coming pass."""
        self.awaited |= self.seen is None
        return mask

    def begin(self) -> None:
        """Forget what was announced: a pass begins, and the one before may have broken off."""
        self.awaited, self._next = False, None

    @property
    def n_entries(self) -> int:
        """Entries that are known of in ``keys``."""
        return 0 if self.columns is None else self.columns.shape[1]

    def _guard(self) -> None:
        """Raise RuntimeError where a pass would read it wrongly."""
        if self.columns is None or not self.is_initialized:
            return
        unseen = self.seen is not None or self.holes or self.n_entries < self.length
        if unseen and not self.awaited and self._next is None:
            raise guards.refusal("unread" if self.seen is None else "unlimited")
        rows, held = (
            (self.keys.shape[0], self.keys.shape[-2]) if self.keys.dim() == 4 else (len(self.columns), self.n_entries)
        )
        if (rows, held) != (len(self.columns), self.n_entries):
            facts = {"held": held, "rows": rows, "known": self.n_entries, "batch": len(self.columns)}
            raise guards.refusal("sliced", **facts)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        query = key_states.shape[-2]
        self._guard()
        self.awaited = False
        if self.columns is None:
            self.columns = torch.empty(len(key_states), 0, dtype=torch.long, device=key_states.device)
        if self._next is None:
            self.columns = self.upcoming(query)
            self.length += query
        else:
            columns, length, holes, shift = self._next
            if columns.shape[1] != query:
                raise RuntimeError(f"{columns.shape[1]} tokens were announced to the cache, {query} came")
            self.columns, self.length, self._next = torch.cat([self.columns, columns], 1), self.length + length, None
            self.holes |= holes
            if shift is not None:
                self.shift = shift if self.shift is None else self.shift + shift
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        return self.length

    def reset(self) -> None:
        self.columns, self.holes, self.length, self.shift, self._next = None, False, 0, None, None
        self.seen, self.model = None, None
        super().reset()

    def crop(self, tokens_to_remove: int) -> None:
        more = taken_back(tokens_to_remove)
        if more == 0 or self.columns is None:
            return
        keep = self.length - more
        gone = (self.columns >= keep).sum(1)
        if bool((gone != gone[0]).any()):
            raise ValueError("cannot crop into a prompt whose rows keep different numbers of tokens")
        entries = self.columns.shape[1] - int(gone[0])
        self.keys, self.values = (x[..., :entries, :] for x in (self.keys, self.values))
        self.columns, self.length = self.columns[:, :entries], keep
        if self.seen is not None:
            self.seen.crop(entries)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._rows(lambda c, axis: c.index_select(axis, beam_idx.to(c.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._rows(lambda c, axis: c.repeat_interleave(repeats, dim=axis))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._rows(lambda c, axis: c.index_select(axis, indices.to(c.device)))

    def _rows(self, change: Callable[[Tensor, int], Tensor]) -> None:
        if self.columns is not None:
            self.columns = change(self.columns, 0)
        if self.shift is not None:
            self.shift = change(self.shift, -1)
        if self.seen is not None:
            self.seen.change(lambda x: change(x, 0))
