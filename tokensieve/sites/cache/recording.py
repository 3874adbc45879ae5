"""Recordings: one prefill with every entry, and what any cache method would have made of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.core.plan import Plan
from tokensieve.sites.cache.evicted_layer import EvictedLayer
from tokensieve.sites.cache.sieved_layer import SievedLayer
from tokensieve.sites.model import compatibility, taps
from tokensieve.sites.model.clock import device, now
from tokensieve.sites.model.compatibility import Cache, DynamicCache
from tokensieve.sites.model.decoder import decoder, full_layers


@dataclass
class LayerPass:
    """One layer's part in a prefill.

    Attributes:
        calls: of its attention kernel, where the layer sees every token; keys and values are the cache's own, not copies.
        wraps: from hidden states to what the layer returns.
    """

    calls: list[taps.Call] = field(default_factory=list)
    wraps: Callable[[Tensor], Any] = lambda hidden: hidden


@dataclass(frozen=True)
class Recording:
    """A prompt's prefill, from which every cache method can start (see :func:`record`).

    Attributes:
        inputs: what the model was given.
        cache: every entry of the prompt; to be read, not written to: :meth:`full` copies it.
        logits: ``(B, V)``, at the last token.
        layers: what each layer did.
        seconds: that the prefill took.
    """

    model: nn.Module
    inputs: Mapping[str, Any]
    cache: Cache
    logits: Tensor
    layers: tuple[LayerPass, ...]
    seconds: float

    def full(self) -> Cache:
        """A copy of the cache with every entry, as the plain model would hand it on."""
        return copy.deepcopy(self.cache)

    @torch.no_grad()
    def extended(self, more: Tensor) -> Recording:
        """The recording of this prompt with more tokens behind it, ``(B, t)`` ids, which are all that is computed.

        Raises:
            ValueError: the prompt is padded, or holds more than ids.
        """
        ids, mask = self.inputs["input_ids"], self.inputs.get("attention_mask")
        if set(self.inputs) - {"input_ids", "attention_mask"} or (mask is not None and not bool(mask.all())):
            raise ValueError("only a prompt of ids without padding is extended; record the longer one by itself")
        with _noted(self.model) as layers:
            where, cache = device(self.model), self.full()
            began = now(where)
            logits = _run(self.model, {"input_ids": more}, cache)
            seconds = self.seconds + now(where) - began
        for done, before in zip(layers, self.layers, strict=True):
            done.calls[:] = [_behind(a, b) for a, b in zip(before.calls, done.calls, strict=True)]
        return Recording(self.model, {"input_ids": torch.cat([ids, more], 1)}, cache, logits, layers, seconds)

    @torch.no_grad()
    def compressed(self) -> Cache:
        """The cache that this prefill would leave under the sieve that is attached now; a copy, the recording stays as it is.

        The model runs with layers that repeat what they did: their attention is not computed again, and what is attached sees
        the same calls and the same entries as in a prefill of its own.
        """
        cache = DynamicCache(config=_config(self.model))
        with self._repeating(cache):
            _run(self.model, self.inputs, cache)
        for layer in cache.layers:
            if isinstance(layer, EvictedLayer):
                layer.settle()
        return cache

    @contextmanager
    def _repeating(self, cache: Cache) -> Iterator[None]:
        """Have the layers of the language model repeat what they did, into ``cache``."""
        language = decoder(self.model)
        held = [layer.__dict__.get("forward") for layer in language.layers]
        try:
            for i, layer in enumerate(language.layers):
                layer.__dict__["forward"] = self._repeat(i, cache, language.attentions[i])
            yield
        finally:
            for layer, forward in zip(language.layers, held, strict=True):
                layer.__dict__.pop("forward", None)
                if forward is not None:
                    layer.__dict__["forward"] = forward

    def _repeat(self, index: int, cache: Cache, attention: nn.Module | None) -> Callable[..., Any]:
        done = self.layers[index]

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            own: Any = self.cache.layers[index] if index < len(self.cache.layers) else None
            if done.calls:
                assert attention is not None
                cache.layers[index].update(own.keys, own.values)
                for call in done.calls:
                    taps.show(attention, call)
            elif own is not None:
                cache.layers[index] = copy.deepcopy(own)
            return done.wraps(hidden_states)

        return forward


@torch.no_grad()
def record(model: nn.Module, inputs: Mapping[str, Any] | Tensor) -> Recording:
    """Prefill a prompt with every entry, so that any number of cache methods can each compress a copy of it.

    What is kept beside the cache are the queries of all layers: H / G times the room of its keys, H query heads sharing G.

    Args:
        inputs: ``input_ids`` and, with padding on the left, ``attention_mask``; or a tensor of ids.

    Raises:
        ValueError: tokens left in this prefill: a sieve is attached whose stages act on it.

    Example:
        >>> made = record(model, prompt)  # doctest: +SKIP
        >>> with ts.sieve(model, "snapkv", keep=0.25):
        ...     cache = made.compressed()
    """
    given = {"input_ids": inputs} if isinstance(inputs, Tensor) else dict(inputs)
    with _noted(model) as layers:
        where, cache = device(model), DynamicCache(config=_config(model))
        began = now(where)
        logits = _run(model, given, cache)
        seconds = now(where) - began
    if any(isinstance(layer, SievedLayer) for layer in cache.layers):
        raise ValueError(
            "tokens left while this prefill was recorded; detach the sieve, record, and attach it again to compress"
        )
    return Recording(model, given, cache, logits, layers, seconds)


def replayable(plan: Plan) -> bool:
    """Whether a plan's prefill is the plain one until entries leave behind each layer's attention, so that it can start from a
    recording; others change what the layers compute."""
    return all(
        s.site == "cache" and not s.cache_method.query_block_size and not s.cache_method.sparse_decode
        for s in plan.stages
    )


@contextmanager
def _noted(model: nn.Module) -> Iterator[tuple[LayerPass, ...]]:
    """What each layer does while this is open."""
    language = decoder(model)
    layers = tuple(LayerPass() for _ in language.layers)
    undo = [x.register_forward_hook(_note(done)).remove for x, done in zip(language.layers, layers, strict=True)]
    try:
        for i in full_layers(language):
            attention = language.attentions[i]
            if attention is not None:
                undo.append(taps.attach(attention, observe=layers[i].calls.append))
        yield layers
    finally:
        for detach in undo:
            detach()


def _behind(before: taps.Call, now: taps.Call) -> taps.Call:
    """One call for two passes, the second over the entries of both."""
    return replace(now, query=torch.cat([before.query, now.query], 2), mask=None, causal=True)


def _note(done: LayerPass) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, tuple):
            done.wraps = lambda hidden: (hidden, *(None for _ in output[1:]))

    return hook


def _run(model: nn.Module, inputs: Mapping[str, Any], cache: Cache) -> Tensor:
    given = compatibility.cache_argument(model, cache)
    return model(**inputs, **given, use_cache=True, logits_to_keep=1).logits[:, -1]


def _config(model: nn.Module) -> Any:
    config: Any = model.config
    return config.get_text_config(decoder=True)
