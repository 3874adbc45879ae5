"""Checks of small text encoders, trained on docstrings of the training half and measured on the others; of MiniLM where it
serves."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from benchmarks.reference.docstrings import Passage, collect
from benchmarks.reference.dupmae_21 import DupMAE, Joint
from benchmarks.reference.inceptive_160 import Inceptive
from benchmarks.reference.mexma_382 import Mexma
from benchmarks.reference.sticky_tokens_307 import scan
from benchmarks.reference.tempscale_122 import high_frequency, likeness, slope, tempered
from benchmarks.reference.text_encoder import Vocabulary, batch, tiny
from benchmarks.systems.bed import CheckContext, Outcome, check
from benchmarks.trained import mean
from tokensieve.retrieval.encoders.loading import load_encoder
from tokensieve.retrieval.evaluation.evaluate import ranks
from tokensieve.retrieval.heads.contrast import fit, in_batch

Ids = list[list[int]]


@cache
def texts(held_out: bool) -> list[Passage]:
    return [p for p in collect().passages if p.held_out == held_out]


@cache
def vocabulary() -> Vocabulary:
    """Of the training half's texts."""
    return Vocabulary([f"{p.query} {p.body}" for p in texts(False)])


@cache
def halves(held_out: bool, longest: int = 48) -> tuple[Ids, Ids]:
    """The first and the second half of each passage of at most twice ``longest`` tokens."""
    ids = [found[: 2 * longest] for found in vocabulary().ids([p.body for p in texts(held_out)])]
    return [i[: len(i) // 2] for i in ids], [i[len(i) // 2 :] for i in ids]


@check(122)
def temperature(_: CheckContext) -> Outcome:
    """MiniLM, 150 passages cut to 16, 32, 64 and 128 tokens: their mean cosine rises with length, less steeply at temperature
    0.9, where the last states hold more high-frequency energy."""
    encoder: Any = load_encoder()
    long = [p.body for p in texts(True)]
    ids = [i for i in encoder.tokenizer(long, truncation=True, max_length=256)["input_ids"] if len(i) >= 128][:150]
    n: dict[str, Any] = {"texts": len(ids)}
    for name, warmth in (("1", None), ("0.9", 0.9)):
        vectors, energy, bins = [], [], []
        for k, length in enumerate((16, 32, 64, 128)):
            cut = torch.tensor([i[: length - 1] + i[-1:] for i in ids])
            for part in cut.split(50):
                real = torch.ones_like(part, dtype=torch.bool)
                states = states_of(encoder.model, part, warmth)
                vectors.append(states.mean(1))
                energy += high_frequency(states, real).tolist()
                bins += [k] * len(part)
        like = likeness(torch.cat(vectors), torch.tensor(bins))
        n[f"cosine by length at {name}"] = [round(v, 4) for v in like.tolist()]
        n[f"slope at {name}"] = round(slope(like), 5)
        n[f"high frequency at {name}"] = round(float(np.mean(energy)), 5)
    rising = n["cosine by length at 1"] == sorted(n["cosine by length at 1"])
    sharper = n["slope at 0.9"] < n["slope at 1"] and n["high frequency at 0.9"] > n["high frequency at 1"]
    return rising and sharper, n


@torch.no_grad()
def states_of(model: nn.Module, ids: Tensor, warmth: float | None) -> Tensor:
    if warmth is None:
        return model(input_ids=ids).last_hidden_state
    with tempered(model, warmth):
        return model(input_ids=ids).last_hidden_state


def averaged(encoder: nn.Module, ids: Tensor, real: Tensor) -> Tensor:
    states = encoder(input_ids=ids, attention_mask=real.long()).last_hidden_state
    return normalize((states * real[..., None]).sum(1) / real.sum(1, keepdim=True), dim=1)


@check(307)
def sticky(_: CheckContext) -> Outcome:
    """Small sentence encoder, one id never trained on whose embedding is the mean of all others, 20 times as long: the scan
    of the vocabulary ranks it first, and similarities with it inserted spread less than with other tokens."""
    size = len(vocabulary())
    torch.manual_seed(0)
    encoder = tiny(size + 1)
    first, second = halves(False, 24)

    def loss(index: Tensor) -> Tensor:
        sides = [averaged(encoder, *batch([part[i] for i in index], 32)) for part in (first, second)]
        return in_batch(sides[0] @ sides[1].T)

    fit([encoder], loss, len(first), steps=160, what="sentence encoder")
    with torch.no_grad():
        table = encoder.embeddings.word_embeddings.weight
        table[size] = 20 * table[4:size].mean(0)
    tokens = [*range(4, size, 4), size]
    sentences = [s[:16] for s in halves(True, 24)[0] if len(s) >= 12]
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(sentences), generator=draw).tolist()[:400]
    pairs = [(sentences[a], sentences[b]) for a, b in zip(order[::2], order[1::2], strict=True)]
    found = scan(lambda ids: averaged(encoder, *batch(ids, 48)), pairs, tokens)
    rank = [one.token for one in found].index(size) + 1
    one, others = found[rank - 1], [other.spread for other in found if other.token != size]
    n = {
        "tokens": len(tokens),
        "rank": rank,
        "score": round(one.score, 3),
        "next best": round(found[rank == 1].score, 3),
    }
    n |= {"spread": round(one.spread, 4), "spread of others": round(float(np.mean(others)), 4)}
    n |= {"verified": sum(other.sticky for other in found)}
    return rank == 1 and one.spread < n["spread of others"], n


@check(21)
def dupmae(_: CheckContext) -> Outcome:
    """Small encoder pretrained on the training half, second halves of held-out passages found by the first: recall@10 of
    the joint vector (32 of CLS, 32 of ordinary tokens) above 64 of either alone; linear maps trained on the training half,
    three seeds."""
    torch.manual_seed(0)
    model = DupMAE(tiny(len(vocabulary())))
    first, second = halves(False)
    every, draw = first + second, torch.Generator().manual_seed(0)
    fit([model], lambda i: model.loss(*batch([every[k] for k in i], 49), draw), len(every), steps=240, what="DupMAE")
    known = {(held, k): both(model, part) for held in (False, True) for k, part in enumerate(halves(held))}
    n: dict[str, Any] = {}
    for name, cls, ordinary in (("joint", 32, 32), ("CLS", 64, 0), ("ordinary", 0, 64)):
        hits = []
        for seed in range(3):
            torch.manual_seed(seed)
            joint = Joint(model.encoder.config.hidden_size, len(vocabulary()), cls, ordinary)
            sides = [known[False, 0], known[False, 1]]

            def loss(index: Tensor, joint: Joint = joint, sides: list[Any] = sides) -> Tensor:
                one, two = (joint(*(part[index] for part in side)) for side in sides)
                return in_batch(one @ two.T)

            fit([joint], loss, len(first), steps=200, batch=64, rate=1e-3, seed=seed, what=f"{name} {seed}")
            with torch.no_grad():
                scores = joint(*known[True, 0]) @ joint(*known[True, 1]).T
            hits.append(float((ranks(scores.numpy(), range(len(scores))) <= 10).mean()))
        n[name] = mean(hits)
    return n["joint"] > max(n["CLS"], n["ordinary"]), n


@torch.no_grad()
def both(model: DupMAE, ids: Ids) -> tuple[Tensor, Tensor]:
    parts = [model(*batch(ids[i : i + 100], 49)) for i in range(0, len(ids), 100)]
    cls, ordinary = (torch.cat(p) for p in zip(*parts, strict=True))
    return cls, ordinary


@check(382)
def mexma(_: CheckContext) -> Outcome:
    """First lines of docstrings and their word-cipher translation, equal steps: bitext retrieval error on held-out lines
    below that of the sentence objective alone; without the token states' gradient it is higher."""
    size = len(vocabulary())
    draw = torch.Generator().manual_seed(0)
    cipher = size + torch.randperm(size, generator=draw)
    cipher[:4] = torch.arange(4)
    lines = {held: vocabulary().ids([p.query for p in texts(held)]) for held in (False, True)}
    n: dict[str, Any] = {}
    for name, told, tokens in (("MEXMA", True, True), ("no token gradients", True, False), ("sentences", False, False)):
        torch.manual_seed(0)
        model = Mexma(tiny(2 * size), told=told, tokens=tokens)
        noise = torch.Generator().manual_seed(1)

        def loss(index: Tensor, model: Mexma = model, noise: torch.Generator = noise) -> Tensor:
            ids, real = batch([lines[False][i] for i in index], 24)
            return model.loss((ids, real), (cipher[ids], real), noise)

        fit([model], loss, len(lines[False]), steps=240, what=name)
        with torch.no_grad():
            ids, real = batch(lines[True], 24)
            sides = [
                torch.cat([model(*p) for p in zip(x.split(200), real.split(200), strict=True)])
                for x in (ids, cipher[ids])
            ]
        like = normalize(sides[0], dim=1) @ normalize(sides[1], dim=1).T
        wrong = [ranks(s.numpy(), range(len(s))) != 1 for s in (like, like.T)]
        n[f"error of {name}"] = round(float(np.mean(wrong)), 4)
    own = n["error of MEXMA"]
    return own < min(n["error of sentences"], n["error of no token gradients"]), n


KERNELS: dict[str, tuple[int, ...]] = {"multi": (3, 5, 7), "3": (3, 3, 3), "5": (5, 5, 5), "7": (7, 7, 7)}
WIDE, CLASSES = 64, 6


def planted(held_out: bool, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Docstring halves with one of six ordered patterns of 2, 4 or 6 tokens at a place of its own, and what a shuffle of it
    would be."""
    rng = np.random.default_rng([seed, held_out])
    fixed = np.random.default_rng(5)
    words = fixed.choice(np.arange(200, 1000), (CLASSES // 2, 6), replace=False)
    source = [s[:30] for s in halves(held_out)[0] if len(s) >= 20]
    rows, labels = [], []
    for _ in range(count):
        label = int(rng.integers(CLASSES))
        length = (2, 4, 6)[label // 2]
        # Both classes of a length hold the same tokens; their order tells them apart.
        pattern = words[label // 2][:length]
        pattern = pattern if label % 2 == 0 else pattern[::-1]
        text = list(source[int(rng.integers(len(source)))])
        at = int(rng.integers(len(text) + 1))
        rows.append(text[:at] + pattern.tolist() + text[at:])
        labels.append(label)
    return *batch(rows, 40), torch.tensor(labels)


class Classifier(nn.Module):
    def __init__(self, kernels: tuple[int, ...] | None):
        super().__init__()
        self.encoder = tiny(len(vocabulary()), WIDE)
        self.readout = None if kernels is None else Inceptive(WIDE, kernels)
        self.last = nn.Linear(WIDE, CLASSES)

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        states = self.encoder(input_ids=ids, attention_mask=real.long()).last_hidden_state
        return self.last(states[:, 0] if self.readout is None else self.readout(states, real))


@check(160)
def inceptive(_: CheckContext) -> Outcome:
    """Docstrings with an ordered pattern of 2, 4 or 6 tokens, which of six it is, five seeds: accuracy above the CLS
    readout and above every single kernel of as many channels, under 10% more parameters."""
    known, test = planted(False, 2000, 0), planted(True, 600, 0)
    n: dict[str, Any] = {}
    sizes = {}
    for name, kernels in (("CLS", None), *KERNELS.items()):
        right = []
        for seed in range(5):
            torch.manual_seed(seed)
            model = Classifier(kernels)
            sizes[name] = sum(p.numel() for p in model.parameters())

            def loss(index: Tensor, model: Classifier = model) -> Tensor:
                return cross_entropy(model(known[0][index], known[1][index]), known[2][index])

            fit([model], loss, len(known[0]), steps=180, rate=1e-3, seed=seed, what=f"{name} {seed}")
            with torch.no_grad():
                right.append(float((model(*test[:2]).argmax(1) == test[2]).float().mean()))
        n[name] = mean(right)
    n["more parameters"] = round(sizes["multi"] / sizes["CLS"] - 1, 4)
    return n["multi"] > max(v for k, v in n.items() if k in ("CLS", "3", "5", "7")) and n["more parameters"] < 0.1, n
