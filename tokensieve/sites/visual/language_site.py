"""The handoff and prefill sites: visual tokens leave in front of the language model, or between its layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.core.stage import Stage
from tokensieve.parts.budget import Keep
from tokensieve.sites.cache import gathered_masks
from tokensieve.sites.encoder.site import EncoderSite
from tokensieve.sites.model import calls, checkpointing, compatibility, masks, taps
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.clock import Clock
from tokensieve.sites.model.ledger import Ledger, pictured
from tokensieve.sites.model.structure import Anatomy
from tokensieve.sites.model.trace import Trace
from tokensieve.sites.visual import layer_signals, renumbering
from tokensieve.sites.visual.deepstack import Deepstack
from tokensieve.sites.visual.encoder_listener import Listener
from tokensieve.sites.visual.encoder_signals import Sight
from tokensieve.sites.visual.focus_site import FocusSite
from tokensieve.sites.visual.generate_prompt import GeneratePrompt
from tokensieve.sites.visual.layer_budgets import layered
from tokensieve.sites.visual.passes import Pass
from tokensieve.sites.visual.stream_stages import StreamStages
from tokensieve.sites.visual.token_stream import Stream


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
        assert anatomy.base is not None
        self.anatomy, self.language, self.encoder = anatomy, anatomy.language, encoder
        self.stages = stages
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
        needs = [need for stage in self.handoff for need in stage.needs]
        self.listener = Listener(anatomy, needs, encoder, clock)
        self.sight = Sight(anatomy, self.listener)
        self.asked = GeneratePrompt(anatomy.model, ledger)
        self.steps = StreamStages(anatomy, stages, self.prefill, self.sight, self.asked, clock, ledger, scores)
        self.focus = FocusSite(self.language, [s for s in stages if s.site == "focus"], ledger)
        ledger.visual += [s for s in stages if s.in_encoder or s.site == "handoff"]
        ledger.visual += [s for here in self.prefill.values() for s in here]
        if any(s.method.restores_dropped for here in self.prefill.values() for s in here):
            if any(s.positions == "compact" for s in stages):
                raise ValueError("positions='compact': tokens that come back later need those they had; use 'original'")
            # What never entered the language model could not come back.
            self.prefill, self.handoff = {0: self.handoff, **self.prefill}, []
        ledger.models += [anatomy.base, self.language.root]
        ledger.encoders += [stack.root for stack in self.listener.towers]
        ledger.anatomy = anatomy
        attentions = enumerate(self.language.attentions)
        self.own = [i for i, attention in attentions if attention is not None and self.language.sources[i] == i]
        self.now: Pass | None = None

    @property
    def trace(self) -> Trace | None:
        return self.steps.trace

    @property
    def stacks(self) -> list[Stack]:
        inside = [] if self.encoder is None else self.encoder.stacks
        return [*inside, *self.listener.watched, self.language]

    def attach(self) -> list[Detach]:
        anatomy, language = self.anatomy, self.language
        assert anatomy.base is not None
        out = [] if self.encoder is None else self.encoder.attach()
        out += [*self.asked.attach(), *self.listener.attach(), self._end]
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
            before = [s for s in stages if len(self.steps.own(s)) < len(s.needs)]
            if i > 0 and before:
                out += layer_signals.listen(self._listening, i, language, before)
        out += [coming.attach() for coming in self.steps.coming.values()]
        return out

    # ---- a pass, in its order ---------------------------------------------------------------------------------------

    def _see(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        now = self.now = Pass(around=True)
        now.pictures = self.listener.begin(kwargs.get("mm_encoder_outputs"))
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
        gathered_masks.begin(compatibility.cache_of(kwargs), self.steps.model, self.own)
        kinds = now.kinds
        if not kinds:
            self.listener.unseen(now.around)
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
        self.steps.trace = Trace([], images.row.tolist(), [0.0] * len(self.language.layers), images.place)
        ids = kwargs.get("position_ids")
        if ids is None:
            ids = torch.arange(past, past + length, device=x.device)[None]
        stream.ids = ids.expand(*ids.shape[:-2], len(x), length)
        now.deep, changed = Deepstack.take(kwargs, stream, len(self.language.layers))
        whole = masks.windowed(self.language.root, x, kwargs, past, sequence)
        if self.encoder is not None:
            x = self.steps.from_encoder(stream, self.encoder.stage, x)
        for stage in self.handoff:
            x = self.steps.thin(stream, stage, 0, x, None, {})
        if not stream.reduced:
            return args, changed
        policies = {s.positions for s in (*self.handoff, *([self.encoder.stage] if self.encoder else []))}
        policy = "compact" if "compact" in policies else "original"
        stream.ids = renumbering.placed(stream, stream.ids, stream.index, policy)
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
                hidden = self.steps.thin(stream, stage, index, hidden, call, kwargs)
                if stage.positions == "compact" and stream.reduced:
                    stream.renumbered = renumbering.renumbered(self.language.root, stream, hidden)
                elif stream.renumbered is not None and stream.index is not here:
                    stream.renumbered = renumbering.fewer(self.language.root, stream, hidden)
                if call is not None and stream.index is not here:
                    call = call.restricted_to(stream.stayed)
            stream.layer_counts.append(stream.reduction.counts)
            self.focus.before(index, stream, kwargs, partial(self.sight.grid, stream.images))
            if not stream.reduced:
                return _placed(hidden, given, gathered_masks.adapt(self.language, index, hidden, kwargs, now.ids))
            return _placed(hidden, given, self.steps.given(stream, index, hidden, kwargs))

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
        if stream is not None and stream.layer_counts and self.trace is not None and output is not None:
            self.trace.layer_tokens = torch.stack(stream.layer_counts).float().mean(1).tolist()
        self._end()

    def _end(self, *_: object) -> None:
        """The pass is over, however it ended."""
        self.now = None
        self.listener.end()
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


def _placed(hidden: Tensor, given: Sequence[str], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A layer's arguments, those at the places where they came: checkpoints may lead gradients to these only."""
    kwargs = dict(kwargs)
    return (hidden, *(kwargs.pop(name) for name in given)), kwargs
