"""What a context is remembered for after its cache was compressed: each function returns numbers by kind.

All of them read the context first (prefill), which is when a cache method attached to the model compresses, and then
score what follows against that cache. Rows of a batch are equally long, nothing is padded.
"""

import functools
import keyword
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from tokensieve.sites.model.compatibility import cache_argument, cache_in

from . import tasks
from .corpus import CorpusDocument, read_held_out, tokens
from .model import path

LENGTHS = (2048, 4096, 8192)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@functools.cache
def held_out() -> tuple[CorpusDocument, ...]:
    """The packaged held-out text: Python modules, Python's language reference, manual pages."""
    return tuple(read_held_out(path() / "heldout.json.xz"))


@functools.cache
def stream(tokenizer, kind: str | None = None) -> np.ndarray:
    """The held-out documents of a kind, or all of them, in one row of ids."""
    texts = [d.text for d in held_out() if kind in (None, d.kind)]
    return tokens(tokenizer.backend_tokenizer, texts).astype(np.int64)


@torch.no_grad()
def follow(model, ids: np.ndarray, context: int) -> torch.Tensor:
    """The logits (B, T - context, V) for `ids[:, context:]`: (B, T) token ids whose first `context` are prefilled.

    The second call gets what `generate` would pass: the mask of everything seen, and positions that go on.
    """
    rows = torch.as_tensor(ids, device=model.device)
    first = model(rows[:, :context], use_cache=True, logits_to_keep=1)
    if rows.shape[1] == context + 1:
        return first.logits
    seen = torch.ones(len(rows), rows.shape[1] - 1, dtype=torch.long, device=model.device)
    places = torch.arange(context, rows.shape[1] - 1, device=model.device).expand(len(rows), -1)
    rest = model(
        rows[:, context:-1],
        **cache_argument(model, cache_in(first)),
        attention_mask=seen,
        position_ids=places,
        use_cache=True,
    )
    return torch.cat([first.logits, rest.logits], dim=1)


def answered(
    model, samples: Sequence[tasks.TaskSample], batch: int = 4, see_question: bool = False
) -> list[list[bool]]:
    """For each sample and each of its answers, whether greedy decoding says it to the last token.

    `see_question` lets the first question be prefilled with the context, as methods that read the prompt's last
    tokens expect; the answer still comes from the compressed cache.
    """
    results: list[list[bool]] = [[] for _ in samples]
    groups = defaultdict(list)
    for i, sample in enumerate(samples):
        groups[len(sample.ids), sample.answers[0][0] - 1 if see_question else sample.context].append(i)
    for (_, context), members in groups.items():
        for start in range(0, len(members), batch):
            some = members[start : start + batch]
            ids = np.stack([samples[i].ids for i in some])
            right = follow(model, ids, context).argmax(-1).cpu().numpy() == ids[:, context:]
            for row, i in zip(right, some, strict=True):
                results[i] = [bool(row[a - context : b - context].all()) for a, b in samples[i].answers]
    return results


def needle(
    model,
    tokenizer,
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] = DEPTHS,
    samples: int = 8,
    seed: int = 0,
    batch: int = 4,
    see_question: bool = False,
) -> dict[int, dict[float, float]]:
    """Recall of one fact in held-out text, by length of the context and depth of the fact (0 is the beginning)."""

    def make(rng, say, text, length, depth):
        return tasks.facts(rng, say, text(length), length, 1, np.array([depth]))

    table: dict[int, dict[float, float]] = {}
    for length in lengths:
        asked = [(depth, i) for depth in depths for i in range(samples)]
        made = [_made(tokenizer, make, seed, length, depth, i) for depth, i in asked]
        flags = answered(model, made, batch, see_question)
        table[length] = {
            depth: float(np.mean([f[0] for f, (d, _) in zip(flags, asked, strict=True) if d == depth]))
            for depth in depths
        }
    return table


def multi(
    model, tokenizer, lengths: Sequence[int] = LENGTHS, count: int = 16, samples: int = 8, seed: int = 0, batch: int = 4
) -> dict[int, float]:
    """Recall of `count` facts strewn over held-out text, all asked after it."""

    def make(rng, say, text, length, _):
        return tasks.facts(rng, say, text(length), length, count)

    return {n: _recall(model, tokenizer, make, n, samples, seed, batch) for n in lengths}


def lookup(
    model, tokenizer, lengths: Sequence[int] = LENGTHS, asked: int = 32, samples: int = 8, seed: int = 0, batch: int = 4
) -> dict[int, float]:
    """Recall from a context that is one long list of `key : value` lines: `asked` of its keys come again."""

    def make(rng, say, text, length, _):
        return tasks.pairs(rng, say, length, asked)

    return {n: _recall(model, tokenizer, make, n, samples, seed, batch) for n in lengths}


def copying(
    model, tokenizer, lengths: Sequence[int] = LENGTHS, span: int = 32, samples: int = 8, seed: int = 0, batch: int = 4
) -> dict[int, float]:
    """The share of the tokens rightly repeated of `span` random words that stood somewhere in held-out text."""

    def make(rng, say, text, length, _):
        return _one_by_one(tasks.copy(rng, say, text(length), length, span))

    return {n: _recall(model, tokenizer, make, n, samples, seed, batch) for n in lengths}


