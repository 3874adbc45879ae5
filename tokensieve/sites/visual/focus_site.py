"""The focus site: layers in which queries see fewer visual tokens, heads rest on vision, or fewer neurons run while decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.core.focus import Focus
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.parts import select
from tokensieve.sites.cache.sieved_layer import Seen, SievedLayer
from tokensieve.sites.model import checkpointing, compatibility, guards, masks, taps
from tokensieve.sites.model.blocks import Stack, neurons
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.ledger import Ledger
from tokensieve.sites.visual import layer_signals
from tokensieve.sites.visual.images import Images
from tokensieve.sites.visual.token_stream import Stream

READS = {"text_attention", "text_text"}
FIRES = {"neurons", "text_neurons"}
KERNELS = ("sdpa", "eager")


class FocusSite:
    """Limits what each layer's attention sees through a mask, and what its feed-forward network computes by zeroing neurons.

    A pass that brings visual tokens notes in the layer's cache where they and the text stand; later passes go on from there.
    The kernel computes what is masked all the same. Stages inside the language model read attention as if nothing were limited.
    Methods get ``features``, the keys of the visual tokens (where neurons are read, their activations), and the grid.
    """

    def __init__(self, language: Stack, stages: Sequence[Stage], ledger: Ledger):
        self.language, self.ledger = language, ledger
        self.layers: dict[int, list[Stage]] = {}
        for stage in stages:
            # All of it is the plain model, bit for bit.
            able = [i for i, attention in enumerate(language.attentions) if attention is not None]
            every = able if stage.layers is None else stage.layers
            for layer in sorted({language.layer(i) for i in every}) if not stage.whole else ():
                self.layers.setdefault(layer, []).append(stage)
        for layer, here in self.layers.items():
            if sum(bool(_names(s) & READS) for s in here) > 1:
                raise ValueError(
                    f"two stages at site='focus' read the attention of layer {layer}; give them other layers"
                )
            if language.attentions[layer] is None:
                raise ValueError(f"layers={layer}: it has no attention to limit; name layers that have")
        ledger.visual += {id(s): s for here in self.layers.values() for s in here}.values()
        kind = taps.kind(language.config)
        if self.layers and kind not in KERNELS:
            raise guards.refusal("pairs", kind=kind)
        self._at: dict[int, tuple[Stream | None, SievedLayer | None, tuple[int, int] | None]] = {}
        self._now: dict[int, Seen | None] = {}

    def attach(self) -> list[Detach]:
        out: list[Detach] = []
        for i, here in self.layers.items():
            attention = self.language.attentions[i]
            assert attention is not None
            out.append(taps.attach(attention, limit=self._find(i)))
            for number, stage in enumerate(here):
                if _names(stage) & FIRES:
                    inner = neurons(self.language.layers[i], self.language.config.intermediate_size)
                    out.append(inner.register_forward_pre_hook(self._fire(i, stage)).remove)
                else:
                    out.append(taps.attach(attention, limit=self._limit(i, number, stage)))
        return out

    def before(self, index: int, stream: Stream | None, kwargs: dict[str, Any], grid: Any = None) -> None:
        """A layer is about to run: over ``stream``, or (None) over text that goes on from its cache.

        Args:
            grid: called with ``(I, n)`` bool, for rows and columns of the visual tokens, or None.

        Raises:
            ValueError: new images for a cache that holds limited ones.
        """
        if index not in self.layers:
            return
        cache = compatibility.cache_of(kwargs)
        layer = cache.layers[index] if cache is not None and len(cache.layers) > index else None
        layer = layer if isinstance(layer, SievedLayer) else None
        if layer is not None:
            layer.awaited = True
        shape = None
        if stream is not None:
            if layer is not None and layer.seen is not None:
                raise ValueError("images came to a cache whose images site='focus' limits; start with an empty cache")
            if cache is not None:
                layer = SievedLayer.of(cache, index, len(stream.index), stream.index.device)
            shape = grid(stream.slots()[1]) if stream.reduction.is_identity else None
        self._at[index] = (stream, layer, shape)

    def done(self) -> None:
        self._at.clear()
        self._now.clear()

    # ---- inside a layer ---------------------------------------------------------------------------------------------

    def _find(self, index: int) -> taps.Limit:
        """Where visual tokens and text stand among the keys of this call; limits nothing itself."""

        def find(call: taps.Call) -> tuple[Tensor | None, Tensor | None]:
            stream, layer, _ = self._at.get(index, (None, None, None))
            query, past = call.query.shape[2], call.key.shape[2] - call.query.shape[2]
            seen = None if layer is None else layer.seen
            if stream is not None:
                seen = _standing(stream, past)
                for stage in self.layers[index]:
                    self.ledger.ran(stage)
                if layer is not None:
                    layer.seen = seen
            elif seen is not None:
                new = torch.arange(past, past + query, device=seen.text.device).expand(len(seen.text), -1)
                seen.text = torch.cat([seen.text, new], 1)
            self._now[index] = seen
            return call.mask, None

        return find

    def _limit(self, index: int, number: int, stage: Stage) -> taps.Limit:
        def limit(call: taps.Call) -> tuple[Tensor | None, Tensor | None]:
            seen = self._now.get(index)
            if seen is None or not bool((seen.entry >= 0).any()):
                return call.mask, None
            stream, _, grid = self._at[index]
            query, past = call.query.shape[2], call.key.shape[2] - call.query.shape[2]
            images = Images.of(seen.image >= 0, seen.image[seen.image >= 0], None)
            asked = seen.text if stream is not None else seen.text[:, -query:]
            given: dict[str, Any] = {}
            with torch.no_grad():
                if _names(stage) & READS:
                    given = _rows(call, seen, asked, images)
                focus = Focus(off=seen.off.get(number, ()))
                if given or stream is not None:
                    entry = _entries(seen, images)
                    keys = call.key.transpose(1, 2)[images.row[:, None], entry.clamp(min=0)].flatten(2)
                    signals = Signals(
                        features=keys,
                        mask=None if bool(images.mask.all()) else images.mask,
                        grid=grid,
                        **given,
                    )
                    focus = stage.focus_method.focus(signals, _plain(stage))
                    seen.off[number] = focus.off
                hide = _hidden(focus, seen, images, asked, past, query, call.key.shape[2])
                return self._masked(call, hide, focus.off, seen, past)

        return limit

    def _masked(
        self, call: taps.Call, hide: Tensor, off: tuple[int, ...], seen: Seen, past: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """The kernel's mask without the pairs of ``hide``, ``(B, q, kv)``, and which heads work for which query."""
        (batch, heads, query, _), total = call.query.shape, call.key.shape[2]
        hide, working = hide[:, None], None
        if off:
            rests = torch.zeros(heads, dtype=torch.bool, device=hide.device)
            rests[list(off)] = True
            visual = _at(seen.entry, total)
            hide = hide | (visual[:, None, None] & rests[:, None, None])
            working = ~(visual[:, past:, None] & rests) if bool(visual[:, past:].any()) else None
        # A row that sees nothing would be NaN; what a resting head says is zeroed.
        hide = hide & ~torch.eye(query, total, dtype=torch.bool, device=hide.device).roll(past, 1)
        if not bool(hide.any()):
            return call.mask, working
        if call.mask is None:
            columns = torch.arange(total, device=hide.device).expand(batch, -1)
            mask = masks.causal(columns, query, taps.kind(self.language.config), call.query.dtype)
        else:
            mask = call.mask[..., :total]
        if mask.dtype == torch.bool:
            return mask & ~hide, working
        return mask.masked_fill(hide, torch.finfo(mask.dtype).min), working

    def _fire(self, index: int, stage: Stage) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any) -> Any:
            seen, (x, *rest) = self._now.get(index), args
            if checkpointing.again() or seen is None or not bool((seen.entry >= 0).any()):
                return None
            stream = self._at[index][0]
            if stream is None:
                return None if seen.neurons is None else (x * seen.neurons[:, None].to(x.dtype), *rest)
            with torch.no_grad():
                at, mask = stream.slots()
                text, real = stream.text()
                signals = Signals(
                    features=stream.pick(x, at),
                    neurons=stream.pick(x, at),
                    mask=None if bool(mask.all()) else mask,
                    text_neurons=masks.gather(x, text, 1)[stream.images.row],
                    text_mask=stream.mine(text, real),
                )
                core = stage.focus_method.focus(signals, _plain(stage)).neurons
                if core is not None:
                    seen.neurons = torch.ones(len(x), x.shape[2], dtype=torch.bool, device=x.device)
                    seen.neurons[stream.images.row] = core
            if core is None or stream.asked == stream.length:
                return None
            late = stream.index >= stream.asked
            assert seen.neurons is not None
            return (torch.where(late[:, :, None], x * seen.neurons[:, None].to(x.dtype), x), *rest)

        return hook


