"""Tokens of one word become their mean inside a model of text, an encoder or a causal one.

Source: Saad et al., On the Effect of Token Merging on Pre-trained Models for Code (arXiv 2507.14423), by the mean. Deviation: the
word takes the place of its first token, so that positions stay those of the text; in a causal model the last word of a prompt is
left in tokens, since the answer goes on from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.core.reduction import Reduction
from tokensieve.parts.select import compact
from tokensieve.sites.cache import gathered_masks
from tokensieve.sites.model import calls, compatibility
from tokensieve.sites.model.blocks import Stack, stack_of
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.decoder import decoder
from tokensieve.sites.model.fingerprint import Fingerprint
from tokensieve.sites.sieve import attached
from tokensieve.sites.visual import layer_arguments
from tokensieve.sites.visual.images import Images
from tokensieve.sites.visual.token_stream import Stream


def identifiers(encoding: Any, texts: Sequence[str] | None = None) -> Tensor:
    """Which word each token is of, as a fast tokenizer of transformers says it.

    Args:
        encoding: what the tokenizer gave for a list of texts.
        texts: these; words that are no identifiers of code (punctuation, numbers, blanks) are then left alone.

    Returns:
        ``(B, N)`` long; -1 at special tokens, padding, and words that are left alone.

    Raises:
        ValueError: a slow tokenizer, or texts of another number.
    """
    if not getattr(encoding, "is_fast", False):
        raise ValueError("the tokenizer is a slow one, which does not tell words; load it with AutoTokenizer")
    rows = len(encoding.encodings)
    if texts is not None and len(texts) != rows:
        raise ValueError(f"{len(texts)} texts and {rows} rows of tokens; give the texts that were encoded")
    out = []
    for i in range(rows):
        words = encoding.word_ids(i)
        if texts is not None:
            named = {}
            for w in {w for w in words if w is not None}:
                span = encoding.word_to_chars(i, w)
                named[w] = texts[i][span.start : span.end].strip(" \t.").isidentifier()
            words = [w if w is not None and named[w] else None for w in words]
        out.append([-1 if w is None else w for w in words])
    return torch.tensor(out)


class MergedWords:
    """A model under which the tokens of one word are one from some layer on; see :func:`merged_words`.

    Attributes:
        counts: ``(B,)`` long, the tokens of each row that were left in the last pass of a text; None before one.
    """

    def __init__(self, model: nn.Module, words: Tensor, layer: int = 1):
        self.model = model
        self.stack, self.causal = _stack(model)
        self.layer = self.stack.layer(layer)
        if words.dim() != 2:
            raise ValueError(f"words has shape {tuple(words.shape)}; it must be (B, N), a number for each token")
        self.words = words
        self.counts: Tensor | None = None
        self._stream: Stream | None = None
        self._print = Fingerprint(self.stack.root)
        self._own = [i for i, a in enumerate(self.stack.attentions) if a is not None and self.stack.sources[i] == i]
        self._undo: list[Detach] = []

    def __enter__(self) -> MergedWords:
        stack = self.stack
        if attached(self.model):
            raise ValueError(
                "a sieve is attached to the model, and words do not become one under it; detach() it, or use one of them"
            )
        self._undo = [calls.before(stack.root, self._begin)]
        for i, module in enumerate(stack.layers):
            self._undo.append(module.register_forward_pre_hook(self._before(i), with_kwargs=True).remove)
        self._undo.append(stack.layers[-1].register_forward_hook(self._behind, prepend=True).remove)
        self._undo.append(stack.root.register_forward_hook(self._end, always_call=True).remove)
        return self

    def __exit__(self, *_: object) -> None:
        while self._undo:
            self._undo.pop()()

    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = kwargs.get("inputs_embeds")
        given = kwargs["input_ids"] if given is None else given
        cache = compatibility.cache_of(kwargs)
        if self.causal:
            gathered_masks.begin(cache, self._print, self._own)
        past = 0 if cache is None else int(cache.get_seq_length())
        self._stream = None
        if past:
            return  # what is decoded; the words are those of the prompt
        shape = tuple(given.shape[:2])
        if shape != tuple(self.words.shape):
            raise ValueError(
                f"words are of shape {tuple(self.words.shape)} and the model is given {shape} tokens; take merged_words anew for "
                "each batch of texts"
            )
        mask = kwargs.get("attention_mask")
        real = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else torch.ones(shape, dtype=torch.bool)
        order, held = compact(real.to(given.device))
        one = torch.ones(shape[0], dtype=torch.long, device=given.device)
        place = torch.where(held, order, -1)
        images = Images(torch.arange(shape[0], device=given.device), place, None, one, one == 0)
        self._stream = Stream(images, real.to(given.device))
        ids = kwargs.get("position_ids")
        self._stream.ids = torch.arange(shape[1], device=given.device).expand(shape) if ids is None else ids

    def _before(self, index: int) -> Callable[..., Any]:
        names = calls.names_of(self.stack.layers[index])

        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
            hidden, stream = kwargs.pop(names[0]), self._stream
            if stream is not None and index == self.layer:
                hidden = stream.leave(self._merging(stream), hidden)
                self.counts = stream.reduction.counts
            if stream is not None and stream.reduced:
                kwargs = layer_arguments.arguments(self.stack, stream, index, hidden, kwargs, self._print)
            elif self.causal:
                kwargs = gathered_masks.adapt(self.stack, index, hidden, kwargs, kwargs.get("position_ids"))
            given = names[1 : len(args)]
            return (hidden, *(kwargs.pop(name) for name in given)), kwargs

        return hook

    def _merging(self, stream: Stream) -> Reduction:
        """Each run of tokens of one word into its first."""
        place, real = stream.images.place.clamp(min=0), stream.images.mask
        word = torch.where(real, self.words.to(place.device).gather(1, place), -1)
        new = torch.ones_like(real)
        new[:, 1:] = (word[:, 1:] != word[:, :-1]) | (word[:, 1:] < 0)
        if self.causal:
            last = word.gather(1, real.sum(1, keepdim=True).clamp(min=1) - 1)
            new |= (word == last) & (last >= 0)
        here = torch.arange(word.shape[1], device=word.device).expand_as(word)
        first = torch.where(new, here, 0).cummax(1).values
        return Reduction.merge(new & real, first.masked_fill(~real, -1))

    def _behind(self, module: nn.Module, args: Any, output: Any) -> Any:
        stream = self._stream
        if stream is None or not stream.reduced:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        full = self._spread(stream, hidden)
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def _spread(self, stream: Stream, hidden: Tensor) -> Tensor:
        """``(B, L, D)``: every token has the state of its word; in a causal model the tokens behind a word's first one have that
        in which they left, since the word's own holds what they say."""
        full = stream.whole(hidden)
        if self.causal:
            return full
        place, real = stream.images.place, stream.images.mask
        rows = torch.arange(len(place), device=place.device)[:, None]
        slots = full[rows, place.gather(1, stream.reduction.kept).clamp(min=0)]
        states = slots.gather(1, stream.reduction.owner.clamp(min=0)[..., None].expand(-1, -1, slots.shape[-1]))
        out = full.clone()
        out[rows.expand_as(place)[real], place[real]] = states[real]
        return out

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        stream, self._stream = self._stream, None
        states = getattr(output, "hidden_states", None)
        if stream is not None and states is not None:
            output.hidden_states = tuple(stream.restore(h) for h in states)