def perplexity(
    model, tokenizer, context: int = 1792, continuation: int = 256, samples: int = 16, seed: int = 0, batch: int = 4
) -> dict[str, dict[str, float]]:
    """Perplexity per token, and bits per byte, of the continuation of held-out text, by kind of text."""
    table = {}
    for kind in sorted({d.kind for d in held_out()}):
        nats, count, size = 0.0, 0, 0
        for ids in _windows(stream(tokenizer, kind), context + continuation, samples, seed, batch):
            logits = follow(model, ids, context).float().log_softmax(-1)
            gold = torch.as_tensor(ids[:, context:], device=logits.device)
            nats -= logits.gather(-1, gold[..., None]).sum().item()
            count += gold.numel()
            size += sum(len(tokenizer.decode(row).encode()) for row in ids[:, context:])
        table[kind] = {"perplexity": float(np.exp(nats / count)), "bits per byte": nats / np.log(2) / size}
    return table


def code(
    model, tokenizer, context: int = 1792, continuation: int = 256, samples: int = 16, seed: int = 0, batch: int = 4
) -> dict[str, float]:
    """Next-token accuracy on the continuation of held-out Python: on all tokens, on those of identifiers, and on those
    of identifiers that the context names (`known`)."""
    hits: dict[str, list[bool]] = {"all": [], "identifiers": [], "known": []}
    for ids in _windows(stream(tokenizer, "code"), context + continuation, samples, seed, batch):
        right = follow(model, ids, context).argmax(-1).cpu().numpy() == ids[:, context:]
        for row, flags in zip(ids, right, strict=True):
            before = set(_NAME.findall(tokenizer.decode(row[:context])))
            names = _names([tokenizer.decode([i]) for i in row[context:]])
            hits["all"] += flags.tolist()
            hits["identifiers"] += [bool(f) for f, name in zip(flags, names, strict=True) if name]
            hits["known"] += [bool(f) for f, name in zip(flags, names, strict=True) if name in before]
    return {kind: float(np.mean(flags)) for kind, flags in hits.items()}


@torch.no_grad()
def bits_per_byte(
    model, tokenizer, kind: str, window: int = 2048, batch: int = 4, tokens_at_most: int | None = None
) -> float:
    """Bits per byte of a kind of held-out text, read in windows that do not overlap.

    The first token of a window and the ends of documents are not counted; see `scored`.
    """
    ids = stream(tokenizer, kind)[:tokens_at_most]
    rows = ids[: len(ids) // window * window].reshape(-1, window)
    bits = 0.0
    for start in range(0, len(rows), batch):
        some = torch.as_tensor(rows[start : start + batch], device=model.device)
        losses = torch.nn.functional.cross_entropy(
            model(some, use_cache=False).logits[:, :-1].float().transpose(1, 2), some[:, 1:], reduction="none"
        )
        bits += losses[some[:, 1:] != tokenizer.eos_token_id].sum().item() / np.log(2)
    return bits / sum(len(tokenizer.decode(row[scored(row, tokenizer)]).encode()) for row in rows)


def scored(row: np.ndarray, tokenizer) -> np.ndarray:
    """Which tokens of a window count for `bits_per_byte`."""
    counts = row != tokenizer.eos_token_id
    counts[0] = False
    return counts


def _recall(model, tokenizer, make: Callable, length: int, samples: int, seed: int, batch: int) -> float:
    made = [_made(tokenizer, make, seed, length, 0.0, i) for i in range(samples)]
    return float(np.mean([flag for flags in answered(model, made, batch) for flag in flags]))


def _made(tokenizer, make: Callable, seed: int, length: int, depth: float, index: int) -> tasks.TaskSample:
    """One sample on held-out text; a function of its arguments alone."""
    rng = np.random.default_rng((seed, length, round(1000 * depth), index))
    whole = stream(tokenizer)

    def text(count: int) -> np.ndarray:
        start = rng.integers(len(whole) - count)
        return whole[start : start + count]

    return make(rng, _speech(tokenizer), text, length, depth)


_speech = functools.cache(tasks.speech)


def _one_by_one(sample: tasks.TaskSample) -> tasks.TaskSample:
    (start, end), depth = sample.answers[0], sample.depths[0]
    single = tuple((i, i + 1) for i in range(start, end))
    return tasks.TaskSample(sample.ids, sample.context, single, (depth,) * len(single), sample.made)


def _windows(ids: np.ndarray, width: int, samples: int, seed: int, batch: int) -> Iterable[np.ndarray]:
    """Batches of windows at random places, none of them twice."""
    starts = np.random.default_rng((seed, width)).permutation(len(ids) // width)[:samples] * width
    rows = np.stack([ids[start : start + width] for start in starts])
    for i in range(0, len(rows), batch):
        yield rows[i : i + batch]


_NAME = re.compile(r"[A-Za-z_]\w*")


def _names(pieces: list[str]) -> list[str]:
    """For each token, the identifier that it is part of; empty where there is none, or a keyword."""
    owner = np.zeros(sum(map(len, pieces)), dtype=object)
    owner[:] = ""
    for found in _NAME.finditer("".join(pieces)):
        if not keyword.iskeyword(found[0]):
            owner[found.start() : found.end()] = found[0]
    ends = np.cumsum([len(piece) for piece in pieces])
    return [next((o for o in owner[end - len(p) : end] if o), "") for p, end in zip(pieces, ends, strict=True)]