def _names(stage: Stage) -> set[str]:
    return {need.name for need in stage.method.needs}


def _plain(stage: Stage) -> int | float:
    assert isinstance(stage.keep, (int, float))
    return stage.keep


def _standing(stream: Stream, past: int) -> Seen:
    """Where visual tokens and text stand among the keys, behind ``past`` cached ones."""
    at, mask = stream.slots()
    text, real = stream.text(late=True)
    label = torch.full_like(stream.index, -1)
    row = stream.images.row
    number = torch.arange(len(row), device=row.device) - (row[:, None] > row).sum(1)
    label[row[:, None].expand_as(at)[mask], at[mask]] = number[:, None].expand_as(at)[mask]
    place, held = select.compact(label >= 0)
    return Seen(
        entry=torch.where(held, place + past, -1),
        image=torch.where(held, label.gather(1, place), -1),
        text=torch.where(real, text + past, -1),
    )


def _entries(seen: Seen, images: Images) -> Tensor:
    """``(I, n)`` long: the keys of each image's tokens, -1 at padding."""
    entry = seen.entry[images.row].gather(1, images.place.clamp(min=0))
    return torch.where(images.mask, entry, -1)


def _at(place: Tensor, total: int) -> Tensor:
    """``(B, total)`` bool: where the places, ``(B, M)`` long, negative for none, are."""
    out = torch.zeros(len(place), total + 1, dtype=torch.bool, device=place.device)
    return out.scatter_(1, torch.where(place >= 0, place, total), True)[:, :total]


