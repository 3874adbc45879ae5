"""The check of LongMamba, on a small selective state space model that is trained here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from benchmarks.descent import descend
from benchmarks.reference.longmamba_265 import SelectiveSSM, thresholds
from benchmarks.systems.bed import SEED, CheckContext, Outcome, check
from benchmarks.systems.cache import model
from tokensieve.testbed.lm.evaluate import stream

SHORT, LONG, DIM, LAYERS, BATCH, STEPS, VALUES = 64, 512, 64, 2, 16, 900, 32
TEXTS, ASKED = 8, 64


class Small(nn.Module):
    """A language model of selective state space layers."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, DIM)
        nn.init.normal_(self.embed.weight, std=DIM**-0.5)
        self.layers = nn.ModuleList(SelectiveSSM(DIM) for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.RMSNorm(DIM) for _ in range(LAYERS + 1))

    def forward(self, ids: Tensor, cut: Sequence[Tensor | None] = (None,) * LAYERS) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the step sizes of every layer."""
        x, steps = self.embed(ids), []
        for layer, norm, threshold in zip(self.layers, self.norms, cut, strict=False):
            more, step = layer(norm(x), threshold)
            x = x + more
            steps.append(step)
        return linear(self.norms[-1](x), self.embed.weight), steps


def passkeys(text: Tensor, length: int, count: int, words: int, draw: torch.Generator) -> Tensor:
    """``(count, length)``: text with a mark and a key somewhere, and at its end the question and the key again."""
    start = torch.randint(len(text) - length, (count,), generator=draw)
    ids = text[start[:, None] + torch.arange(length)].clone()
    key = torch.randint(VALUES, (count,), generator=draw)
    place = torch.randint(length - 4, (count,), generator=draw)
    row = torch.arange(count)
    ids[row, place], ids[row, place + 1] = words, key
    ids[:, -2], ids[:, -1] = words + 1, key
    return ids


def train(text: Tensor, words: int) -> Small:
    torch.manual_seed(SEED)
    draw, made = torch.Generator().manual_seed(SEED), Small(words + 2)

    def loss(step: int) -> Tensor:
        ids = passkeys(text, SHORT, BATCH, words, draw)
        logits, _ = made(ids)
        every = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        return every + cross_entropy(logits[:, -2], ids[:, -1])

    shown = track(range(STEPS), description="a small Mamba", console=Console(stderr=True))
    descend(made.parameters(), loss, STEPS, 4e-3, clip=1.0, over=shown)
    return made.eval()


@check(265)
def longmamba(bed: CheckContext) -> Outcome:
    """A small Mamba trained on 64 tokens here, read at 512: perplexity of held-out text and recall of a key better with the
    filter than without it; channels of short memory put out what they did."""
    ids, words = torch.as_tensor(stream(model()[1])), len(model()[1])
    half = len(ids) // 2
    made, held, draw = train(ids[:half], words), ids[half:], torch.Generator().manual_seed(SEED + 1)
    n: dict[str, Any] = {}
    with torch.no_grad():
        steps = made(passkeys(ids[:half], SHORT, TEXTS, words, draw))[1]
        cut = [thresholds(step, layer.rates, LONG) for step, layer in zip(steps, made.layers, strict=True)]
        n["channels of long memory"] = round(float(torch.stack(cut).gt(0).float().mean()), 4)
        asked = {length: passkeys(held, length, ASKED, words, draw) for length in (SHORT, LONG)}
        starts = torch.linspace(0, len(held) - LONG, TEXTS).long()
        texts = held[starts[:, None] + torch.arange(LONG)]
        ways = {"plain": (None,) * LAYERS, "filtered": cut}
        n["plain at 64: recall"] = recall(made, asked[SHORT], ways["plain"])
        for name, way in ways.items():
            loss = [cross_entropy(made(x[None], way)[0][0, :-1], x[1:]) for x in texts]
            n[f"{name}: perplexity"] = round(math.exp(float(torch.stack(loss).mean())), 4)
            n[f"{name}: recall"] = recall(made, asked[LONG], way)
        n["short memories identical"] = untouched(made, texts[:1], cut[0])
    better = n["filtered: perplexity"] < n["plain: perplexity"] and n["filtered: recall"] > n["plain: recall"]
    return better and n["short memories identical"], n


def recall(made: Small, asked: Tensor, way: Sequence[Tensor | None]) -> float:
    said = [int(made(x[None, :-1], way)[0][0, -1, :VALUES].argmax()) for x in asked]
    return round(float((torch.tensor(said) == asked[:, -1]).float().mean()), 4)


def untouched(made: Small, ids: Tensor, cut: Tensor) -> bool:
    """Whether the first layer's channels without a threshold put out the same, filtered or not."""
    hidden: list[Tensor] = []
    hook = made.layers[0].out.register_forward_pre_hook(lambda m, a: hidden.append(a[0]))
    made(ids)
    made(ids, [cut, *[None] * (LAYERS - 1)])
    hook.remove()
    return bool(torch.equal(hidden[0][..., cut == 0], hidden[1][..., cut == 0]))
