"""A causal language model as one of bytes: what comes next behind any bytes, whatever tokens they would be cut into."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokensieve.text.align import Aligned, align
from tokensieve.text.covers import Reader, Tally, common, covers, tally, weighed
from tokensieve.text.infill import Filled, FillFormat, found_format
from tokensieve.text.loading import open_tokenizer
from tokensieve.text.models import start_of
from tokensieve.text.prefixes import Prefixes
from tokensieve.text.proper import Ids, Spelling, cut, following

END = 256
"""Where the end of the text stands among next bytes."""
PIECE = 2048
"""Bytes of text at most that are scored behind each other before the model begins anew."""


@dataclass(frozen=True)
class NextByte:
    """What comes next.

    Attributes:
        log_probs: (257,) float64 nats: of the 256 bytes, and of the end of the text at ``END``.
        outside: the share of the prefix's probability, among rows whose tokens but the last are proper, that these leave out, and
            by which they were divided: rows that end in a token which the tokenizer would not have written there, and special
            tokens that end nothing. Rows that are cut otherwise further back are in neither.
    """

    log_probs: Tensor
    outside: float


class Bytes:
    """What gives the next byte; see :class:`ByteModel` and :class:`Mixture`."""

    def next(self, prefix: str | bytes) -> NextByte:
        raise NotImplementedError

    def generate(
        self,
        prefix: str | bytes,
        until: str | bytes | None = None,
        max_bytes: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> bytes:
        """What follows a prefix, byte by byte; the prefix itself is left out.

        Bytes that would make no UTF-8 are never taken. The answer may stop inside a character where ``max_bytes`` cuts it.

        Args:
            until: text behind whose first place the answer stops, itself kept; by default only the end stops it.
            max_bytes: of the answer, at most.
            temperature: 0 takes the likeliest byte each time; above, bytes are drawn.

        Raises:
            ValueError: an argument out of range, or what :meth:`next` raises.
        """
        stop = _data(until, "until") if until is not None else None
        if stop == b"":
            raise ValueError("until is empty, and would stop before the first byte; give text, or None")
        if max_bytes < 0 or temperature < 0:
            raise ValueError(f"max_bytes is {max_bytes} and temperature {temperature}; both must be 0 or more")
        generator = torch.Generator().manual_seed(seed)
        text, out = _data(prefix, "prefix"), b""
        while len(out) < max_bytes:
            scores = self.next(text + out).log_probs.clone()
            rest = cut(text + out)[1]
            allowed = [*following(rest), *([] if rest else [END])]
            closed = torch.full_like(scores, -torch.inf)
            closed[allowed] = scores[allowed]
            if temperature == 0:
                taken = int(closed.argmax())
            else:
                taken = int(torch.multinomial((closed / temperature).softmax(-1), 1, generator=generator))
            if taken == END:
                break
            out += bytes([taken])
            if stop is not None and out.endswith(stop):
                break
        return out

    def score(self, text: str | bytes) -> float:
        """Bits for each byte of a text, read as the beginning of one; see the class for what it costs.

        Raises:
            ValueError: there is none.
        """
        data = _scored(text)
        nats = sum(float(self.next(data[:i]).log_probs[b]) for i, b in enumerate(data))
        return -nats / len(data) / math.log(2)


class ByteModel(Bytes):
    """A causal language model and its tokenizer, asked for bytes.

    What was read last is kept, for prefixes that go on from it: after changing the model's weights make a new one.

    Args:
        model: of transformers; tokenizer: anything that :func:`~tokensieve.text.loading.open_tokenizer` takes.

    Raises:
        ValueError: the tokenizer has ids that the model has no output for.
    """

    def __init__(self, model: Any, tokenizer: Any):
        self.model = model
        self.spelling = Spelling(open_tokenizer(tokenizer))
        self.prefixes = Prefixes(self.spelling.vocabulary)
        outputs = model.get_output_embeddings().weight.shape[0]
        if len(self.spelling.vocabulary) > outputs:
            raise ValueError(
                f"the tokenizer has ids up to {len(self.spelling.vocabulary) - 1}, and the model outputs for {outputs}; "
                "give the tokenizer that the model was trained with"
            )
        self._reader = Reader(model)

    @cached_property
    def ends(self) -> Ids:
        """Tokens that end a text."""
        given = getattr(self.model.generation_config, "eos_token_id", None)
        if given is None:
            given = self.model.config.get_text_config().eos_token_id
        return () if given is None else tuple(given) if isinstance(given, (list, tuple)) else (int(given),)

    def align(self, prompts: str | bytes | Sequence[str | bytes], back: int = 1) -> Aligned:
        """Prompts that may end inside a word, for ``generate``::

            aligned = b.align(["def compute_to"])
            out = model.generate(**aligned.inputs, max_new_tokens=20)
            print(aligned.completions(out))

        The last tokens are taken away, and until their text is there again only tokens pass that agree with it. Tokens of the
        prompt that are special are never taken, nor what stands before them.

        Args:
            prompts: text, or bytes that may end inside a character; several are padded on the left.
            back: tokens to take away at most; with 0 a prompt of whole characters goes in, and comes out, unchanged.

        Raises:
            ValueError: ``back`` is negative, there is no prompt, or no tokens write the end of one.
        """
        given = [prompts] if isinstance(prompts, (str, bytes)) else list(prompts)
        pad = self.model.generation_config.pad_token_id
        if pad is None:
            pad = self.ends[0] if self.ends else 0
        return align(self.spelling, self.prefixes, given, back, lambda: self._first, pad, self.model.device)

    @property
    def _first(self) -> Ids:
        """What an empty text is read behind."""
        return self.spelling.start or (start_of(self.model),)

    def next(self, prefix: str | bytes) -> NextByte:
        """The log-probabilities of the next byte, exact over all covers of the prefix whose finished part is proper.

        What the covers share is read once; a prefix that goes on where the last one stopped reads only what is new.

        Args:
            prefix: text, or bytes that may end inside a character. Special tokens in it are tokens.

        Raises:
            ValueError: it is not UTF-8, the tokenizer does not give it back, or it is longer than what the model reads.
        """
        found = self._tally(_data(prefix, "prefix"))[0]
        return NextByte(found.next.log(), found.outside)

    def score(self, text: str | bytes) -> float:
        """Bits for each byte of a text, over all covers, read as the beginning of one; comparable across tokenizers.

        The model begins anew every 2048 bytes. A piece costs little more than one pass over its tokens.

        Raises:
            ValueError: there is none, or what :meth:`next` raises.
        """
        data, nats, at = _scored(text), 0.0, 0
        while at < len(data):
            piece = data[at : at + PIECE]
            piece = piece if at + PIECE >= len(data) else cut(piece)[0]
            found, shared = self._tally(piece, spoken=True)
            nats += found.log_total + shared
            at += len(piece)
        return -nats / len(data) / math.log(2)

    def _tally(self, data: bytes, spoken: bool = False) -> tuple[Tally, float]:
        """The covers of some bytes summed up, and where asked for the log-probability of what they share."""
        try:
            frame = self.spelling.frame(data)
        except UnicodeDecodeError as problem:
            raise ValueError(f"the prefix is not UTF-8: {problem}") from problem
        whole = cut(frame.tail)[0]
        found = covers(frame, self.prefixes)
        if not found or frame.ids(whole) is None:
            raise ValueError(
                f"the tokenizer does not give {whole[-40:]!r} back (its normalizer or decoder changes text, or it has no "
                "tokens for it), so that no tokens stand for these bytes"
            )
        before = frame.head
        if frame.head[: len(self.spelling.start)] != self.spelling.start or not frame.head:
            before = (*(self.spelling.start if frame.head else self._first), *frame.head)
        shared = 0.0
        if spoken:
            row = before + found[0].ids[: common(found)]
            given = len(before) - len(frame.head) or 1
            shared = self._reader.spoken(row, given) if len(row) > given else 0.0
        return tally(self.prefixes, found, weighed(self._reader, before, found), self.ends), shared

    def infill(self, prefix: str, suffix: str, form: FillFormat | None = None, max_bytes: int = 256) -> Filled:
        """The text between two others, whatever tokens they are cut inside of.

        Args:
            form: the model's special tokens of infilling; by default those that the tokenizer has.
            max_bytes: of the text between, at most.

        Raises:
            ValueError: the tokenizer has no such tokens, or lacks some of ``form``.
        """
        form = form or found_format(self.spelling)
        form.check(self.spelling)
        extra = len(form.split(prefix, suffix).rest.encode())
        answer = self.generate(form.prompt(prefix, suffix), max_bytes=max_bytes + extra)
        return form.filled(prefix, suffix, answer, ended=len(answer) < max_bytes + extra)


class Mixture(Bytes):
    """Several models' next bytes in one: their probabilities, weighed and added.

    Source: Phan et al. (arXiv 2410.09303), section 5. ``score`` asks every model at every byte.
    """

    def __init__(self, models: Sequence[Bytes], weights: Sequence[float] | None = None):
        given = [1.0] * len(models) if weights is None else [float(w) for w in weights]
        if not models or len(given) != len(models) or min(given) < 0 or not 0 < sum(given) < float("inf"):
            raise ValueError(
                f"weights is {weights} for {len(models)} models; there must be one of 0 or more for each, not all of them 0"
            )
        self.models = tuple(models)
        self.weights = tuple(w / sum(given) for w in given)

    def next(self, prefix: str | bytes) -> NextByte:
        """The next byte's log-probabilities; ``outside`` is the models' mean, by weight."""
        each = [m.next(prefix) for m in self.models]
        p = sum(w * e.log_probs.exp() for w, e in zip(self.weights, each, strict=True))
        return NextByte(torch.as_tensor(p).log(), sum(w * e.outside for w, e in zip(self.weights, each, strict=True)))


def byte_model(model: Any, tokenizer: Any) -> ByteModel:
    """A causal language model of transformers, asked for bytes instead of tokens; see :class:`ByteModel`."""
    return ByteModel(model, tokenizer)


def mix_bytes(models: Sequence[Bytes], weights: Sequence[float] | None = None) -> Mixture:
    """An ensemble of models whose tokenizers may differ; equal weights by default, which are divided by their sum.

    Raises:
        ValueError: weights that fit no models.
    """
    return Mixture(models, weights)


def _data(text: Any, name: str) -> bytes:
    if not isinstance(text, (str, bytes)):
        raise ValueError(f"{name} is a {type(text).__name__}; it must be text or bytes")
    return text.encode() if isinstance(text, str) else text


def _scored(text: str | bytes) -> bytes:
    data = _data(text, "text")
    if not data:
        raise ValueError("text is empty, and has no byte to count bits for")
    return data
