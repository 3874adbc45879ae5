"""The cross site: image keys leave behind the first layer in which the text attends to images by cross-attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.parts import budget, select
from tokensieve.parts.attention import rows
from tokensieve.parts.budget import Keep
from tokensieve.sites.cache.sieved_layer import SievedLayer
from tokensieve.sites.model import calls, checkpointing, compatibility, masks, taps
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.clock import Clock
from tokensieve.sites.model.ledger import Ledger
from tokensieve.sites.model.structure import crossing
from tokensieve.sites.model.supply import supplied
from tokensieve.sites.model.trace import StageTrace, Trace
from tokensieve.sites.visual.generate_prompt import GeneratePrompt

STATES, MASK, SEEING = "cross_attention_states", "cross_attention_mask", "full_text_row_masked_out_mask"


@dataclass
class CrossPass:
    """One forward pass.

    Attributes:
        images: of each prompt.
        given: what the language model is called with.
        columns: ``(B, M)`` long, which image keys go on, -1 at padding; None where all do.
        asked: how many of its tokens belong to the prompt.
    """

    images: int
    given: dict[str, Any] = field(default_factory=dict)
    columns: Tensor | None = None
    asked: int = 0


class CrossSite:
    """Ranks image keys where the text first attends to them; later such layers compute, cache and see only those kept.

    Methods get ``features``, what the keys are made of, and ``text_attention``: by head one row, the mean over the text
    tokens that see the image. Keys that no text token sees (padding tiles) are no candidates, and leave with the others; where
    every candidate stays, the pass is left as it is.
    """

    def __init__(self, model: nn.Module, stage: Stage, clock: Clock, ledger: Ledger, scores: bool):
        self.base, self.language, self.layers = crossing(model)
        self.stage, self.clock, self.ledger, self.scores = stage, clock, ledger, scores
        ledger.visual.append(stage)
        ledger.models.append(self.language.root)
        keep = stage.keep
        if isinstance(keep, Keep) and (keep.per == "prompt" or (keep.tokens is None and keep.share is None)):
            # Of images that share one, all keys of the first might leave: text in front of the second would see only that.
            raise ValueError(
                f"keep={keep}; at site='cross' a budget is per image: pass keep=64 (tokens) or keep=0.5 (share)"
            )
        if stage.layers is not None:
            raise ValueError(
                f"layers={stage.layers}; at site='cross' keys leave behind layer {self.layers[0]}: leave it out"
            )
        supplied(stage, ("text_attention", "features"))
        self.trace: Trace | None = None
        self.asked = GeneratePrompt(model, ledger)
        self.now: CrossPass | None = None

    @property
    def stacks(self) -> list[Stack]:
        return [self.language]

    def attach(self) -> list[Detach]:
        root, first = self.language.root, self.language.attentions[self.layers[0]]
        assert first is not None
        out = [
            self._end,
            *self.asked.attach(),
            calls.before(self.base, self._see),
            self.base.register_forward_hook(self._end, always_call=True).remove,
            calls.before(root, self._enter),
            root.register_forward_hook(self._end, always_call=True).remove,
            taps.attach(first, observe=self._choose),
            *checkpointing.attach(self.language),
        ]
        for i in self.layers[1:]:
            out.append(self.language.layers[i].register_forward_pre_hook(self._layer(i), with_kwargs=True).remove)
        return out

    # ---- a pass, in its order ---------------------------------------------------------------------------------------

    def _see(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        pixels = kwargs.get("pixel_values")
        self.now = CrossPass(1 if pixels is None else pixels.shape[1])

    def _enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.now = self.now or CrossPass(1)
        self.now.given = kwargs
        x, past = self.language.begun(args, kwargs)
        self.now.asked = self.asked.upto(past, x.shape[1])

    def _choose(self, call: taps.Call) -> None:
        """What the first layer attends to decides which columns of this pass's image keys go on."""
        now = self.now
        states = None if now is None else now.given.get(STATES)
        if now is None or states is None:
            return
        self.ledger.ran(self.stage)
        with self.clock, torch.no_grad():
            keys = states.reshape(len(call.query) * now.images, -1, states.shape[-1])
            attention, seen, valid = self._read(now, call, keys.shape[1])
            real = valid.any(1)
            if not bool(real.any()):
                return
            valid = valid[real]
            signals = Signals(
                features=keys[real],
                mask=None if bool(valid.all()) else valid,
                text_attention=attention[real][:, :, None],
                text_mask=seen[real][:, None],
                seed=self.ledger.seed(self.stage),
            )
            signals = self.ledger.completed(self.stage, signals)
            step = self._step(signals)
            score = self.stage.method.score(signals) if self.scores else None
            chosen = torch.zeros(keys.shape[:2], dtype=torch.bool, device=keys.device)
            chosen[real] = torch.zeros_like(valid).scatter_(1, step.kept, True)
            if not torch.equal(chosen[real], valid):
                place, there = select.compact(chosen.reshape(len(call.query), -1))
                now.columns = torch.where(there, place, -1)
        left = float(step.counts.float().mean())
        met = float(valid.sum(1).float().mean())
        tokens = [met if i <= self.layers[0] else left for i in range(len(self.language.layers))]
        row = (real.nonzero()[:, 0] // now.images).tolist()
        self.trace = Trace([StageTrace(self.stage, step, score, None)], row, tokens)

    def _layer(self, index: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            cache: Any = compatibility.cache_of(kwargs)
            states: Any = kwargs.get(STATES)
            columns, changed = None if self.now is None else self.now.columns, dict(kwargs)
            held: Any = None if cache is None or len(cache.layers) <= index else cache.layers[index]
            if columns is not None:
                batch = len(columns)
                states = states.reshape(batch, -1, states.shape[-1])
                changed[STATES] = select.take(states, columns.clamp(min=0))
                if cache is not None:
                    held = SievedLayer.of(cache, index, batch, columns.device)
                    assert held.columns is not None
                    named = torch.where(columns >= 0, columns + held.length, -1)
                    held.expect(named, states.shape[1], bool((columns < 0).any()))
                    columns = torch.cat([held.columns, named], 1)
            elif isinstance(held, SievedLayer) and held.columns is not None:
                past = held.columns
                columns = past if states is None else held.upcoming(states.numel() // states.shape[-1] // len(past))
            else:
                return None
            if isinstance(held, SievedLayer):
                held.awaited = True
            changed[MASK] = _over(kwargs.get(MASK), columns, args[0] if args else kwargs["hidden_states"])
            return args, changed

        return hook

    def _end(self, *_: object) -> None:
        """The pass is over, however it ended."""
        self.now = None

    # ---- the steps --------------------------------------------------------------------------------------------------

    def _read(self, now: CrossPass, call: taps.Call, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """For every image of every row: attention ``(R, H, n)``, whether any text sees it ``(R,)``, and which of its keys are
        seen ``(R, n)``."""
        (batch, _, length, _), images = call.query.shape, now.images
        text = torch.ones(batch, length, dtype=torch.bool, device=call.query.device)
        padding, seeing = now.given.get("attention_mask"), now.given.get(SEEING)
        if isinstance(padding, Tensor) and padding.dim() == 2:
            text &= padding[:, -length:].bool()
        if seeing is not None:
            text &= seeing[:, 0, :, 0].bool()
        text[:, now.asked :] = False
        # New images stand behind those of earlier turns.
        total = sees = torch.zeros((), device=text.device)
        seen = torch.zeros(batch, images, n, dtype=torch.bool, device=text.device)
        for start in range(0, length, rows.BLOCK):
            part = slice(start, start + rows.BLOCK)
            mask = None if call.mask is None else call.mask[..., part, :]
            attention = rows.attend(call.query[:, :, part], call.key, call.scale, mask)[..., -images * n :]
            allowed = text[:, part, None].expand(-1, -1, images * n)
            if mask is not None:
                allowed = allowed & (mask[:, 0, :, -images * n :] >= 0)
            allowed = allowed.unflatten(2, (images, n))
            looks = allowed.any(3).float()
            total = total + torch.einsum("bhtin,bti->bihn", attention.unflatten(3, (images, n)), looks)
            sees, seen = sees + looks.sum(1), seen | allowed.any(1)
        mean = total / sees.clamp(min=1)[..., None, None]
        return mean.flatten(0, 1), sees.flatten() > 0, seen.flatten(0, 1)

    def _step(self, signals: Signals) -> Reduction:
        keep = self.stage.keep
        if bool((budget.counts(keep, signals.valid) == signals.valid.sum(1)).all()):
            return Reduction.keep(signals.valid)
        step = self.stage.method(signals, keep)
        if not step.drops:
            raise ValueError(f"{self.stage.method.name} merges tokens; at site='cross' they can only be dropped")
        return step


def _over(mask: Tensor | None, columns: Tensor, like: Tensor) -> Tensor:
    """The mask of the image keys at ``columns`` (``(B, M)`` long, -1 at padding)."""
    if mask is None:
        mask = like.new_zeros(1, 1, 1, int(columns.max()) + 1)
    return masks.gather(mask, columns, 3).masked_fill(columns[:, None, None] < 0, torch.finfo(mask.dtype).min)
