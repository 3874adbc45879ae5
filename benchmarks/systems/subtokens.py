"""A check of words as one token inside an encoder of code."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.systems import small
from benchmarks.systems.bed import CheckContext, Outcome, check
from tokensieve.sites.subtokens import identifiers, merged_words
from tokensieve.testbed import lm
from tokensieve.testbed.lm.corpus import standard_library

LENGTH, STEPS, BATCH, HELD, LAYER, LAYERS = 96, 250, 16, 400, 1, 3
PACKAGES = ("asyncio", "email", "idlelib", "multiprocessing", "tkinter", "unittest", "xml", "json")


@cache
def snippets(held: bool) -> tuple[list[str], list[int]]:
    """Some lines of the library's packages, and which package each is of; of every fourth file the held-out ones."""
    files = [d for d in standard_library() if d.name.split("/")[0] in PACKAGES and "/" in d.name]
    texts, labels = [], []
    for i, d in enumerate(files):
        if (i % 4 == 0) == held:
            lines = d.text.splitlines(keepends=True)
            for at in range(0, len(lines) - 8, 8):
                texts.append("".join(lines[at : at + 8]))
                labels.append(PACKAGES.index(d.name.split("/")[0]))
    order = random.Random(0).sample(range(len(texts)), len(texts))
    return [texts[i] for i in order], [labels[i] for i in order]


@cache
def encoded(held: bool) -> tuple[Tensor, Tensor, Tensor]:
    """``(T, LENGTH)`` ids padded with 1, which word each token is of, and ``(T,)`` labels."""
    tokenizer = lm.load()[1]
    tokenizer.padding_side = "right"
    texts, labels = snippets(held)
    found = tokenizer(
        texts, truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt", add_special_tokens=False
    )
    return found["input_ids"], identifiers(found, texts), torch.tensor(labels)


def by_chance(words: Tensor, real: Tensor, seed: int) -> Tensor:
    """As many merges of neighbours in each row as the words make, at random places."""
    generator = torch.Generator().manual_seed(seed)
    joins = torch.zeros_like(real)
    joins[:, 1:] = (words[:, 1:] == words[:, :-1]) & (words[:, 1:] >= 0)
    draw = torch.rand(real.shape, generator=generator).masked_fill(~real, 2.0)
    draw[:, 0] = 2.0
    chosen = draw.argsort(1).argsort(1) < joins.sum(1, keepdim=True)
    return (~chosen).long().cumsum(1).masked_fill(~real, -1)


def merges(way: str, words: Tensor, real: Tensor, seed: int) -> Tensor:
    alone = torch.arange(words.shape[1]).expand_as(words)
    return {"plain": lambda: alone, "words": lambda: words, "chance": lambda: by_chance(words, real, seed)}[way]()


def trained(way: str) -> tuple[float, float]:
    """Accuracy on held-out files, and the share of tokens that is left behind the first layer."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(lm.load()[1]), hidden_size=96, intermediate_size=256, num_hidden_layers=LAYERS,
        num_attention_heads=4, max_position_embeddings=LENGTH, num_labels=len(PACKAGES), pad_token_id=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    ids, words, labels = encoded(False)

    def run(rows: Tensor, which: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        real = rows != 1
        with merged_words(model, merges(way, which, real, seed), LAYER) as merged:
            states = model.bert(input_ids=rows, attention_mask=real.long()).last_hidden_state
        pooled = (states * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        assert merged.counts is not None
        return model.classifier(pooled), merged.counts / real.sum(1)

    def loss(index: Tensor) -> Tensor:
        return cross_entropy(run(ids[index], words[index], int(index[0]))[0], labels[index])

    small.train(f"encoder, {way}", model, loss, lambda i: torch.tensor(i % len(ids)), STEPS, 1e-3, BATCH)
    ids_, words_, labels_ = (x[:HELD] for x in encoded(True))
    with torch.no_grad():
        logits, left = run(ids_, words_, 1)
    return float((logits.argmax(1) == labels_).float().mean()), float(left.mean())


@check(74)
def subtokens(_: CheckContext) -> Outcome:
    """Encoders of three layers, trained in equal steps to tell of eight lines of code which of eight packages of Python's
    library they are of: with all tokens, with those of one identifier as one behind the first layer, and with as many neighbours
    as one at random; accuracy on 400 snippets of held-out files, and the share of tokens that is left."""
    labels = encoded(True)[2][:HELD].tolist()
    n: dict[str, Any] = {"commonest package": round(max(Counter(labels).values()) / len(labels), 4)}
    for way in ("plain", "words", "chance"):
        right, left = trained(way)
        n[f"right, {way}"], n[f"tokens left, {way}"] = round(right, 4), round(left, 4)
    less = n["tokens left, words"] < 0.95
    return less and n["right, words"] >= n["right, plain"] - 0.01 and n["right, words"] > n["right, chance"], n
