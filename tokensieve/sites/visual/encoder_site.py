"""The encoder site: what an encoder can tell about its tokens, and reduction between its blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.core.needs import Need
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.parts import budget
from tokensieve.parts.attention import rows
from tokensieve.sites.model import checkpointing, guards, taps
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.clock import Clock
from tokensieve.sites.model.ledger import Ledger
from tokensieve.sites.model.supply import supplied
from tokensieve.sites.model.trace import StageTrace, Trace

Heard = dict[str, dict[int, list[Tensor]]]
"""Signals by name and layer, one of each call: a block may be called several times in one pass."""
ENCODER_SIGNALS = ("cls_attention", "received_attention", "cls_similarity", "keys", "values")


class Watch:
    """Records, at the blocks asked for, the signals that an encoder alone can give, of its patches (not its special tokens)."""

    def __init__(self, stack: Stack, needs: Iterable[Need], clock: Clock, layers: tuple[int, ...] = ()):
        self.stack, self.clock = stack, clock
        self.seen: Heard | None = None  # only while somebody listens
        self._wanted: dict[int, dict[str, list[int]]] = {}
        for need in needs:
            for name in self.names(need):
                for asked in need.layers or layers:
                    block = stack.layer(need.scaled(asked, len(stack.layers)))
                    if stack.attentions[block] is None:
                        raise ValueError(
                            f"block {block} of {type(stack.root).__name__} has no attention to read {name} from; use a method "
                            "that reads features only, such as 'divprune'"
                        )
                    self._wanted.setdefault(block, {}).setdefault(name, []).append(asked)

    def names(self, need: Need) -> list[str]:
        """What is recorded for a need: the first of it and its stand-ins that this encoder has."""
        for name in (need.name, *need.instead):
            if name in ENCODER_SIGNALS and (not name.startswith("cls_") or self.stack.cls):
                return [name]
        return []

    @property
    def reads(self) -> bool:
        """Whether there is anything to record."""
        return bool(self._wanted)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that are read."""
        return tuple(self._wanted)

    def wanted(self, layer: int | None = None) -> set[str]:
        """What is to be recorded at a block; at any, for None."""
        return {n for at, names in self._wanted.items() if layer in (None, at) for n in names}

    def attach(self) -> list[Detach]:
        return [self._tap(layer) for layer in self._wanted]

    def _tap(self, layer: int) -> Detach:
        module = self.stack.attentions[layer]
        assert module is not None
        return taps.attach(module, observe=partial(self.note, layer))

    def note(self, layer: int, call: taps.Call) -> None:
        """The attention of a block was called; where somebody listens, what is wanted of it is recorded."""
        if self.seen is None:
            return
        with self.clock, torch.no_grad():
            for name, asked in self._wanted.get(layer, {}).items():
                value = self._read(name, call)
                for index in asked:
                    self.seen.setdefault(name, {}).setdefault(index, []).append(value)

    def _read(self, name: str, call: taps.Call) -> Tensor:
        first = self.stack.specials
        if name == "cls_attention":
            return rows.attend(call.query[:, :, :1], call.key, call.scale, call.mask)[:, :, 0, first:]
        if name == "received_attention":
            return rows.received(call.query, call.key, call.scale, call.mask)[..., first:]
        if name == "cls_similarity":
            return rows.attend(call.value[:, :, :1], call.value, 1.0, call.mask)[:, :, 0, first:]
        x = call.key if name == "keys" else call.value
        return x[:, :, first:].transpose(1, 2).flatten(2)