def merged_words(model: nn.Module, words: Tensor, layer: int = 1) -> MergedWords:
    """Run a model of code, or of any text, on fewer tokens: from a layer on, those of one word are one::

        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        with merged_words(model, identifiers(inputs, texts)) as merged:
            out = model(**inputs)  # or model.generate(**inputs)
        print(merged.counts, "tokens were left")

    Outputs keep their length. In an encoder every token comes out with the state of its word; in a causal model a word's state
    stands at its first token, and only what the prompt holds is merged.

    Args:
        model: of transformers.
        words: ``(B, N)`` long, equal at tokens beside each other that are of one word, -1 at those that stay alone
            (:func:`identifiers`); for the batch that the model is given.
        layer: in front of which they become one; counted from the end where negative.

    Raises:
        ValueError: a model without blocks that are known, a layer that it lacks; within, a batch of another shape.
    """
    return MergedWords(model, words, layer)


def _stack(model: nn.Module) -> tuple[Stack, bool]:
    """The blocks of a model of text, and whether they are causal."""
    config: Any = getattr(model, "config", None)
    causal = bool(getattr(config, "is_decoder", False)) or "ForCausalLM" in type(model).__name__
    try:
        return decoder(model), True
    except ValueError:
        if causal or getattr(config, "is_encoder_decoder", False):
            raise
    return stack_of(getattr(model, "base_model", model)), False
