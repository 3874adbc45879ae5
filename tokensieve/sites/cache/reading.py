"""Reading a text by chunks, until probes on attention heads say that it is enough to answer.

Source: Xie et al., Knowing When to Stop: Dynamic Context Cutoff for Large Language Models (arXiv 2502.01025). Deviation: what is
probed behind each chunk is the question, asked there and forgotten again, and not the chunk's own last token: the heads that
answer look for what was asked.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.parts.attention import rows
from tokensieve.parts.probes import Probes, fit
from tokensieve.sites.cache.prefix import prefill
from tokensieve.sites.model import taps
from tokensieve.sites.model.compatibility import GENERATE_CACHE, Cache, DynamicLayer
from tokensieve.sites.model.decoder import decoder


@dataclass(frozen=True)
class Read:
    """How far a text was read.

    Attributes:
        ids: ``(1, n)``, what was read and the question.
        cache: of all of them but the last.
        read, of: tokens of the text that were read, and that there are.
        probabilities: what the probes said behind each chunk but the last.
        stopped: whether they said that it is enough.
        probed: tokens of the question that were read to ask them.
    """

    ids: Tensor
    cache: Cache
    read: int
    of: int
    probabilities: tuple[float, ...]
    stopped: bool
    probed: int

    @property
    def inputs(self) -> dict[str, Any]:
        """What ``model.generate(**read.inputs)`` takes to answer; once, for it writes into the cache."""
        return {
            "input_ids": self.ids,
            "attention_mask": torch.ones_like(self.ids),
            GENERATE_CACHE: self.cache,
        }


@dataclass(frozen=True)
class ReadingSample:
    """A text, a question, and after how many tokens of the text it can be answered.

    Attributes:
        text: ``(n,)`` ids; question: ``(q,)`` ids.
        enough: tokens; more than n where the text does not answer it.
    """

    text: Tensor
    question: Tensor
    enough: int


class ChunkReader:
    """Reads texts by chunks, and stops where probes say that a question can be answered; see :func:`reading`."""

    def __init__(self, model: nn.Module, probes: Probes, chunk: int = 128, threshold: float | None = None):
        _check_chunk(chunk)
        self.model, self.probes, self.chunk = model, probes, chunk
        self.threshold = probes.threshold if threshold is None else threshold

    @torch.no_grad()
    def __call__(self, text: Tensor, question: Tensor) -> Read:
        """Read a text until it is enough, at most all of it.

        Args:
            text: ``(n,)`` or ``(1, n)`` ids, with what the model expects in front; question: ``(q,)`` or ``(1, q)``, what
                follows the text and is answered.

        Raises:
            ValueError: a batch of several rows, or nothing to read or to ask.
        """
        text, question = _row("text", text, self.model), _row("question", question, self.model)
        said: list[float] = []
        cache = None
        starts = range(0, text.shape[1], self.chunk)
        for start in starts:
            part = text[:, start : start + self.chunk]
            cache = prefill(self.model, part, cache=cache)
            if start == starts[-1]:
                break
            said.append(float(self.probes.probability(asked(self.model, cache, question))[0]))
            if said[-1] >= self.threshold:
                break
        assert cache is not None
        read = int(cache.get_seq_length())
        if question.shape[1] > 1:
            cache = prefill(self.model, question[:, :-1], cache=cache)
        ids = torch.cat([text[:, :read], question], 1)
        stopped = bool(said) and said[-1] >= self.threshold
        return Read(ids, cache, read, text.shape[1], tuple(said), stopped, len(said) * question.shape[1])


def reading(model: nn.Module, probes: Probes, chunk: int = 128, threshold: float | None = None) -> ChunkReader:
    """Read long texts only as far as a question needs::

        read = ts.reading(model, probes)(text_ids, question_ids)
        answer = model.generate(**read.inputs, max_new_tokens=20)
        print(read.read, "of", read.of)

    Args:
        model: a causal language model of transformers.
        probes: of this model, from :func:`fit_probes` or :meth:`Probes.load`.
        chunk: tokens that are read between two looks.
        threshold: the probability that is enough; that of the probes by default.

    Raises:
        ValueError: a chunk below 1.
    """
    return ChunkReader(model, probes, chunk, threshold)


@torch.no_grad()
def fit_probes(
    model: nn.Module,
    samples: Sequence[ReadingSample],
    chunk: int = 128,
    heads: int = 8,
    precision: float = 0.95,
    seed: int = 0,
) -> Probes:
    """Fit probes for :func:`reading` to texts of which is known where the answer stands.

    Args:
        samples: some dozens at least; their texts are read whole.
        chunk: tokens between two looks; heads, precision: see :func:`tokensieve.parts.probes.fit`.

    Raises:
        ValueError: no samples, or what the fit raises.
    """
    _check_chunk(chunk)
    states, labels, groups = [], [], []
    for i, sample in enumerate(samples):
        text, question = _row("text", sample.text, model), _row("question", sample.question, model)
        cache = None
        for start in range(0, text.shape[1], chunk):
            cache = prefill(model, text[:, start : start + chunk], cache=cache)
            states.append(asked(model, cache, question))
            labels.append(int(cache.get_seq_length()) >= sample.enough)
            groups.append(i)
    if not states:
        raise ValueError("no samples to fit probes to; give some dozens")
    return fit(torch.cat(states).cpu(), labels, groups, heads, precision, seed)


def asked(model: nn.Module, cache: Cache, question: Tensor) -> Tensor:
    """``(1, layers, heads, d)``: what each attention head gives at the last token of a question behind a cache, which stays as it
    is; 0 for layers without attention."""
    before = int(cache.get_seq_length())
    whole = all(type(layer) is DynamicLayer for layer in cache.layers)
    branch = cache if whole else copy.deepcopy(cache)
    with _heads(model) as seen:
        prefill(model, question, cache=branch)
    if whole:
        branch.crop(before - int(branch.get_seq_length()))
    some = next(iter(seen.values()))
    return torch.stack([seen.get(i, torch.zeros_like(some)) for i in range(max(seen) + 1)], 1).cpu()


@contextmanager
def _heads(model: nn.Module) -> Iterator[dict[int, Tensor]]:
    """The outputs ``(B, H, d)`` of each layer's heads at the last token of the pass that is run while this is open."""
    seen: dict[int, Tensor] = {}

    def note(layer: int, call: taps.Call) -> None:
        mask = None if call.mask is None else call.mask[..., -1:, :]
        weight = rows.attend(call.query[:, :, -1:], call.key, call.scale, mask)
        groups = weight.shape[1] // call.value.shape[1]
        seen[layer] = (weight @ call.value.float().repeat_interleave(groups, 1))[:, :, 0]

    undo = [
        taps.attach(module, observe=partial(note, i))
        for i, module in enumerate(decoder(model).attentions)
        if module is not None
    ]
    try:
        yield seen
    finally:
        for detach in undo:
            detach()


def _row(name: str, ids: Tensor, model: nn.Module) -> Tensor:
    given = ids[None] if ids.dim() == 1 else ids
    if given.dim() != 2 or len(given) != 1 or not given.shape[1]:
        raise ValueError(
            f"{name} has shape {tuple(ids.shape)}; one row of at least one id is read at a time, since rows stop apart"
        )
    return given.to(model.device)  # type: ignore[arg-type]


def _check_chunk(chunk: int) -> None:
    if chunk < 1:
        raise ValueError(f"chunk={chunk}; it must be at least 1 token")
