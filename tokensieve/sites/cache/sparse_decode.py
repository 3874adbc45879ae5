"""Reading: while decoding, layers read a few entries of a whole cache."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.parts import select
from tokensieve.parts.attention import rows
from tokensieve.sites.cache import entries
from tokensieve.sites.cache.cache_budgets import resolve_count
from tokensieve.sites.model import calls, taps
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.clock import Clock
from tokensieve.sites.model.decoder import full_layers, padding
from tokensieve.sites.model.ledger import Ledger
from tokensieve.sites.model.trace import Trace


class ReadingSite:
    """Some layers select entries at every decoded token, and the layers behind them read no others."""

    def __init__(self, language: Stack, stage: Stage, clock: Clock, ledger: Ledger):
        if stage.layers is not None:
            raise ValueError(f"layers={stage.layers}; {stage.method.name} says by its own options which layers select")
        self.language, self.stage, self.clock, self.ledger = language, stage, clock, ledger
        ledger.every += [] if stage.keep == 1.0 else [stage]
        ledger.models.append(language.root)
        self.full = full_layers(language)
        self.layer_roles = dict(zip(self.full, stage.cache_method.layer_roles(len(self.full)), strict=True))
        resolve_count(stage.keep, torch.ones(1, dtype=torch.long))
        self.trace: Trace | None = None
        self._real: Tensor | None = None
        self._length = 0
        self._read: tuple[Tensor, Tensor] | None = None

    @property
    def stacks(self) -> list[Stack]:
        return [self.language]

    def attach(self) -> list[Detach]:
        if self.stage.whole:
            return []
        out = [calls.before(self.language.root, self._enter)]
        for i in self.full:
            attention = self.language.attentions[i]
            assert attention is not None
            out.append(taps.attach(attention, observe=partial(self._observe, i), kernel=partial(self._kernel, i)))
        return out

    def _enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        x, past = self.language.begun(args, kwargs)
        self._length = past + x.shape[1]
        self._real, self._read = padding(kwargs.get("attention_mask"), self._length), None
        self.trace = Trace([], list(range(len(x))), [float(self._length)] * len(self.language.layers))

    @torch.no_grad()
    def _observe(self, index: int, call: taps.Call) -> None:
        self.ledger.ran(self.stage)
        if self.layer_roles[index] != "select" or call.query.shape[2] > 1:
            return
        if call.key.shape[2] != self._length:
            raise ValueError(
                f"entries have left layer {index} of this cache; {self.stage.method.name} reads whole caches"
            )
        with self.clock:
            batch, heads, n = call.key.shape[:3]
            real = self._real
            every = torch.full((batch,), n, device=call.key.device) if real is None else real.sum(1)
            attention = rows.attend(call.query, call.key, call.scale, None if real is None else real[:, None, None])
            signals = Signals(
                entries.vectors(call.key, "head"),
                None if real is None else real.repeat_interleave(heads, 0),
                window_attention=entries.laid(attention, "head", heads),
                seed=self.ledger.seed(self.stage) + index,
            )
            signals = self.ledger.completed(self.stage, signals)
            step = self.stage.method(signals, resolve_count(self.stage.keep, every).repeat_interleave(heads))
            self._read = None if step.is_identity else (step.kept, step.mask)

    def _kernel(self, index: int, call: taps.Call, kwargs: dict[str, Any]) -> taps.Own | None:
        if self._read is None or self.layer_roles[index] != "read" or call.query.shape[2] > 1:
            return None
        taps.refuse(kwargs, index, "layers that read a few entries cannot")
        assert self.trace is not None
        self.trace.layer_tokens[index] = float(self._read[1].sum(1).float().mean())
        return partial(self._attend, *self._read)

    def _attend(self, kept: Tensor, mask: Tensor, call: taps.Call) -> Tensor:
        batch, heads = call.key.shape[:2]
        key, value = (select.take(x.flatten(0, 1), kept).unflatten(0, (batch, heads)) for x in (call.key, call.value))
        allowed = mask.view(batch, heads, 1, -1).repeat_interleave(call.query.shape[1] // heads, 1)
        attention = rows.attend(call.query, key, call.scale, allowed).to(value.dtype)
        out = attention.unflatten(1, (heads, -1))[:, :, :, 0] @ value
        return out.flatten(1, 2)[:, None]
