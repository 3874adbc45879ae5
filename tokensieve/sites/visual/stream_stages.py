"""Stages on a stream: what a method needs is read, it chooses, and the visual tokens that it does not choose leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.parts import budget
from tokensieve.parts.budget import Budget
from tokensieve.sites.cache.evicted_layer import EvictedLayer
from tokensieve.sites.model import compatibility, guards, taps
from tokensieve.sites.model.clock import Clock
from tokensieve.sites.model.fingerprint import Fingerprint
from tokensieve.sites.model.ledger import Ledger
from tokensieve.sites.model.structure import Anatomy
from tokensieve.sites.model.supply import supplied
from tokensieve.sites.model.trace import StageTrace, Trace
from tokensieve.sites.visual import last_token, layer_arguments, layer_signals
from tokensieve.sites.visual.encoder_signals import Sight
from tokensieve.sites.visual.generate_prompt import GeneratePrompt
from tokensieve.sites.visual.layer_budgets import resolve
from tokensieve.sites.visual.token_stream import Stream
from tokensieve.sites.visual.upcoming_attention import Coming, copied


class StreamStages:
    """Runs stages, one at a time, on the tokens of a :class:`Stream`.

    Args:
        stages: of the plan; prefill: those inside the language model, by the layer in front of which they run.
        scores: whether the trace is to hold what stages ranked by.

    Attributes:
        trace: of the last pass that brought visual tokens.
        coming: by layer, what tells its attention ahead, where a stage reads that.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        stages: Sequence[Stage],
        prefill: Mapping[int, Sequence[Stage]],
        sight: Sight,
        asked: GeneratePrompt,
        clock: Clock,
        ledger: Ledger,
        scores: bool,
    ):
        assert anatomy.language is not None
        self.anatomy, self.language, self.sight, self.asked = anatomy, anatomy.language, sight, asked
        self.clock, self.ledger, self.scores = clock, ledger, scores
        self.model = Fingerprint(self.language.root)
        self.trace: Trace | None = None
        self.ranked = any(n.name == "ranking" for s in stages for n in s.needs)
        self.ranks = any(type(s.method).score is not Method.score for s in stages if s.site == "handoff")
        for stage in stages:
            names = self.names(stage) if not stage.in_encoder else []
            if stage.site == "prefill":
                layer_signals.check(self.language, stage.layer, names, self.own(stage))
        self.coming = {i: Coming(self.language, i) for i, here in prefill.items() if any(map(self.own, here))}

    def names(self, stage: Stage) -> list[str]:
        """The signals that a stage gets."""
        available = layer_signals.available(stage.site, self.anatomy.vision is not None, self.ranks)
        return supplied(stage, available)

    def own(self, stage: Stage) -> list[str]:
        """Those that it reads at its own layer."""
        return layer_signals.own(stage.needs, self.names(stage)) if stage.site == "prefill" else []

    def from_encoder(self, stream: Stream, stage: Stage, x: Tensor) -> Tensor:
        """The encoder's features came back at full length, merged tokens repeated: one of each goes on."""
        looks, source = stream.images.looks, stream.images.source
        encoded = [one for look in looks for one in look.encoded]
        parts = [one.total for one in encoded if one.total is not None]
        if looks and not parts:  # these come from another encoder
            self.ledger.ran(stage)
            return x
        total = Reduction.stack(parts) if len(parts) > 1 else parts[0] if parts else None
        if stage.whole:
            self._record(stage, stream, None, None)
            return x
        if total is None:
            raise ValueError(f"{type(self.anatomy.model).__name__}: {self._strange()}")
        if (
            source is None
            or source.shape[1] != total.n
            or not bool(stream.images.mask.all())
            or any(not k.encoded for k in looks)
        ):
            raise ValueError(
                f"{type(self.anatomy.model).__name__} does not hand on its encoder's {total.n} tokens of an image as they are; "
                "use site='handoff'"
            )
        total = total.rows(source[:, 0] // total.n)
        chosen = torch.zeros(total.batch, total.n, dtype=torch.bool, device=x.device)
        chosen.scatter_(1, total.kept, True)
        if bool((last_token.ends(stream) & ~chosen).any()):
            raise guards.refusal("ending")
        x = stream.leave(Reduction.keep(chosen), x, merge=False)
        stream.reduction = total
        self._record(stage, stream, encoded[0].score if len(encoded) == 1 else None, encoded[0].grid)
        return x

    def thin(
        self, stream: Stream, stage: Stage, index: int, x: Tensor, call: taps.Call | None, kwargs: dict[str, Any]
    ) -> Tensor:
        """One stage in front of layer ``index`` (0: the handoff), which is called with ``kwargs``.

        Args:
            x: ``(B, l, D)``, the states there; call: of the attention in front of them, where it is known.
        """
        with self.clock, torch.no_grad():
            at, mask = stream.slots()
            grid = self.sight.grid(stream.images, mask) if stream.reduction.is_identity else None
            keep = resolve(stage.keep, index, self.anatomy, stream)
            ranks = self.ranked and stage.site == "handoff"
            whole = bool((budget.counts(keep, mask) == mask.sum(1)).all())
            if whole and not (ranks or self.scores):
                self._record(stage, stream, None, grid)
                return x
            own = self.own(stage)
            before = [n for n in self.names(stage) if n not in own]
            given: dict[str, Any] = dict(layer_signals.read(before, stream, x, call))
            if own:
                given |= layer_signals.read(own, stream, x, self._coming(stream, index, x, kwargs))
            given |= self.sight.signals(stream, stage.site == "handoff", self._strange)
            given = {k: v for k, v in given.items() if not (k == "spot" and grid)}
            signals = Signals(
                features=stream.pick(x, at),
                mask=None if bool(mask.all()) else mask,
                grid=grid,
                sizes=None if stream.reduction.drops else stream.reduction.sizes(),
                seed=self.ledger.seed(stage),
                **given,
            )
            signals = self.ledger.completed(stage, signals)
            step = Reduction.keep(mask) if whole else self._step(stage, signals, keep, stream)
            score = stage.method.score(signals) if ranks or self.scores else None
            if ranks and score is not None:
                stream.rank(score)
        x = stream.leave(step, x)
        self._record(stage, stream, score, grid)
        return x

    def given(self, stream: Stream, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A layer's arguments for the tokens that are there."""
        return layer_arguments.arguments(self.language, stream, index, hidden, kwargs, self.model)

    def _step(self, stage: Stage, signals: Signals, keep: Budget | Tensor, stream: Stream) -> Reduction:
        alone, last = stream.images.alone, last_token.ends(stream)
        if bool(last.any()):
            counts = torch.where(alone, 1, budget.counts(keep, signals.valid))
            return last_token.staying(stage.method, signals, counts, last)
        if not bool(alone.any()):
            return stage.method(signals, keep)
        return stage.method.reduce(signals, torch.where(alone, 1, budget.counts(keep, signals.valid)))

    def _record(self, stage: Stage, stream: Stream, score: Tensor | None, grid: tuple[int, int] | None) -> None:
        assert self.trace is not None
        self.ledger.ran(stage)
        self.trace.stages.append(StageTrace(stage, stream.reduction, score, grid))

    def _coming(self, stream: Stream, index: int, x: Tensor, kwargs: dict[str, Any]) -> taps.Call:
        """What layer ``index`` would call its attention kernel with, if no token left in front of it."""
        cache = compatibility.cache_of(kwargs)
        if cache is None:
            return self.coming[index].call(x, self.given(stream, index, x, kwargs))
        cache = copied(cache, index)
        given = self.given(stream, index, x, compatibility.with_cache(kwargs, cache))
        if isinstance(cache.layers[index], EvictedLayer):
            cache.layers[index].awaited = True
        return self.coming[index].call(x, given)

    def _strange(self) -> str:
        """Why features that enter cannot be told apart."""
        prompt = self.asked.prompt
        if prompt is not None and prompt.chunk is not None:
            return f"prefill_chunk_size={prompt.chunk} cuts the encoder's features into pieces; leave it out"
        return (
            "the features that enter are not those that the encoder gave under this sieve; encode the pictures under it"
        )
