"""The handoff and prefill sites: visual tokens leave in front of the language model, or between its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.method import Method
from tokensieve.parts import place
from tokensieve.parts.budget import Keep
from tokensieve.plan import Stage
from tokensieve.reduction import Reduction
from tokensieve.signals import Signals
from tokensieve.sites import masks, readings, taps
from tokensieve.sites.anatomy import Anatomy
from tokensieve.sites.cache import SievedLayer
from tokensieve.sites.clock import Clock
from tokensieve.sites.encoder import ENCODER_SIGNALS, Detach, EncoderSite
from tokensieve.sites.resolve import layered, resolve
from tokensieve.sites.sight import Sight
from tokensieve.sites.stream import Images, Stream
from tokensieve.sites.trace import StageTrace, Trace

AVAILABLE = {"handoff": (*ENCODER_SIGNALS, "entropy", "paired", "text", "features")}


class LanguageSite:
    """Carries a :class:`Stream` through each pass of the language model that brings visual tokens.

    A pass runs: :meth:`_see` (find the visual tokens) -> :meth:`_enter` (handoff) -> :meth:`_layer` for every layer (prefill
    stages, masks, caches) -> :meth:`_leave` (states back to full length) -> :meth:`_done`. Passes without visual tokens only
    get their masks gathered where the cache holds fewer entries than the sequence has tokens.
    """

    def __init__(self, anatomy: Anatomy, stages: Sequence[Stage], encoder: EncoderSite | None, clock: Clock, seed: int):
        assert anatomy.language is not None
        self.anatomy, self.language, self.encoder = anatomy, anatomy.language, encoder
        self.stages, self.clock, self.seed = stages, clock, seed
        self.handoff = [s for s in stages if s.site == "handoff"]
        self.prefill = layered(stages, self.language)
        if 0 in self.prefill:
            raise ValueError("a prefill stage at layer 0 has no layer before it to read; use site='handoff'")
        ranks = any(type(stage.method).score is not Method.score for stage in self.handoff)
        self.available = {**AVAILABLE, "prefill": (*readings.LAYER_SIGNALS, *(("ranking",) if ranks else ()))}
        for stage in stages:
            if stage.site != "encoder":
                readings.wanted(stage.method.needs, self.available[stage.site], stage.site, stage.method.name)
        needs = [need for stage in self.handoff for need in stage.method.needs]
        self.sight = Sight(anatomy, needs, encoder, clock)
        self.trace: Trace | None = None
        self._visual: Tensor | None = None
        self._stream: Stream | None = None
        self._calls: dict[int, taps.Call] = {}

    def attach(self) -> list[Detach]:
        anatomy, language = self.anatomy, self.language
        assert anatomy.base is not None
        out = self.sight.attach()
        out.append(anatomy.base.register_forward_pre_hook(self._see, with_kwargs=True).remove)
        out.append(language.root.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
        for i, layer in enumerate(language.layers):
            out.append(layer.register_forward_pre_hook(self._layer(i), with_kwargs=True).remove)
        out.append(language.layers[-1].register_forward_hook(self._leave, prepend=True).remove)
        out.append(language.root.register_forward_hook(self._done).remove)
        for i, stages in self.prefill.items():
            out += readings.listen(self._calls, i, language, stages, lambda: self._stream is not None)
        return out

    # ---- a pass, in its order ---------------------------------------------------------------------------------------

    def _see(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._visual, self._stream = None, None
        brings = any(v is not None for k, v in kwargs.items() if k.startswith(("pixel_values", "mm_encoder")))
        if not brings:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is not None:
            visual = ids == self.anatomy.image_token_id
        else:
            embed = self.anatomy.model.get_input_embeddings()  # type: ignore[operator]
            token = torch.tensor(self.anatomy.image_token_id, device=kwargs["inputs_embeds"].device)
            visual = (kwargs["inputs_embeds"] == embed(token)).all(-1)
        if bool(visual.any()):
            self._visual = visual

    def _enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        visual, self._visual = self._visual, None
        if visual is None:
            return None
        x = kwargs["inputs_embeds"]
        given = kwargs.get("attention_mask")
        length = visual.shape[1]
        real = torch.ones_like(visual) if given is None or given.dim() != 2 else given[:, -length:].bool()
        images = self._images(visual)
        stream = self._stream = Stream(images, real)
        self.trace = Trace([], images.row.tolist(), [0.0] * len(self.language.layers))
        if self.encoder is not None and self.encoder.total is not None:
            x = self._from_encoder(stream, self.encoder.total, x)
        for stage in self.handoff:
            x = self._thin(stream, stage, 0, x, None)
        if not stream.reduced:
            return None
        past = self._past(kwargs.get("past_key_values"))
        ids = kwargs.get("position_ids")
        if ids is None:
            ids = torch.arange(past, past + length, device=x.device)[None]
        policies = {s.positions for s in (*self.handoff, *([self.encoder.stage] if self.encoder else []))}
        policy = "compact" if "compact" in policies else "original"
        ids = self._place(stream, ids, stream.index, policy)
        old = torch.ones(len(visual), past, dtype=torch.long, device=x.device)
        if given is not None:
            old = given[:, :-length]
        new = (stream.index >= 0).to(old.dtype)
        changed = masks.arguments(kwargs, stream.index, length)
        changed |= {
            "inputs_embeds": x,
            "attention_mask": torch.cat([old, new], 1),
            "position_ids": ids,
        }
        stream.entered()
        return args, changed

    def _layer(self, index: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            stream = self._stream
            if stream is None:
                return self._decode(index, args, kwargs)
            hidden = args[0] if args else kwargs["hidden_states"]
            call = self._calls.pop(index, None)
            for stage in self.prefill.get(index, ()):
                here = stream.index
                hidden = self._thin(stream, stage, index, hidden, call)
                self._renumber(stream, stage, hidden, kwargs["position_ids"])
                if call is not None and stream.index is not here:
                    call = call.among(stream.stayed)
            assert self.trace is not None
            self.trace.layer_tokens[index] = float(stream.reduction.counts.float().mean())
            if not stream.reduced:
                return None
            kwargs = self._gather(stream, index, hidden, kwargs)
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._stream is None or not self._stream.reduced:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        full = self._stream.restore(hidden)
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def _done(self, module: nn.Module, args: Any, output: Any) -> None:
        states = getattr(output, "hidden_states", None)
        if self._stream is not None and states is not None:
            output.hidden_states = tuple(self._stream.restore(h) for h in states)
        self._stream = None
        self._calls.clear()

    # ---- the steps --------------------------------------------------------------------------------------------------

    def _images(self, visual: Tensor) -> Images:
        if any(isinstance(s.keep, Keep) and s.keep.per == "prompt" for s in self.stages):
            if self.encoder is not None:
                raise ValueError("Keep(per='prompt') cannot follow an encoder stage, whose budget is per image")
            return Images.by_prompt(visual)
        grid = self.sight.grid()
        return Images.split(visual, grid[0] * grid[1] if grid else None)

    def _from_encoder(self, stream: Stream, total: Reduction, x: Tensor) -> Tensor:
        """The encoder's features came back at full length, merged tokens repeated: one of each goes on."""
        copies = len(stream.images.row) // total.batch
        total = total.rows(stream.images.repeated(copies)[:: total.n] // total.n)
        chosen = torch.zeros(total.batch, total.n, dtype=torch.bool, device=x.device)
        chosen.scatter_(1, total.kept, True)
        x = stream.leave(Reduction.keep(chosen), x, merge=False)
        stream.reduction = total
        assert self.encoder is not None
        self._record(self.encoder.stage, stream, self.encoder.score, self.encoder.grid)
        return x

    def _thin(self, stream: Stream, stage: Stage, index: int, x: Tensor, call: taps.Call | None) -> Tensor:
        """One stage in front of layer ``index`` (0: the handoff): read, choose, reduce."""
        with self.clock, torch.no_grad():
            names = readings.wanted(stage.method.needs, self.available[stage.site], stage.site, stage.method.name)
            given: dict[str, Any] = dict(readings.read(names, stream, x, call))
            if stage.site == "handoff":
                given |= {**self.sight.signals(stream), **self.sight.entropy(stream)}
            at, mask = stream.slots()
            grid = self.sight.grid(mask) if stream.reduction.is_identity else None
            signals = Signals(
                features=stream.pick(x, at),
                mask=None if bool(mask.all()) else mask,
                grid=grid,
                sizes=None if stream.reduction.drops else stream.reduction.sizes(),
                seed=self.seed,
                **given,
            )
            assert self.trace is not None
            before = self.trace.layer_tokens[:index]
            step = stage.method(signals, resolve(stage.keep, before, self.anatomy, stream))
            score = stage.method.score(signals)
        if stage.site == "handoff" and score is not None:
            stream.rank(score)
        if not step.is_identity:
            x = stream.leave(step, x)
        self._record(stage, stream, score, grid)
        return x

    def _record(self, stage: Stage, stream: Stream, score: Tensor | None, grid: tuple[int, int] | None) -> None:
        assert self.trace is not None
        self.trace.stages.append(StageTrace(stage, stream.reduction, score, grid))

    def _place(self, stream: Stream, ids: Tensor, index: Tensor, policy: str) -> Tensor:
        """Position ids of the survivors; remembers by how much later ids are lowered."""
        full = ids.expand(*ids.shape[:-2], index.shape[0], ids.shape[-1])
        new = place.positions(full, index.clamp(min=0), index >= 0, policy)
        if policy == "compact":
            lowered = place.shift(full, index.clamp(min=0), index >= 0, policy)
            stream.shift = lowered if stream.shift is None else stream.shift + lowered
        return new

    def _renumber(self, stream: Stream, stage: Stage, hidden: Tensor, ids: Tensor) -> None:
        """Later layers see the survivors of a prefill stage at consecutive positions, where the stage asks for it."""
        if stage.positions == "compact" and stream.reduced:
            new = self._place(stream, ids, stream.entry, "compact")
            stream.renumbered = (new, self._rotary(hidden, new))

    def _rotary(self, hidden: Tensor, ids: Tensor) -> Any:
        """Rotary tables for renumbered positions."""
        rotary = getattr(self.language.root, "rotary_emb", None)
        if rotary is None:
            raise ValueError(f"{type(self.language.root).__name__} has no rotary positions; use positions='original'")
        return rotary(hidden, position_ids=ids)

    def _gather(self, stream: Stream, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The layer's arguments for the tokens that are there; tells its cache layer which they are."""
        entered = kwargs["position_ids"].shape[-1] if kwargs.get("position_ids") is not None else None
        n = entered if entered is not None else int(stream.entry.max()) + 1
        thinned = stream.entry.shape[1] != n
        out = masks.arguments(kwargs, stream.entry, n) if thinned else dict(kwargs)
        if thinned and stream.renumbered is not None:
            out["position_ids"], out["position_embeddings"] = stream.renumbered
        cache = kwargs.get("past_key_values")
        columns, past = stream.entry, 0
        holes = thinned and stream.holes
        if cache is not None:
            layer = SievedLayer.of(cache, index, hidden.shape[0], hidden.device)
            past, holes = layer.length, holes or layer.holes
            assert layer.columns is not None
            columns = torch.cat([layer.columns, torch.where(stream.entry >= 0, stream.entry + past, -1)], 1)
            named = torch.where(stream.index >= 0, stream.index + past, -1)
            layer.expect(named, stream.length, stream.holes)
            if layer.shift is not None:
                self._lower(out, layer.shift, hidden)
            layer.lower(stream.shift)
        if thinned or past:
            kind = taps.kind(self.language.config)
            rows = stream.entry if thinned else None
            out["attention_mask"] = masks.attention(kwargs.get("attention_mask"), rows, columns, holes, kind, hidden)
        return out

    def _decode(self, index: int, args: Any, kwargs: dict[str, Any]) -> Any:
        cache = kwargs.get("past_key_values")
        layer = cache.layers[index] if cache is not None and len(cache.layers) > index else None
        if not isinstance(layer, SievedLayer):
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        mask = kwargs.get("attention_mask")
        changed = dict(kwargs)
        if mask is not None or layer.holes:
            kind = taps.kind(self.language.config)
            columns = layer.upcoming(hidden.shape[1])
            changed["attention_mask"] = masks.attention(mask, None, columns, layer.holes, kind, hidden)
        if layer.shift is not None:
            self._lower(changed, layer.shift, hidden)
        return args, changed

    def _lower(self, kwargs: dict[str, Any], shift: Tensor, hidden: Tensor) -> None:
        """Tokens after a compacted prompt go on from its new end."""
        kwargs["position_ids"] = kwargs["position_ids"] - shift[..., None]
        kwargs["position_embeddings"] = self._rotary(hidden, kwargs["position_ids"])

    def _past(self, cache: Any) -> int:
        return 0 if cache is None else int(cache.get_seq_length())
