"""A cache layer whose heads hold tokens of their own choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass

import torch
from torch import Tensor

from tokensieve.parts import select
from tokensieve.parts.attention.pages import Pages
from tokensieve.parts.numeric.bits import Packed
from tokensieve.sites.cache.quantized_entries import QuantizedEntries
from tokensieve.sites.cache.sieved_layer import SievedLayer, taken_back
from tokensieve.sites.model.compatibility import BaseQuantizedLayer, Cache


class EvictedLayer(SievedLayer):
    """A cache layer from which entries have left: in front stand those that were kept, behind them what has come since.

    Where the heads of every row keep equally many, ``keys`` and ``values`` hold both, ``(B, G, M + T, d)``, and any attention
    kernel reads them. Where they do not, ``pages`` holds what was kept, ``keys`` and ``values`` hold the rest, and the sieve
    computes the attention. Where it is packed in few bits, ``packed`` holds what was kept; for a pass of one token the sieve
    computes attention over it as it is where it can, and for all others it is opened.

    Attributes:
        places: ``(B, G, M)`` int, the column of the full mask that each kept entry stands for; -1 at padding, always behind.
            ``(B, 1, M)`` where all heads hold the same.
        columns: ``(B, T)``, those of what has come since, the same in all heads.
        pages: the kept entries, where heads hold different numbers; rows are those of the batch times heads.
        packed: the kept keys and values of one precision after another, in pairs; None where they are as they were.
        salient: ``(B, M)`` bool, which kept entries are packed in the first precision.
        bare: whether attention reads keys and values just as they are held, and adds nothing of its own.
        closed: whether the sieve computes the attention of the coming pass, so that nothing is opened for it.
        accumulated_attention: ``(B, G, M + T)`` attention accumulated by each entry, the mean over the query heads of its own;
            None where nobody asked.
        token_ids: ``(B, G, M + T)`` int, the token id of each entry, or ``(B, 1, M + T)`` likewise; None where nobody asked.
        is_visual: ``(B, C)`` bool, which columns up to the end of the last prompt are visual tokens; None where nobody asked.
        shares: ``(B, G, M + T)``, how much of each entry's own attention went to visual tokens, likewise; None where nobody
            asked.
        queries: the latest queries ``(B, H, t, d)`` and their columns ``(B, t)``, pass by pass.
        probes: likewise those drawn among all of a pass.
        moments: of all queries before their rotation: their number ``(B,)``, sum ``(B, H, d)`` and sum of squares, of which the
            upper triangle ``(B, H, d (d + 1) / 2)``, and the last position ``(B,)``; None where nobody asked.
        mark: the length at which entries last left.
    """

    places: Tensor
    salient: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.pages: Pages | None = None
        self.packed: list[tuple[Packed, Packed]] | None = None
        self.bare, self.closed = False, False
        self.accumulated_attention: Tensor | None = None
        self.token_ids: Tensor | None = None
        self.is_visual: Tensor | None = None
        self.shares: Tensor | None = None
        self.queries: list[tuple[Tensor, Tensor]] = []
        self.probes: list[tuple[Tensor, Tensor]] = []
        self.moments: tuple[Tensor, ...] | None = None
        self.mark = 0

    @classmethod
    def at(cls, cache: Cache, index: int, like: Tensor) -> EvictedLayer:
        """The evicted layer at ``index`` of a cache, put in the place of a plain or a quantized one.

        Args:
            like: keys ``(B, G, n, d)`` that it holds.
        """
        old = cache.layers[index]
        if isinstance(old, cls):
            return old
        if isinstance(old, BaseQuantizedLayer):
            new = type(f"Evicted{type(old).__name__}", (QuantizedEntries, cls, type(old)), {})()
            new.__dict__.update(old.__dict__)
            new.length = old.get_seq_length()
            new.columns = torch.arange(new.length, device=like.device).expand(len(like), -1)
        else:
            new = cls()
            new.__dict__.update(SievedLayer.of(cache, index, len(like), like.device).__dict__)
        new.places = torch.zeros(*like.shape[:2], 0, dtype=torch.int32, device=like.device)
        cache.layers[index] = new
        return new

    @property
    def width(self) -> int:
        """Kept entries in front of ``keys``."""
        return 0 if self.pages is not None else self.places.shape[2]

    @property
    def held(self) -> int:
        return 0 if self.columns is None else self.columns.shape[1] + (0 if self.packed is not None else self.width)

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values of all entries, ``(B, G, N, d)``, and their columns ``(B, G, N)``, -1 at padding."""
        assert self.columns is not None
        keys, values = self.late()
        late = self.columns[:, None].expand(-1, keys.shape[1], -1)
        columns = torch.cat([self.places.long().expand(-1, keys.shape[1], -1), late], 2)
        if self.pages is None:
            return keys, values, columns
        whole = [x.unflatten(0, keys.shape[:2]) for x in self.pages.padded(columns.shape[2])]
        for x, new in zip(whole, (keys, values), strict=True):
            x[:, :, self.places.shape[2] :] = new
        return whole[0], whole[1], columns

    def late(self) -> tuple[Tensor, Tensor]:
        """What is in no page."""
        return self._opened(self.keys, self.values)

    def _opened(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.packed is None:
            return keys, values
        out, first = [], self.packed[0][0].codes.shape[1]
        rest = ~self.salient & (self.places[:, 0] >= 0)
        at = torch.where(self.salient, self.salient.cumsum(1), first + rest.cumsum(1)) - 1
        for late, parts in zip((keys, values), zip(*self.packed, strict=True), strict=True):
            whole = select.take(torch.cat([part.open() for part in parts], 1), at.clamp(min=0))
            out.append(torch.cat([whole.unflatten(2, (late.shape[1], -1)).transpose(1, 2), late], 2))
        return out[0], out[1]

    def pack(self, keys: Tensor, values: Tensor, places: Tensor, salient: Tensor, bits: tuple[int, int]) -> None:
        """Hold these entries, ``(B, G, N, d)``, in few bits.

        Args:
            places: ``(B, G, N)``, their columns, -1 at padding, the same in all heads.
            salient: ``(B, N)`` bool, which of them get the first precision; all the rest get the second.
        """
        self._left(places)
        self.salient, self.packed = salient, []
        flat = [x.transpose(1, 2).flatten(2) for x in (keys, values)]
        for some, each in zip((salient, ~salient & (places[:, 0] >= 0)), bits, strict=True):
            part, real = select.compact(some)
            k, v = (select.take(x, torch.where(real, part, part[:, :1])) for x in flat)
            self.packed.append((Packed.by_channel(k, each), Packed.by_vector(v, each)))
        self.pages, self.holes = None, bool((places < 0).any())
        self._hold(keys[:, :, :0].clone(), values[:, :, :0].clone())

    @property
    def packed_real(self) -> Tensor | None:
        """``(B, N)`` bool, which of the packed entries, part after part, are no padding; None where all are."""
        assert self.packed is not None
        counts = (self.salient.sum(1), (~self.salient & (self.places[:, 0] >= 0)).sum(1))
        sizes = [part.codes.shape[1] for part, _ in self.packed]
        if all(bool((count == size).all()) for count, size in zip(counts, sizes, strict=True)):
            return None
        order = (torch.arange(size, device=self.salient.device) for size in sizes)
        return torch.cat([o < count[:, None] for o, count in zip(order, counts, strict=True)], 1)

    def keep(self, keys: Tensor, values: Tensor, at: Tensor, places: Tensor) -> None:
        """Hold some of these entries and no others.

        Args:
            keys, values: ``(B, G, N, d)``; at: ``(B, G, M)`` long, which of them.
            places: ``(B, G, M)``, the columns of those, -1 at padding, which is behind.
        """
        real, self.packed, self.bare = places >= 0, None, False
        self._left(places)
        k, v, which = (x.flatten(0, 1) for x in (keys, values, at))
        self.pages = None  # what is given are copies; both layouts are never held beside them
        if bool((real == real[:, :1]).all()):
            self.holes = not bool(real.all())
            self._hold(*(select.take(x, which).unflatten(0, at.shape[:2]) for x in (k, v)))
            return
        self.pages, self.holes = Pages.of(k, v, which, real.flatten(0, 1)), False
        self._hold(keys[:, :, :0].clone(), values[:, :, :0].clone())

    def _left(self, places: Tensor) -> None:
        """Entries of these columns stay, and no others."""
        assert self.columns is not None
        # Views of what was would keep all of it.
        self.places, self.columns, self.mark = alike(places.to(torch.int32)), self.columns[:, :0].clone(), self.length

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def show(self, visual: Tensor, past: int) -> None:
        """Note where the visual tokens of a prompt, ``(B, q)`` bool, stand behind ``past`` columns.

        Raises:
            ValueError: of earlier columns this is not known.
        """
        known = visual[:, :0] if self.is_visual is None else self.is_visual
        if past and self.is_visual is None:
            raise ValueError(
                "the method reads which cached tokens are visual, which is not known of all; fill the cache under this sieve"
            )
        self.is_visual = torch.cat([known, visual.new_zeros(len(visual), past - known.shape[1]), visual], 1)

    def settle(self) -> None:
        """Forget what only the next chunk or eviction would ask for, and which takes the room of many entries."""
        self.queries, self.probes, self.moments = [], [], None

    def before(self, mask: Tensor | None) -> Tensor | None:
        """The mask of all entries, from that of those that have come since: every query sees what was kept."""
        self.awaited = self.pages is None
        if mask is None or not self.width:
            return mask
        real = self.places[:, 0] >= 0
        if mask.dim() == 2:
            return torch.cat([real.to(mask.dtype), mask], 1)
        front = real[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1)
        if mask.dtype != torch.bool:
            front = torch.zeros_like(front, dtype=mask.dtype).masked_fill_(~front, torch.finfo(mask.dtype).min)
        return torch.cat([front, mask.expand(len(front), -1, -1, -1)], 3)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        late = super().update(key_states, value_states, *args, **kwargs)
        return late if self.closed else self._opened(*late)

    def reset(self) -> None:
        self.places, self.packed = self.places[:, :, :0], None
        self.pages, self.accumulated_attention, self.token_ids, self.mark = None, None, None, 0
        self.is_visual, self.shares = None, None
        self.settle()
        super().reset()
        self.bare, self.closed = False, False

    def crop(self, tokens_to_remove: int) -> None:
        assert self.columns is not None
        more = taken_back(tokens_to_remove)
        if more > self.columns.shape[1]:
            late = self.columns.shape[1]
            raise ValueError(
                f"cannot crop {more} tokens; {late} have come since entries last left. What decodes "
                "with an assistant, or by looking up the prompt, takes tokens back: decode without"
            )
        kept = 0 if self.packed is not None else self.width
        late = self.columns.shape[1] - more
        self.keys, self.values = (x[..., : kept + late, :] for x in (self.keys, self.values))
        self.columns, self.length = self.columns[:, :late], self.length - more
        kept = self.places.shape[2] + late
        cut = (None if x is None else x[..., :kept] for x in (self.accumulated_attention, self.token_ids, self.shares))
        self.accumulated_attention, self.token_ids, self.shares = cut
        self.is_visual = None if self.is_visual is None else self.is_visual[:, : self.length]
        self.queries, self.probes = [], []

    def _rows(self, change: Callable[[Tensor, int], Tensor]) -> None:
        super()._rows(change)
        if self.pages is not None:
            row = torch.arange(self.pages.counts.shape[0], device=self.places.device).view(self.places.shape[:2])
            self.pages = self.pages.rows(change(row, 0).flatten())
        if self.packed is not None:
            self.packed = [(k.rows(change), v.rows(change)) for k, v in self.packed]
            self.salient = change(self.salient, 0)
        self.places = change(self.places, 0)
        each = (self.accumulated_attention, self.token_ids, self.is_visual, self.shares)
        self.accumulated_attention, self.token_ids, self.is_visual, self.shares = (
            None if x is None else change(x, 0) for x in each
        )
        self.queries, self.probes = ([(change(q, 0), change(c, 0)) for q, c in x] for x in (self.queries, self.probes))
        self.moments = None if self.moments is None else tuple(change(m, 0) for m in self.moments)


def alike(x: Tensor) -> Tensor:
    """``(B, 1, N)`` of ``(B, G, N)`` where all heads are the same."""
    return x[:, :1].clone() if bool((x == x[:, :1]).all()) else x


def cache_bytes(cache: Cache) -> int:
    """Bytes of all tensors that a cache holds, whatever they are for, with the room behind them."""
    seen: dict[int, int] = {}

    def count(x: object) -> None:
        if isinstance(x, Tensor):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        elif isinstance(x, (tuple, list)):
            for one in x:
                count(one)
        elif is_dataclass(x):
            count(tuple(vars(x).values()))

    for layer in cache.layers:
        for value in vars(layer).values():
            count(value)
    return sum(seen.values())
