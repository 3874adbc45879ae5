"""Checks of latents that a frozen model reads in place of tokens: the packaged language model, real text, facts put into it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.systems import small
from benchmarks.systems.bed import SEED, CheckContext, Outcome, check
from tokensieve.prompt import latents
from tokensieve.prompt.latents import TextLatents, TextToLatents
from tokensieve.testbed import lm
from tokensieve.testbed.lm.evaluate import stream

DISTANT, RECENT, NEXT = 256, 64, 64
FACTS, EACH = 8, 11  # in the distant text, and tokens of one
WINDOW = DISTANT + RECENT + NEXT
TEXT = 600_000
EVERY = 5  # steps of which one says the text again
ROWS, LISTS, BATCH = 32, 40, 8


@cache
def packaged() -> tuple[Any, Any]:
    """The model, frozen, and its tokenizer."""
    model, tokenizer = lm.load()
    return model.requires_grad_(False), tokenizer


def model() -> Any:
    return packaged()[0]


@cache
def say() -> lm.Speech:
    return lm.speech(packaged()[1])


def plain(rows: Tensor) -> Callable[[int], Tensor]:
    """Windows of text."""
    return small.windows(rows, WINDOW)


def facts(ids: Tensor, seed: int) -> Callable[[int], Tensor]:
    """Sample i: text with facts in its first ``DISTANT`` tokens, and questions with answers behind them."""

    def make(i: int) -> Tensor:
        rng = np.random.default_rng((SEED, seed, i))
        start = int(rng.integers(len(ids) - DISTANT))
        made = lm.facts(rng, say(), ids[start : start + DISTANT].numpy(), DISTANT + FACTS * EACH, FACTS)
        return torch.from_numpy(made.ids)

    return make


def mixed(seed: int) -> Callable[[int], tuple[Tensor, int]]:
    """Sample i and how much of it is distant: windows of text and texts with facts in turns of a batch of 4."""
    ids = small.tokens(TEXT)
    text, asked = plain(ids), facts(ids, seed)
    return lambda i: (text if i // 4 % 2 else asked)(i)


def of_tokens(ids: Tensor) -> TextLatents:
    """Tokens as they are, as what stands in front."""
    return TextLatents(model().get_input_embeddings()(ids), torch.ones_like(ids, dtype=torch.bool))


@torch.no_grad()
def nats(front: Callable[[Tensor], TextLatents], rows: Tensor, first: int, last: int, skip: int = 0) -> float:
    """For a token of ``rows[:, first + skip : last]``, told by what stands in front of `first` and the tokens between."""
    told = [front(part).told(model(), part[:, first:last])[:, skip:] for part in rows.split(BATCH)]
    return round(-float(torch.cat(told).mean()), 4)


@torch.no_grad()
def answered(front: Callable[[Tensor], TextLatents], rows: Tensor) -> float:
    """The share of the questions behind the distant text that greedy decoding answers to the last token."""
    right = []
    at = len(say().question((0, 0)))
    for part in rows.split(BATCH):
        made, after = front(part), part[:, DISTANT:]
        logits = model()(**made.before(model(), after)).logits[:, made.embeds.shape[1] - 1 : -1]
        same = (logits.argmax(-1) == after).unflatten(1, (-1, EACH))
        right.append(same[:, :, at : at + 2].all(-1))
    return round(float(torch.cat(right).float().mean()), 4)


def asked_rows() -> Tensor:
    make = facts(torch.as_tensor(stream(packaged()[1])), 1)
    return torch.stack([make(i) for i in range(LISTS)])


def bits(value: float, rows: Tensor, first: int, last: int) -> float:
    """Nats a token as bits a byte of these tokens."""
    tokenizer = packaged()[1]
    size = sum(len(tokenizer.decode(row[first:last].tolist()).encode()) for row in rows)
    return round(value * rows[:, first:last].numel() / math.log(2) / size, 4)


def train(
    name: str,
    module: TextToLatents,
    steps: int,
    seed: int = 0,
    rate: float = 1e-3,
    beside: Callable[[TextLatents, Tensor], Tensor] | None = None,
) -> None:
    """Continue texts and answer about them; every fifth step, say the text again."""
    step = itertools.count(1)

    def loss(rows: Tensor) -> Tensor:
        distant = rows[:, :DISTANT]
        if next(step) % EVERY == 0:
            return module(distant, task="repeat").loss(model(), distant)
        made = module(distant)
        own = made.loss(model(), rows[:, DISTANT:])
        return own if beside is None else own + beside(made, distant)

    small.train(name, module, loss, mixed(seed), steps, rate, 4)


def beside_tokens(module: TextToLatents, count: int) -> dict[str, Any]:
    """What a module's latents of distant text are worth: directly in front of what follows, in front of the last raw tokens, and
    for facts; each beside nothing, as many raw tokens, and latents of another text."""
    rows, asked = small.held_out(WINDOW, ROWS), asked_rows()
    end = model().config.eos_token_id

    def made(part: Tensor) -> TextLatents:
        return module(part[:, :DISTANT])

    def others(part: Tensor) -> TextLatents:
        return module(part[:, :DISTANT].roll(1, 0))

    def raw(tokens: int) -> Callable[[Tensor], TextLatents]:
        return lambda part: of_tokens(part[:, DISTANT - tokens : DISTANT])

    fronts = {
        "nothing": lambda part: of_tokens(torch.full_like(part[:, :1], end)), "latents": made, "latents of another text": others,
        f"{count} raw": raw(count), "all": raw(DISTANT),
    }  # fmt: skip
    n: dict[str, Any] = {"places": count}
    for name, front in fronts.items():
        n[f"bits per byte, {name}"] = bits(nats(front, rows, DISTANT, WINDOW - NEXT), rows, DISTANT, WINDOW - NEXT)
    for name, front in fronts.items():
        value = nats(front, rows, DISTANT, WINDOW, RECENT)
        n[f"in front of {RECENT} raw, {name}"] = bits(value, rows, WINDOW - NEXT, WINDOW)
    for name, front in fronts.items():
        n[f"answered, {name}"] = answered(front, asked)
    return n


@check(167)
def arc(_: CheckContext) -> Outcome:
    """The packaged model, frozen; 256 tokens as 64 latents and one more, trained for 360 steps of 4 texts to continue, to answer
    about facts and to repeat. Bits per byte of the 64 tokens that follow below those of no context and below those of the last 65
    raw tokens; also of 64 tokens behind 64 raw ones, where the latents stand for the distant text beside 65 further raw tokens,
    and facts of the distant text that are recalled."""
    torch.manual_seed(SEED)
    module = latents.arc(model(), DISTANT // 64)
    train("167", module, 360)
    n = beside_tokens(module, 65)
    own = n["bits per byte, latents"]
    return own < n["bits per byte, nothing"] and own < n["bits per byte, 65 raw"], n


class Means(nn.Module):
    """A reader without layers: embeddings of tokens, averaged over equal stretches of a text."""

    def __init__(self, slots: int):
        super().__init__()
        self.slots, self.width = slots, model().config.hidden_size

    def forward(self, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        states = model().get_input_embeddings()(ids).unflatten(1, (self.slots, -1)).mean(2)
        return states, real.new_ones(states.shape[:2])


@torch.no_grad()
def repeated(module: TextToLatents, rows: Tensor) -> float:
    """The share of tokens that are said again rightly, each behind the latents and the right tokens before it."""
    right = []
    for part in rows.split(BATCH):
        made = module(part, task="repeat")
        logits = model()(**made.before(model(), part)).logits[:, made.embeds.shape[1] - 1 : -1]
        right.append(logits.argmax(-1) == part)
    return round(float(torch.cat(right).float().mean()), 4)


@check(214)
def c3(_: CheckContext) -> Outcome:
    """The packaged model, frozen; 256 tokens as 64, 32 and 16 latents (and one more), and as the means of 32 stretches under a
    trained projection, each trained for 60 steps of 4 texts to say them again. Tokens of held-out text said again rightly: by 32
    latents more than by means, and fewer from 4x to 8x to 16x; beside the model without any latents, and latents of another
    text."""
    make = small.windows(small.tokens(TEXT), DISTANT)
    rows = small.held_out(DISTANT, ROWS)
    n: dict[str, Any] = {}

    def one(name: str, module: TextToLatents) -> TextToLatents:
        small.train(f"214 {name}", module, lambda ids: module(ids, task="repeat").loss(model(), ids), make, 60, 1e-3, 4)
        n[name] = repeated(module, rows)
        return module

    found = {}
    for slots in (64, 32, 16):
        torch.manual_seed(SEED)
        found[slots] = one(f"{DISTANT // slots}x", latents.c3(model(), slots))
    torch.manual_seed(SEED)
    means = latents.c3(model(), 32, depth=1)
    means.reader = Means(32)
    one("8x, means", means)
    with torch.no_grad():
        end = torch.full_like(rows[:, :1], model().config.eos_token_id)
        n["nothing"] = round(
            float((model()(torch.cat([end, rows], 1)).logits[:, :-1].argmax(-1) == rows).float().mean()), 4
        )
        n["8x, of another text"] = repeated(_Rolled(found[32]), rows)
    falls = n["4x"] > n["8x"] > n["16x"]
    return n["8x"] > n["8x, means"] and falls, n


class _Rolled(nn.Module):
    """Each row of a batch gets the latents of the one before it."""

    def __init__(self, module: TextToLatents):
        super().__init__()
        self.module = module

    def forward(self, ids: Tensor, task: str) -> TextLatents:
        return self.module(ids.roll(1, 0), task=task)


@check(87)
def vist(_: CheckContext) -> Outcome:
    """The packaged model, frozen; 256 tokens rendered on a page, seen by a small vision encoder and resampled to 64 latents (and
    one more), trained for 130 steps of 4 texts as 167, with latents drawn to half of their texts' tokens: the rarest, or as many
    at random. Facts of the distant text that are answered: more than by the last 65 raw tokens, and more with frequent tokens
    masked than with random ones."""
    counts = torch.bincount(small.tokens(TEXT), minlength=model().config.vocab_size)
    drawn = torch.Generator().manual_seed(SEED)

    def rarest(ids: Tensor) -> Tensor:
        return latents.rare(ids, counts)

    def at_random(ids: Tensor) -> Tensor:
        return torch.rand(ids.shape, generator=drawn).argsort(1).argsort(1) < ids.shape[1] // 2

    n: dict[str, Any] = {}
    for name, stay in (("frequent masked", rarest), ("random masked", at_random)):
        torch.manual_seed(SEED)
        module = latents.vist(model(), packaged()[1], 64)

        def beside(made: TextLatents, ids: Tensor, stay: Callable[[Tensor], Tensor] = stay) -> Tensor:
            return 0.1 * latents.enhancement(made, model().get_input_embeddings()(ids), stay(ids))

        train(f"87 {name}", module, 130, beside=beside)
        if name == "frequent masked":
            n = beside_tokens(module, 65)
            n[f"answered, {name}"] = n.pop("answered, latents")
        else:
            n[f"answered, {name}"] = answered(lambda part, m=module: m(part[:, :DISTANT]), asked_rows())
            rows = small.held_out(WINDOW, ROWS)
            value = nats(lambda part, m=module: m(part[:, :DISTANT]), rows, DISTANT, WINDOW - NEXT)
            n[f"bits per byte, {name}"] = bits(value, rows, DISTANT, WINDOW - NEXT)
    own = n["answered, frequent masked"]
    return own > n["answered, 65 raw"] and own > n["answered, random masked"], n
