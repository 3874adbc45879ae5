"""The encoder site: tokens leave between the blocks of an encoder, and what reads its states finds all of them again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.core.needs import Need
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.sites.encoder import arguments, inside, packed, readout, roles, schedule, seams
from tokensieve.sites.encoder.state import EncoderReduction
from tokensieve.sites.encoder.step import Step
from tokensieve.sites.encoder.watch import INSIDE_SIGNALS, Watch
from tokensieve.sites.model import calls, checkpointing, guards, taps, towers
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.clock import Clock
from tokensieve.sites.model.ledger import Ledger
from tokensieve.sites.model.supply import handed, supplied
from tokensieve.sites.model.trace import Trace


class EncoderSite:
    """Reduces an encoder's tokens in or behind some of its blocks; behind the last one the states have their full length again
    (with ``readout="merged"``, where they leave the encoder).

    Args:
        last: the block behind which features leave the encoder.
        model: what the encoder is all of, or a tower of; None where a language model stands behind it.
    """

    def __init__(
        self, stack: Stack, stage: Stage, clock: Clock, last: int, ledger: Ledger, scores: bool, model: nn.Module | None
    ):
        self.stack, self.stage, self.clock, self.ledger, self.scores = stack, stage, clock, ledger, scores
        self.alone, self.model, self.depth = model is not None, model or stack.root, len(stack.layers)
        self.seams = [seams.seam(layer) for layer in stack.layers]
        self.between = seams.between(stage, stack, self.seams, self.alone)
        parts = zip(stack.layers, stack.attentions, self.seams, strict=True)
        self.packs = [self.alone and packed.packable(*part) for part in parts]
        # What leaves behind the last block has cost all that it will.
        self.back = schedule.back(stage, stack)
        self.layers = schedule.layers(stage, stack, last if self.alone and not self.between else last + 1, self.back)
        if max(self.layers) > last:
            raise ValueError(f"layers={stage.layers}; the features leave this encoder after layer {last}")
        schedule.check(stage, self.layers, self.back, self.between)
        self.attention = next((a.config for a in stack.attentions if a is not None), stack.config)
        heads = getattr(self.attention, "num_attention_heads", 1)
        self.heads = heads if isinstance(heads, int) else 1
        method, kernel = stage.method, taps.kind(self.attention)
        if (method.proportional or method.adaptive) and "flash" in kernel:
            raise ValueError(
                f"{method.name} at site='encoder' weighs or hides keys through an attention mask, which {kernel} does not take; "
                "load the model with attn_implementation='sdpa' (or {'vision_config': 'sdpa'}, for the encoder alone)"
            )
        own = () if stage.site == "patch" else INSIDE_SIGNALS
        supplied(stage, (*own, "features", *ledger.handed(stage)))
        if self.alone:
            ledger.every.append(stage)
            ledger.models.append(stack.root)
            ledger.feeds = towers.INPUTS & set(calls.names_of(stack.root))
        needs = [Need(n.name, (), n.instead) for n in stage.needs if own and n.name not in ledger.handed(stage)]
        self.watch = Watch(stack, needs, clock, self.layers, self._mask, self._unpacked)
        self.readers = readout.Readers(stack, self.model) if stage.readout == "merged" else None
        self.now: EncoderReduction | None = None
        self._last: EncoderReduction | None = None  # of a pass that is over
        self.made: list[EncoderReduction] | None = None  # a list while somebody collects the passes
        self._before: EncoderReduction | None = None  # that of the last pass, for a decoder that reads what it left
        self._given: Mapping[str, Any] = {}

    @property
    def stacks(self) -> list[Stack]:
        return [self.stack]

    @property
    def trace(self) -> Trace | None:
        return None if self._last is None else self._last.trace(self.stage)

    def attach(self) -> list[Detach]:
        out = [*checkpointing.attach(self.stack), *self.watch.attach()]
        if self.readers is not None:
            out += self.readers.attach(lambda: self.now or self._before)
        for i, layer in enumerate(self.stack.layers):
            if layer in self.stack.layers[:i]:  # it runs again
                continue
            out.append(layer.register_forward_pre_hook(self._enter(i), with_kwargs=True).remove)
            found, attention = self.seams[i], self.stack.attentions[i]
            if self.between and found is not None:
                out += seams.attach(found, partial(self._at_seam, i), self._spread, self._own)
            out.append(layer.register_forward_hook(self._after(i), prepend=True).remove)
            if attention is not None:
                out.append(packed.attach(attention, i, self._packing, self._mask))
                out += inside.biases(attention, self)
            out += inside.relative(layer, self, self.heads)
        out += inside.places(self.stack.root, self)
        for module in readout.around(self.model, self.stack):
            if module is not self.stack.root:
                out.append(module.register_forward_hook(self._widen).remove)
        # Some call it past its hooks: sentence-transformers do.
        return [*out, calls.around(self.stack.root, "forward", self._run)]

    # ---- a pass, in its order ---------------------------------------------------------------------------------------

    def _run(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        names = calls.names_of(self.stack.root)

        def run(*args: Any, **kwargs: Any) -> Any:
            self._given, self.now = {**dict(zip(names, args, strict=False)), **kwargs}, None
            try:
                output = forward(*args, **kwargs)
                if self.now is None and not self.stack.root.training:  # in training blocks may be left out
                    raise guards.refusal("compiled", stages=f"{self.stage.method.name!r} at site='encoder'")
                output = self._widen(self.stack.root, (), output)
                self._end()
            finally:
                self.now, self.watch.seen, self._given = None, None, {}
            return output

        return run

    def _begin(self, hidden: Tensor, named: Mapping[str, Any]) -> EncoderReduction:
        name = type(self.stack.root).__name__
        if hidden.dim() != 3:
            raise ValueError(
                f"{name}: its blocks take states of shape {tuple(hidden.shape)}, not (rows, tokens, width)"
            )
        mask = next((v for n, v in named.items() if "mask" in n and isinstance(v, Tensor)), None)
        seen = roles.padding(mask, hidden.shape[1])
        if seen is not None and not self.alone and not bool(seen.all()):
            raise ValueError(
                f"{name} hides some patches by a mask of {hidden.shape[1]} places, which do not leave with the others; pass "
                "pictures of one size, or use site='handoff'"
            )
        layout = roles.layout(self.stack, hidden, self._given, seen)
        now = EncoderReduction(roles.grid(self.stack, self._given, layout.count), layout)
        self.watch.seen = {}
        return now

    def _enter(self, index: int) -> Callable[..., Any]:
        layer = self.stack.layers[index]
        names, heads = calls.names_of(layer), self.heads
        tapped, again = self.stack.attentions[index] is not None, self.stack.layers.count(layer) > 1

        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            named = {**dict(zip(names, args, strict=False)), **kwargs}
            hidden, placed = named.pop(names[0]), names[1 : len(args)]
            if self.now is None or (index == 0 and (not again or self.now.calls == self.depth)):
                self.now = self._begin(hidden, named)
            now = self.now
            if now is None:
                return None
            if index == 0 and self.layers == (schedule.FRONT,) and not now.targets:
                with self.clock:
                    hidden, now.step = self._reduce(now, schedule.FRONT, hidden), None
            now.tokens.append(hidden.shape[1])
            now.entered = hidden
            if now.shape is None:
                return None
            named = arguments.gathered(named, now.index, heads, now.layout.length)
            if not tapped:
                named |= {n: arguments.hidden(named[n], now) for n in ("attention_mask", "mask") if n in named}
            if self.packs[index] and not (module.training or torch.is_grad_enabled()):
                hidden, named = now.packing.enter(hidden, now.current.real, named)
                now.entered = hidden
            return (hidden, *(named.pop(name) for name in placed)), named

        return hook

    def _at_seam(self, index: int, hidden: Tensor) -> Tensor:
        now = self.now
        if now is None or now.at(index) not in self.layers:
            return hidden
        if checkpointing.run() is not None:
            raise ValueError(
                "between=True under gradient checkpointing: a block runs again in the backward pass; pass between=False"
            )
        first, whole = not now.steps, now.packing.open(hidden)
        with self.clock:
            fewer = self._reduce(now, now.at(index), whole)
        if first and now.step is not None and not now.step.averages:
            raise ValueError(
                f"between: {self.stage.method.name} mixes tokens in shares that are no means; pass between=False, with which "
                "tokens leave behind the block"
            )
        return hidden if fewer is whole else now.packing.close(fewer, now.current.real)

    def _own(self, hidden: Tensor) -> bool:
        entered = None if self.now is None else self.now.entered
        return not torch.is_grad_enabled() and entered is not None and hidden.data_ptr() != entered.data_ptr()

    def _spread(self, hidden: Tensor) -> Tensor:
        now = self.now
        if now is None or now.step is None:
            return hidden
        return now.packing.as_entered(now.step.spread(now.packing.open(hidden)))

    def _after(self, index: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            now, hidden = self.now, output[0] if isinstance(output, (tuple, list)) else output
            if now is None:
                return None
            given, hidden = hidden, now.packing.open(hidden)
            at, new = now.at(index), hidden
            if not self.between and at in self.layers:
                with self.clock:
                    new = self._reduce(now, at, hidden)
            elif now.step is not None and hidden.shape[1] == now.step.layout.length:
                new = now.step.apply(hidden)
            now.entered = None
            now.packing.leave()
            now.step, now.calls, now.chained = None, now.calls + 1, isinstance(output, (tuple, list))
            if now.calls == self.back and now.shape is not None:
                new = now.bring_back(new, output)
            if at == self.depth - 1 and self.readers is None:
                new, now.restored = now.restore(new), True
            if new is given:
                return None
            return (new, *output[1:]) if isinstance(output, (tuple, list)) else new

        return hook

    def _reduce(self, now: EncoderReduction, index: int, hidden: Tensor) -> Tensor:
        """The states of the tokens that are left behind a block's step; ``now.step`` is that step."""
        layout = now.current
        if self.alone:
            self.ledger.ran(self.stage)
        if layout.count == 0:
            return hidden
        if not now.targets:
            around = layout.length - layout.count
            depth = schedule.Depth(self.stack, self.layers, self.between, around, self.back)
            count = torch.full((len(hidden),), layout.count) if layout.valid is None else layout.valid.sum(1)
            now.targets = schedule.targets(self.stage, depth, count.to(hidden.device))
            now.begin(len(hidden), hidden.device)
        target = now.targets[self.layers.index(index)]
        count = torch.full_like(target, layout.count) if layout.valid is None else layout.valid.sum(1)
        if self.stage.method.adaptive and not self.stage.whole:  # it is asked in every block; all would be no question
            target = target.minimum((count - 1).clamp(min=1))
        if bool((target >= count).all()):
            return hidden
        tokens = layout.tokens(hidden)
        heard = self.watch.seen or {}
        given = {n: layout.of(v[index][-1], n in ("keys", "values")) for n, v in heard.items() if index in v}
        if not self.watch.wanted(index) <= given.keys():  # stand-ins would be taken in silence
            raise guards.refusal("unheard", signals=" and ".join(sorted(self.watch.wanted(index))))
        whole = not now.steps
        signals = Signals.of(
            tokens,
            mask=layout.valid,
            grid=now.grid if whole else None,
            sizes=now.weights,
            seed=self.ledger.seed(self.stage),
            **given,
        )
        if mine := self.ledger.handed(self.stage):
            signals = handed(signals, self.stage.method.needs, mine, index, now.composed(len(now.steps)))
        signals = self.ledger.completed(self.stage, signals)
        inner = self.stage.method(signals, target)
        if whole and self.scores:
            now.score = self.stage.method.score(signals)
        now.step = Step.of(inner, layout)
        now.follow(now.step, hidden, self.stage.method.proportional, index)
        return now.step.apply(hidden)

    def _mask(self, call: taps.Call) -> Tensor | None:
        """The mask that a block's attention gets: of the tokens that are there, padding hidden, and merged tokens weighed by
        their size where the method asks for it."""
        now = self.now
        if now is None or now.shape is None:
            return call.mask
        return arguments.mask(call, now)

    def _packing(self) -> packed.Packing | None:
        return None if self.now is None else self.now.packing

    def _unpacked(self, x: Tensor) -> Tensor:
        """Queries, keys or values of the rows of the batch."""
        return x if self.now is None else self.now.packing.open(x, 2)

    def _widen(self, module: nn.Module, args: Any, output: Any) -> Any:
        now = self.now
        if now is None or not now.by_length or output is None:
            return output
        crossed = self.readers is not None and self.readers.crosses != []
        return readout.widened(now, output, last=not now.restored and not crossed)

    def _end(self) -> None:
        if (now := self.now) is None or not now.targets:
            return
        if self.made is not None:
            self.made.append(now)
        self._before = now if self.readers is not None else None
        now.over()
        self._last = now