def _rows(call: taps.Call, seen: Seen, asked: Tensor, images: Images) -> dict[str, Tensor]:
    """Attention rows of the text, by image, averaged over heads; those of earlier passes stand in front."""
    past = call.key.shape[2] - call.query.shape[2]
    rows = layer_signals.looking(call, (asked - past).clamp(min=0), past, call.scale).mean(1)

    def pick(columns: Tensor) -> Tensor:
        there = (asked >= 0)[..., None] & (columns >= 0)[:, None]
        return rows.gather(2, columns.clamp(min=0)[:, None].expand(-1, rows.shape[1], -1)) * there

    new = pick(seen.entry)
    seen.rows = new if seen.rows is None else torch.cat([seen.rows, new], 1)
    place = images.place.clamp(min=0)[:, None].expand(-1, seen.rows.shape[1], -1)
    return {
        "text_attention": seen.rows[images.row].gather(2, place) * images.mask[:, None],
        "text_text": pick(seen.text)[images.row],
        "text_mask": (seen.text >= 0)[images.row],
    }


def _hidden(focus: Focus, seen: Seen, images: Images, asked: Tensor, past: int, query: int, total: int) -> Tensor:
    """``(B, q, kv)`` bool: the pairs that are hidden."""
    entry, row = _entries(seen, images), images.row
    out = torch.zeros(len(seen.entry), query, total, dtype=torch.bool, device=entry.device)
    if focus.visual is not None:
        visual = _at(seen.entry, total)
        out |= visual[:, past:, None] & visual[:, None]
        i, a, b = (focus.visual & images.mask[:, :, None] & images.mask[:, None]).nonzero(as_tuple=True)
        out[row[i], entry[i, a] - past, entry[i, b]] = False
    if focus.text is not None:
        text = asked[row]
        i, t, n = (~focus.text & (text >= 0)[..., None] & images.mask[:, None]).nonzero(as_tuple=True)
        out[row[i], text[i, t] - past, entry[i, n]] = True
    return out
