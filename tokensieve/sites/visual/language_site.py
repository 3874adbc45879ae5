"""The handoff and prefill sites: visual tokens leave in front of the language model, or between its layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.core.method import Method
from tokensieve.core.plan import Stage
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import budget
from tokensieve.parts.budget import Budget, Keep
from tokensieve.sites.cache import gathered_masks
from tokensieve.sites.cache.evicted_layer import EvictedLayer
from tokensieve.sites.model import calls, checkpointing, compatibility, guards, masks, position_ids, taps
from tokensieve.sites.model.clock import Clock
from tokensieve.sites.model.deepstack import Deepstack
from tokensieve.sites.model.fingerprint import Fingerprint
from tokensieve.sites.model.ledger import Ledger, pictured
from tokensieve.sites.model.structure import Anatomy
from tokensieve.sites.model.trace import StageTrace, Trace
from tokensieve.sites.visual import last_token, layer_arguments, layer_signals
from tokensieve.sites.visual.encoder_signals import Sight
from tokensieve.sites.visual.encoder_site import Detach, EncoderSite
from tokensieve.sites.visual.focus_site import FocusSite
from tokensieve.sites.visual.generate_prompt import GeneratePrompt
from tokensieve.sites.visual.layer_budgets import layered, resolve
from tokensieve.sites.visual.passes import Pass
from tokensieve.sites.visual.token_stream import Stream
from tokensieve.sites.visual.upcoming_attention import Coming, copied


class LanguageSite:
    """Carries a :class:`Stream` through each pass of the language model that brings visual tokens.

    A :class:`Pass` runs: :meth:`_see` (find the visual tokens) -> :meth:`_enter` (handoff) -> :meth:`_layer` for every layer
    (prefill stages, masks, caches) -> :meth:`_leave` (states back to full length) -> :meth:`_done` -> :meth:`_end`. Passes
    without visual tokens only get their masks gathered where the cache holds fewer entries than the sequence has tokens.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        stages: Sequence[Stage],
        encoder: EncoderSite | None,
        clock: Clock,
        ledger: Ledger,
        scores: bool,
    ):
        assert anatomy.language is not None
        self.anatomy, self.language, self.encoder = anatomy, anatomy.language, encoder
        self.stages, self.clock, self.ledger, self.scores = stages, clock, ledger, scores
        self.handoff = [s for s in stages if s.site == "handoff"]
        self.prefill = layered(stages, self.language)
        if 0 in self.prefill:
            raise ValueError("a prefill stage at layer 0 has no layer before it to read; use site='handoff'")
        for at in self.prefill:
            later = [i for i in range(at, len(self.language.layers)) if self.language.sources[i] < at]
            if later:
                raise ValueError(
                    f"layers={at}: layer {later[0]} attends to the keys of layer {self.language.sources[later[0]]}, which tokens "
                    f"do not leave any more; choose a layer up to {min(self.language.sources[i] for i in later)}"
                )
        self.ranked = any(n.name == "ranking" for s in stages for n in s.method.needs)
        self.ranks = any(type(stage.method).score is not Method.score for stage in self.handoff)
        for stage in stages:
            names = self._names(stage) if stage.site != "encoder" else []
            if stage.site == "prefill":
                layer_signals.check(self.language, stage.layer, names, self._own(stage))
        self.coming = {i: Coming(self.language, i) for i, here in self.prefill.items() if any(map(self._own, here))}
        needs = [need for stage in self.handoff for need in stage.method.needs]
        self.sight = Sight(anatomy, needs, encoder, clock)
        self.focus = FocusSite(self.language, [s for s in stages if s.site == "focus"], ledger)
        ledger.visual += [s for s in stages if s.site in ("encoder", "handoff")]
        ledger.visual += [s for here in self.prefill.values() for s in here]
        if any(s.method.restores_dropped for here in self.prefill.values() for s in here):
            if any(s.positions == "compact" for s in stages):
                raise ValueError("positions='compact': tokens that come back later need those they had; use 'original'")
            # What never entered the language model could not come back.
            self.prefill, self.handoff = {0: self.handoff, **self.prefill}, []
        self.model = Fingerprint(self.language.root)
        attentions = enumerate(self.language.attentions)
        self.own = [i for i, attention in attentions if attention is not None and self.language.sources[i] == i]
        self.trace: Trace | None = None
        self.asked = GeneratePrompt(anatomy.model, ledger)
        self.now: Pass | None = None

    def _names(self, stage: Stage) -> list[str]:
        """The signals that a stage gets."""
        available = layer_signals.available(stage.site, self.anatomy.vision is not None, self.ranks)
        return layer_signals.wanted(stage.method.needs, available, stage.site, stage.method.name)

    def _own(self, stage: Stage) -> list[str]:
        """Those that it reads at its own layer."""
        return layer_signals.own(stage.method.needs, self._names(stage)) if stage.site == "prefill" else []

    def attach(self) -> list[Detach]:
        anatomy, language = self.anatomy, self.language
        assert anatomy.base is not None
        out = [*self.asked.attach(), *self.sight.attach(), self._end]
        out.append(calls.before(anatomy.base, self._see))
        out.append(anatomy.base.register_forward_hook(self._end, always_call=True).remove)
        out.append(calls.before(language.root, self._enter))
        for i, layer in enumerate(language.layers):
            out.append(layer.register_forward_pre_hook(self._layer(i), with_kwargs=True).remove)
        out.append(language.layers[-1].register_forward_hook(self._leave, prepend=True).remove)
        out.append(language.root.register_forward_hook(self._done, always_call=True).remove)
        out += self.focus.attach()
        out += checkpointing.attach(language)
        for i, stages in self.prefill.items():
            before = [s for s in stages if len(self._own(s)) < len(s.method.needs)]
            if i > 0 and before:
                out += layer_signals.listen(self._listening, i, language, before)
        out += [coming.attach() for coming in self.coming.values()]
        return out

    # ---- a pass, in its order ---------------------------------------------------------------------------------------

    def _see(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        now = self.now = Pass(around=True)
        now.pictures = self.sight.begin(kwargs.get("mm_encoder_outputs"))
        if not pictured(kwargs):
            return
        kinds = self.anatomy.placeholders(kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        if any(bool(k.any()) for k in kinds.values()):
            now.kinds = kinds
            mask = kwargs.get("attention_mask")
            now.padding = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def _enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        now = self.now = self.now or Pass(around=False)
        now.ids = kwargs.get("position_ids")
        gathered_masks.begin(compatibility.cache_of(kwargs), self.model, self.own)
        kinds = now.kinds
        if not kinds:
            self.sight.unseen(now.around)
            return None
        x = kwargs["inputs_embeds"]
        length = x.shape[1]
        real = torch.ones_like(kinds["image"]) if now.padding is None else now.padding[:, -length:].bool()
        shared = [s.keep for s in self.stages if isinstance(s.keep, Keep) and s.keep.per == "prompt"]
        if shared and self.encoder is not None:
            raise ValueError("Keep(per='prompt') cannot follow an encoder stage, whose budget is per image")
        cache = compatibility.cache_of(kwargs)
        past = 0 if cache is None else int(cache.get_seq_length())
        sequence = masks.packed(self.language.root, x, kwargs)
        images = self.sight.images(kinds, now.pictures, shared, sequence)
        self._uncut(past, length)
        stream = now.stream = Stream(images, real, sequence, self.asked.upto(past, length))
        self.trace = Trace([], images.row.tolist(), [0.0] * len(self.language.layers), images.place)
        ids = kwargs.get("position_ids")
        if ids is None:
            ids = torch.arange(past, past + length, device=x.device)[None]
        stream.ids = ids.expand(*ids.shape[:-2], len(x), length)
        now.deep, changed = Deepstack.take(kwargs, stream, len(self.language.layers))
        whole = masks.windowed(self.language.root, x, kwargs, past, sequence)
        if self.encoder is not None:
            x = self._from_encoder(stream, self.encoder.stage, x)
        for stage in self.handoff:
            x = self._thin(stream, stage, 0, x, None, {})
        if not stream.reduced:
            return args, changed
        policies = {s.positions for s in (*self.handoff, *([self.encoder.stage] if self.encoder else []))}
        policy = "compact" if "compact" in policies else "original"
        stream.ids = position_ids.placed(stream, stream.ids, stream.index, policy)
        changed = masks.arguments(changed, stream.index, length)
        changed |= {
            "inputs_embeds": x,
            "attention_mask": masks.entering(
                whole, stream.index, stream.real, x, past, taps.kind(self.language.config)
            ),
            "position_ids": stream.ids,
        }
        stream.entered()
        return args, changed

    def _listening(self) -> dict[int, taps.Call] | None:
        """Where the attention calls of this pass are noted; None where it brings no visual tokens."""
        return None if self.now is None or self.now.stream is None else self.now.calls

    def _layer(self, index: int) -> Callable[..., Any]:
        names = tuple(inspect.signature(self.language.layers[index].forward).parameters)

        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
            hidden, given = kwargs.pop(names[0]), names[1 : len(args)]
            now = self.now or Pass(around=False)
            stream = now.stream
            if stream is None:
                self.focus.before(index, None, kwargs)
                return _placed(hidden, given, gathered_masks.adapt(self.language, index, hidden, kwargs, now.ids))
            hidden = now.deep.add(index, hidden, stream)
            call = now.calls.pop(index, None)
            for stage in self.prefill.get(index, ()):
                if stage.method.restores_dropped:
                    hidden, call = stream.recall(hidden), None
                here = stream.index
                hidden = self._thin(stream, stage, index, hidden, call, kwargs)
                if stage.positions == "compact" and stream.reduced:
                    stream.renumbered = position_ids.renumbered(self.language.root, stream, hidden)
                elif stream.renumbered is not None and stream.index is not here:
                    stream.renumbered = position_ids.fewer(self.language.root, stream, hidden)
                if call is not None and stream.index is not here:
                    call = call.restricted_to(stream.stayed)
            stream.held.append(stream.reduction.counts)
            self.focus.before(index, stream, kwargs, partial(self.sight.grid, stream.images))
            if not stream.reduced:
                return _placed(hidden, given, gathered_masks.adapt(self.language, index, hidden, kwargs, now.ids))
            return _placed(hidden, given, self._given(stream, index, hidden, kwargs))

        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        stream = None if self.now is None else self.now.stream
        if stream is None or not stream.reduced:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        last = stream.index[:, -hidden.shape[1] :]
        if hidden.shape[1] < stream.index.shape[1]:  # some run their last layers on the last tokens only
            if bool((last[:, 0] != stream.length - hidden.shape[1]).any()):
                raise ValueError(
                    f"{type(self.anatomy.model).__name__} computes its last tokens only, and some of them have left; end the "
                    "prompt with text"
                )
            return output
        full = stream.whole(hidden)
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def _done(self, module: nn.Module, args: Any, output: Any) -> None:
        stream = None if self.now is None else self.now.stream
        states = getattr(output, "hidden_states", None)
        if stream is not None and states is not None:
            output.hidden_states = tuple(stream.restore(h) for h in states)
        if stream is not None and stream.held and self.trace is not None and output is not None:
            self.trace.layer_tokens = torch.stack(stream.held).float().mean(1).tolist()
        self._end()

    def _end(self, *_: object) -> None:
        """The pass is over, however it ended."""
        self.now = None
        self.sight.end()
        self.focus.done()

    # ---- the steps --------------------------------------------------------------------------------------------------

    def _uncut(self, past: int, length: int) -> None:
        """Raise ValueError where a pass holds part of a picture, and tokens of it are to leave."""
        prompt = self.asked.prompt
        if prompt is None or all(stage.whole for stage in self.stages):
            return
        if prompt.cut(past, length, self._visual):
            raise ValueError(
                f"prefill_chunk_size={prompt.chunk} cuts through a picture, whose tokens are chosen together; leave it out, or "
                "make it as large as the prompt"
            )

    def _visual(self, ids: Tensor) -> Tensor:
        return torch.stack([*self.anatomy.placeholders(ids, None).values()]).any(0)

    def _from_encoder(self, stream: Stream, stage: Stage, x: Tensor) -> Tensor:
        """The encoder's features came back at full length, merged tokens repeated: one of each goes on."""
        assert self.encoder is not None
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

    def _strange(self) -> str:
        """Why features that enter cannot be told apart."""
        prompt = self.asked.prompt
        if prompt is not None and prompt.chunk is not None:
            return f"prefill_chunk_size={prompt.chunk} cuts the encoder's features into pieces; leave it out"
        return (
            "the features that enter are not those that the encoder gave under this sieve; encode the pictures under it"
        )

    def _thin(
        self, stream: Stream, stage: Stage, index: int, x: Tensor, call: taps.Call | None, kwargs: dict[str, Any]
    ) -> Tensor:
        """One stage in front of layer ``index`` (0: the handoff), which is called with ``kwargs``: read, choose, reduce."""
        with self.clock, torch.no_grad():
            at, mask = stream.slots()
            grid = self.sight.grid(stream.images, mask) if stream.reduction.is_identity else None
            keep = resolve(stage.keep, index, self.anatomy, stream)
            ranks = self.ranked and stage.site == "handoff"
            whole = bool((budget.counts(keep, mask) == mask.sum(1)).all())
            if whole and not (ranks or self.scores):
                self._record(stage, stream, None, grid)
                return x
            own = self._own(stage)
            before = [n for n in self._names(stage) if n not in own]
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
            step = Reduction.keep(mask) if whole else self._step(stage, signals, keep, stream)
            score = stage.method.score(signals) if ranks or self.scores else None
            if ranks and score is not None:
                stream.rank(score)
        x = stream.leave(step, x)
        self._record(stage, stream, score, grid)
        return x

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
            return self.coming[index].call(x, self._given(stream, index, x, kwargs))
        cache = copied(cache, index)
        given = self._given(stream, index, x, compatibility.with_cache(kwargs, cache))
        if isinstance(cache.layers[index], EvictedLayer):
            cache.layers[index].awaited = True
        return self.coming[index].call(x, given)

    def _given(self, stream: Stream, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        return layer_arguments.arguments(self.language, stream, index, hidden, kwargs, self.model)


def _placed(hidden: Tensor, given: Sequence[str], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A layer's arguments, those at the places where they came: checkpoints may lead gradients to these only."""
    kwargs = dict(kwargs)
    return (hidden, *(kwargs.pop(name) for name in given)), kwargs