class EncoderReduction:
    """What became of the tokens of one pass of an encoder.

    Attributes:
        grid: rows and columns of the patches of each image; None where that is not known.
        total: from the patches to those that are left so far; None in front of the first stage.
        targets: how many are left behind each of the site's blocks.
        holes: whether ``total`` holds padding.
        by_length: ``total`` as it was when the states held so many tokens, special ones included.
        score: what the method ranked by at first; None where nobody asked.
    """

    def __init__(self, grid: tuple[int, int] | None):
        self.grid = grid
        self.total: Reduction | None = None
        self.targets: list[int] = []
        self.holes = False
        self.by_length: dict[int, Reduction] = {}
        self.score: Tensor | None = None

    def widen(self, x: Tensor, first: int) -> Tensor:
        """``(I, m, ...)`` recorded at some block -> ``(I, n, ...)``: each original token has what its slot had there.

        Args:
            first: special tokens in front of the patches.
        """
        if self.total is None or x.shape[1] == self.total.n:
            return x
        flat = x.reshape(*x.shape[:2], -1)
        return self.by_length[first + x.shape[1]].restore(flat).reshape(x.shape[0], -1, *x.shape[2:])


class EncoderSite:
    """Reduces an encoder's tokens after some of its blocks; its outputs get their full length back at the root.

    Args:
        last: the block behind which features leave the encoder; alone: whether no language model stands behind it.
    """

    def __init__(self, stack: Stack, stage: Stage, clock: Clock, last: int, ledger: Ledger, scores: bool, alone: bool):
        self.stack, self.stage, self.clock, self.ledger, self.scores = stack, stage, clock, ledger, scores
        self.layers = tuple(sorted({stack.layer(i) for i in stage.layers})) if stage.layers else tuple(range(last + 1))
        if isinstance(stage.keep, budget.Keep) and stage.keep.layered:
            raise ValueError(f"{stage.keep}: an encoder takes tokens or a share; the others are of the language model")
        if max(self.layers) > last:
            raise ValueError(f"layers={stage.layers}; the features leave this encoder after layer {last}")
        method, kernel = stage.method, taps.kind(stack.config)
        if (method.proportional or method.adaptive) and "flash" in kernel:
            raise ValueError(
                f"{method.name} at site='encoder' weighs or hides keys through an attention mask, which {kernel} does not take; "
                "load the model with attn_implementation='sdpa' (or {'vision_config': 'sdpa'}, for the encoder alone)"
            )
        supplied(stage, (*ENCODER_SIGNALS, "features"))
        self.alone = alone
        if alone:
            ledger.every.append(stage)
            ledger.models.append(stack.root)
        self.watch = Watch(stack, [Need(n.name, (), n.instead) for n in stage.needs], clock, self.layers)
        self.trace: Trace | None = None
        self.now: EncoderReduction | None = None
        self.made: list[EncoderReduction] | None = None  # a list while somebody collects the passes

    @property
    def stacks(self) -> list[Stack]:
        return [self.stack]

    def attach(self) -> list[Detach]:
        out = [*checkpointing.attach(self.stack), *self.watch.attach()]
        for i, layer in enumerate(self.stack.layers):
            if i in self.layers:
                out.append(layer.register_forward_hook(self._after(i), prepend=True).remove)
            if i > min(self.layers):
                attention = self.stack.attentions[i]
                if attention is not None:
                    out.append(taps.attach(attention, mask=self._weigh))
        out.append(self.stack.root.register_forward_pre_hook(self._start, with_kwargs=True).remove)
        out.append(self.stack.root.register_forward_hook(self._restore, always_call=True).remove)
        return out

    def _start(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        pixels, patch = (
            kwargs.get("pixel_values", args[0] if args else None),
            getattr(self.stack.config, "patch_size", None),
        )
        grid = None
        if isinstance(pixels, Tensor) and pixels.dim() == 4 and isinstance(patch, int):
            grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
        self.now, self.watch.seen = EncoderReduction(grid), {}

    def _after(self, index: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            if self.now is None:
                return None
            with self.clock:
                new = self._reduce(self.now, index, hidden)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    def _reduce(self, now: EncoderReduction, index: int, hidden: Tensor) -> Tensor:
        first = self.stack.specials
        special, tokens = hidden[:, :first], hidden[:, first:]
        if now.total is None:
            keep = budget.counts(self.stage.keep, torch.ones(1, tokens.shape[1], dtype=torch.bool))
            now.targets = budget.steps(tokens.shape[1], int(keep), len(self.layers))
        target = now.targets[self.layers.index(index)]
        before = now.total or Reduction.identity(tokens.shape[0], tokens.shape[1], tokens.device)
        whole = before.is_identity
        heard = self.watch.seen or {}
        given: dict[str, Any] = {
            name: seen[index][-1] for name, seen in heard.items() if index in seen
        }  # of this block
        if not self.watch.wanted(index) <= given.keys():  # stand-ins would be taken in silence
            raise guards.refusal("unheard", signals=" and ".join(sorted(self.watch.wanted(index))))
        signals = Signals(
            features=tokens,
            mask=None if whole else before.mask,
            grid=now.grid if whole else None,
            sizes=None if whole else before.sizes(),
            seed=self.ledger.seed(self.stage),
            **given,
        )
        signals = self.ledger.completed(self.stage, signals)
        step = self.stage.method(signals, target)
        now.total = before.then(step)
        now.holes = not bool(now.total.mask.all())  # once: layers that ask would wait for the device
        if self.alone:
            self.ledger.ran(self.stage)
        if whole and self.scores:
            now.score = self.stage.method.score(signals)
        now.by_length[first + step.m] = now.total
        return torch.cat([special, step.apply(tokens)], 1)

    def _weigh(self, mask: Tensor | None, key: Tensor) -> Tensor | None:
        """Hide padding slots, and weigh merged tokens by their size where the method asks for it."""
        total = None if self.now is None else self.now.total
        if self.now is None or total is None or total.is_identity:
            return mask
        if mask is not None and mask.shape[-1] != key.shape[2]:
            raise ValueError(
                f"{type(self.stack.root).__name__} hides some patches by a mask of {mask.shape[-1]} places, which do not leave "
                f"with the other {mask.shape[-1] - key.shape[2]}; pass pictures of one size, or use site='handoff'"
            )
        if not (self.now.holes or self.stage.method.proportional):
            return mask
        first = self.stack.specials
        bias = torch.zeros(key.shape[0], 1, 1, key.shape[2], dtype=key.dtype, device=key.device)
        if self.stage.method.proportional:
            bias[..., first:] = total.sizes().log().to(key.dtype)[:, None, None]
        bias[..., first:] = bias[..., first:].masked_fill(~total.mask[:, None, None], torch.finfo(key.dtype).min)
        if mask is None:
            return bias
        return bias.masked_fill(~mask, torch.finfo(key.dtype).min) if mask.dtype == torch.bool else bias + mask

    def _restore(self, module: nn.Module, args: Any, output: Any) -> Any:
        now, self.now, self.watch.seen = self.now, None, None
        if now is None or now.total is None or output is None:
            return output
        if self.made is not None:
            self.made.append(now)
        self.trace = Trace([StageTrace(self.stage, now.total, now.score, now.grid)], list(range(now.total.batch)), [])
        if not hasattr(output, "keys"):
            return output
        full = self.stack.specials + now.total.n
        for name in ("last_hidden_state", "hidden_states"):
            value = output.get(name)
            if isinstance(value, Tensor):
                output[name] = self._widen(now, value, full)
            elif isinstance(value, tuple):
                output[name] = tuple(self._widen(now, v, full) for v in value)
        short = [k for k, v in output.items() if isinstance(v, Tensor) and v.dim() == 3 and self._short(now, v, full)]
        if short:
            raise ValueError(
                f"{type(module).__name__} makes its {short[0]} of {now.total.m} tokens that are left of {now.total.n}, by "
                "work of its own behind the blocks; use site='handoff'"
            )
        return output

    def _short(self, now: EncoderReduction, hidden: Tensor, full: int) -> bool:
        """Whether states have the length of what is left behind some block."""
        return hidden.shape[1] != full and hidden.shape[1] in now.by_length

    def _widen(self, now: EncoderReduction, hidden: Tensor | None, full: int) -> Tensor | None:
        if hidden is None or hidden.dim() != 3 or not self._short(now, hidden, full):
            return hidden
        first = self.stack.specials
        tokens = now.by_length[hidden.shape[1]].restore(hidden[:, first:])
        return torch.cat([hidden[:, :first], tokens], 1)
