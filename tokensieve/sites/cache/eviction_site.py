"""The cache site: entries leave the cache of keys and values behind a prompt, and while decoding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.core.method import CacheMethod
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.sites.cache import cache_budgets, entries, gathered_masks, statistics
from tokensieve.sites.cache.entries import Entries
from tokensieve.sites.cache.evicted_layer import EvictedLayer
from tokensieve.sites.cache.paged import over_packed, paged
from tokensieve.sites.cache.prefix import MORE
from tokensieve.sites.model import calls, compatibility, taps
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.clock import Clock
from tokensieve.sites.model.decoder import alone, full_layers, padding
from tokensieve.sites.model.fingerprint import Fingerprint
from tokensieve.sites.model.ledger import Ledger
from tokensieve.sites.model.structure import Anatomy
from tokensieve.sites.model.supply import supplied
from tokensieve.sites.model.trace import Trace


class CacheSite:
    """Evicts layer by layer, behind the attention of each, so that no more than one layer is ever held twice.

    Args:
        alone: whether no other site sees to the masks of layers that hold fewer entries.
        anatomy: the vision-language model around it, for methods that read which entries are visual.
    """

    def __init__(
        self,
        language: Stack,
        stages: Sequence[Stage],
        clock: Clock,
        ledger: Ledger,
        alone: bool,
        anatomy: Anatomy | None = None,
    ):
        self._visual: Tensor | None = None
        self.language, self.clock, self.ledger, self.alone, self.anatomy = language, clock, ledger, alone, anatomy
        self.full = full_layers(language)
        self._read = {source for i, source in enumerate(language.sources) if i != source}
        self.stages = [s for s in stages if not s.whole]
        self.layers = {id(s): cache_budgets.layers_of(s, language, self.full) for s in self.stages}
        for stage in self.stages:
            supplied(stage.method.needs, entries.CACHE_SIGNALS, "cache", stage.method.name)
            cache_budgets.resolve_count(stage.keep, torch.ones(1, dtype=torch.long))
        cache_budgets.check(self.stages, self.layers, self.full, self._read)
        ledger.late += self.stages
        ledger.models.append(language.root)
        self.model = Fingerprint(language.root)
        self.trace: Trace | None = None
        self._cache: Any = None
        self._real: Tensor | None = None
        self._pass: dict[str, Any] = {}
        self._ids: Tensor | None = None
        self._words: Tensor | None = None
        self._waiting: list[tuple[int, Entries, Signals, Tensor]] = []
        self._past = 0
        self._hidden: Any = None
        self._met: set[int] = set()
        self._masks: dict[int, Any] = {}

    @property
    def stacks(self) -> list[Stack]:
        return [self.language]

    def attach(self) -> list[Detach]:
        root = self.language.root
        # In front of other sites: they may hand on a mask of fewer tokens.
        out = [
            calls.before(root, self._enter, prepend=True),
            root.register_forward_hook(self._done, always_call=True).remove,
        ]
        if self.anatomy is not None and self.anatomy.base is not None:
            out.append(calls.before(self.anatomy.base, partial(self._see, self.anatomy)))
        for i, layer in enumerate(self.language.layers):
            out.append(layer.register_forward_pre_hook(self._layer(i), with_kwargs=True).remove)
            attention = self.language.attentions[i]
            if i in self.full and attention is not None:
                out.append(taps.attach(attention, observe=partial(self._observe, i), kernel=partial(self._kernel, i)))
        return out

    # ---- a pass, in its order ---------------------------------------------------------------------------------------

    def _see(self, anatomy: Anatomy, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        kinds = anatomy.placeholders(kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        self._visual = torch.stack([*kinds.values()]).any(0)

    def _enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        (x, self._past), self._met = self.language.begun(args, kwargs), set()
        cache, length = compatibility.cache_of(kwargs), self._past + x.shape[1]
        most = getattr(self.language.config, "max_position_embeddings", None)
        if most is not None and length > most:
            raise ValueError(
                f"token {length} is past the model's max_position_embeddings={most}; evicted tokens keep their positions, so "
                "generate fewer (max_new_tokens) or shorten the prompt"
            )
        self._real = padding(kwargs.get("attention_mask"), length)
        if self.stages and self._real is not None and x.shape[1] > 1:
            behind = self._real.any(1) & ~self._real[:, -1]
            if bool(behind.any()):
                raise ValueError(
                    f"row {int(behind.nonzero()[0, 0])} ends in padding; pad prompts on the left (tokenizer.padding_side='left')"
                )
        self._ids = kwargs.get("position_ids")
        self._words = None if x.dim() == 3 else x
        gathered_masks.begin(cache, self.model, self.full)
        if x.shape[1] > 1 or self.trace is None:
            self.trace = Trace([], list(range(len(x))), [float(length)] * len(self.language.layers))
        if not self.alone or x.shape[1] == 1 or not self._past:
            return None
        mask = gathered_masks.narrow(self.language, cache, kwargs.get("attention_mask"), self._real, x.shape[1])
        return None if mask is None else (args, {**kwargs, "attention_mask": mask})

    def _layer(self, index: int) -> Callable[..., Any]:
        lasting = any(s.every and index in self.layers[id(s)] for s in self.stages)
        names = tuple(inspect.signature(self.language.layers[index].forward).parameters)

        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
            hidden = self._hidden = kwargs.pop(names[0])
            source = self.language.sources[index]
            if source in self._masks:  # another layer's keys, as they are in this pass
                mask = self._masks[source]
                kwargs["attention_mask"] = mask if mask is None or mask.dim() == 2 else mask[:, :, -hidden.shape[-2] :]
            elif self.alone:
                kwargs = gathered_masks.adapt(self.language, index, hidden, kwargs, self._ids)
            if index in self._read and index in self.full:
                self._masks[index] = kwargs.get("attention_mask")
            self._cache, self._pass = compatibility.cache_of(kwargs), kwargs
            layer = self._held(index)
            if isinstance(layer, EvictedLayer):
                layer.awaited, layer.closed = True, hidden.shape[-2] == 1 and layer.bare
                if hidden.shape[-2] == 1 and not lasting:
                    layer.settle()
            return (hidden,), kwargs

        return hook

    def _held(self, index: int) -> Any:
        layers = () if self._cache is None else self._cache.layers
        return layers[index] if len(layers) > index else None

    def _kernel(self, index: int, call: taps.Call, kwargs: dict[str, Any]) -> taps.Own | None:
        layer = self._held(index)
        if not isinstance(layer, EvictedLayer) or layer.pages is None:
            return partial(over_packed, layer) if isinstance(layer, EvictedLayer) and layer.closed else None
        what = "heads that hold different numbers of entries cannot; take a method that keeps equally many in each ('snapkv')"
        taps.refuse(kwargs, index, what)
        return partial(paged, layer.pages)

    @torch.no_grad()
    def _observe(self, index: int, call: taps.Call) -> None:
        if self._cache is None:
            return
        if index in self._met:
            attention = type(self.language.attentions[index]).__name__
            raise ValueError(
                f"layer {index} is of kind {attention!r}, which calls its attention several times in a pass; its entries cannot "
                "leave"
            )
        self._met.add(index)
        stages = [s for s in self.stages if index in self.layers[id(s)]]
        asleep = call.query.shape[2] == 1 and not any(s.every for s in stages)
        if not stages or (asleep and not statistics.lasting(self._held(index), cache_budgets.needs(stages))):
            return
        for stage in stages:
            self.ledger.ran(stage)
        with self.clock:
            held = getattr(self._cache.layers[index], "keys", None)
            heads = held.shape[1] if held is not None and held.dim() == 4 else call.key.shape[1]
            layer = EvictedLayer.at(self._cache, index, call.key[:, :heads])
            layer.model = self.model
            assert layer.columns is not None
            columns, since = layer.columns[:, -call.query.shape[2] :], layer.length - layer.mark
            if self._visual is not None and (layer.is_visual is None or call.query.shape[2] > 1):
                layer.show(self._visual, self._past)
            module = self.language.attentions[index]
            assert module is not None
            now = entries.here(layer, call, self._real)
            self._note(stages, now, columns, module, asleep)
            if asleep:
                return
            prompt = call.query.shape[2] > 1
            due = [stage for stage in stages if (stage.prefill if prompt else since >= stage.every)]
            for order, stage in enumerate(due):
                now = entries.here(layer, call, self._real) if order else now
                self._evict(stage, index, now, module)
            layer.probes = [] if due else layer.probes
            layer.mark = layer.length if prompt else layer.mark

    def _done(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.ledger.elsewhere:
            return
        self._cache, self._pass, self._real, self._hidden, self._words, self._waiting = None, {}, None, None, None, []
        self._visual, self._masks = None, {}
        if self.stages and not self._met and compatibility.cache_in(output) is not None:
            raise alone(self.language.root, self.full[0], type(self.language.attentions[self.full[0]]).__name__)

    # ---- the steps --------------------------------------------------------------------------------------------------

    def _note(
        self, stages: Sequence[Stage], now: Entries, columns: Tensor, module: nn.Module, asleep: bool = False
    ) -> None:
        """Remember what any stage will read, before one has evicted; where all are asleep, only what no later pass can tell."""
        if now.latent and len(stages) > 1:
            raise ValueError(
                f"a layer that caches less than its attention reads takes one stage; here are {len(stages)}"
            )
        ids = self._pass.get("position_ids")
        ids = columns if ids is None else (ids[0] if ids.dim() == 3 else ids).expand(len(columns), -1)
        table = self._pass.get("position_embeddings")
        needs = cache_budgets.needs(stages)
        for need in statistics.lasting(now.layer, needs) if asleep else needs:
            statistics.note(now, need, columns, self._real, table, ids, self._words, module)

    def _evict(self, stage: Stage, index: int, now: Entries, module: nn.Module) -> None:
        layer, method, heads = now.layer, stage.cache_method, now.keys.shape[1]
        candidates = self.layers[id(stage)]
        seen = (
            now.valid.new_full((len(now.valid),), layer.length, dtype=torch.long)
            if self._real is None
            else self._real.sum(1)
        )
        # A share of a prompt that has not ended may still grow.
        grows = bool(self._past or self._cache.__dict__.get(MORE))
        keep, held = cache_budgets.counts(stage, now, seen, candidates.index(index), len(candidates), grows)
        if bool((keep >= held).all()) and not method.shared:
            layer.mark = layer.length
            return
        given = now.read(method.needs, method.unit, self.language.root, self._hidden, module)
        units = {"token": lambda x: x[:, 0], "head": lambda x: x.flatten(0, 1), "entry": lambda x: x.flatten(1, 2)}
        valid = units[method.unit](now.valid)
        rows = keep.repeat_interleave(heads) if method.unit == "head" else keep
        if method.unit == "entry":
            head = torch.arange(heads, device=valid.device).repeat_interleave(now.keys.shape[2])
            given["head"] = head.expand_as(valid)
        # Of a row that has been all padding so far, one entry of it stands for none.
        empty = ~valid.any(1)
        valid, rows = (
            valid | (empty[:, None] & (torch.arange(valid.shape[1], device=valid.device) == 0)),
            rows + empty.long(),
        )
        signals = Signals(
            features=now.features(method.unit),
            mask=None if bool(valid.all()) else valid,
            seed=self.ledger.seed(stage) + index,
            **given,
        )
        if method.shared:
            # Of a layer that waits for the others, nothing is kept but what choosing takes.
            call = replace(now.call, query=now.call.query[:, :, :0].clone())
            slim = Signals(signals.features, signals.mask, head=signals.head, ranking=method.score(signals))
            self._waiting.append((index, replace(now, call=call), slim, keep))
            if index == self.layers[id(stage)][-1]:
                self._together(method)
            return
        self._finish(index, method, now, method(signals, rows))

    def _together(self, method: CacheMethod) -> None:
        """Evict in all layers that wait, with budgets from one ranking of what each further slot is worth."""
        waiting, self._waiting = self._waiting, []
        heads = waiting[0][1].keys.shape[1]
        keep = torch.stack([keep for *_, keep in waiting], 1)
        each, most = cache_budgets.shared([signals for _, _, signals, _ in waiting], keep, heads, method.min_kept)
        if bool((each == most).all()):
            for _, now, *_ in waiting:
                now.layer.mark = now.layer.length
            return
        for (index, now, signals, _), count in zip(waiting, each.unbind(1), strict=True):
            self._finish(index, method, now, method(signals, count * heads))

    def _finish(self, index: int, method: CacheMethod, now: Entries, step: Reduction) -> None:
        layer = now.layer
        if now.latent and (not step.drops or (method.unit == "entry" and not method.shared and now.keys.shape[1] > 1)):
            raise ValueError(
                f"layer {index} caches less than its attention reads; its entries can only leave, the same from all heads: take "
                "a method under which they do ('snapkv')"
            )
        if method.bits is None:
            now.keep(step, method.unit)
        else:
            now.pack(step, method.bits)
        assert self.trace is not None
        self.trace.layer_tokens[index] = float((layer.places >= 0).float().mean(1).sum() / len(layer.places))
