"""One side of `benchmarks.before`, in a process that stays alive: it times what it is asked for, line by line.

It runs tokensieve from wherever PYTHONPATH says, and uses no more of it than every commit has.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from llava300 import VOCAB, build, inputs
from transformers import DynamicCache

import tokensieve as ts

KEEP, CONTEXT, QUESTION, SHARE, STEPS = 64, 1024, 64, 0.25, 4
PREFILL, DECODE = ("visionzip", "fastv"), ("snapkv", "adakv")
SELECTION = ("visionzip", "divprune", "tome", "sparsevlm", "vispruner")
TOKENS, WIDTH, HEADS, TEXT = 576, 1024, 16, 32
DOCUMENTS, LENGTH, DIM, QUERY, BEST = 2000, 64, 128, 32, 10
LASTING = 0.1
"""Seconds that one time is of, at least: what is quick is done several times."""


class Models:
    """The model, and for each method that evicts a cache from which entries have left."""

    def __init__(self):
        self.model, self.given = build(), inputs("cpu")
        self.began = self.tower = 0.0
        # Put on before any sieve's: what a sieve does in front of and behind the encoder counts.
        self.model.model.vision_tower.register_forward_pre_hook(self._enter)
        self.model.model.vision_tower.register_forward_hook(self._leave)
        g = torch.Generator().manual_seed(0)
        self.ids = torch.randint(10, VOCAB, (1, QUESTION), generator=g)
        self.caches = {name: self._evicted(name, g) for name in DECODE}

    def _enter(self, *_):
        self.began = perf_counter()

    def _leave(self, *_):
        self.tower = perf_counter() - self.began

    def _evicted(self, name, g):
        config = self.model.config.text_config
        cache = DynamicCache(config=config)
        shape = (1, config.num_key_value_heads, CONTEXT - QUESTION, config.hidden_size // config.num_attention_heads)
        for i in range(config.num_hidden_layers):
            cache.update(torch.randn(shape, generator=g), torch.randn(shape, generator=g), i)
        with self._sieve(name):
            self._step(cache, self.ids)
        return cache

    def _sieve(self, name):
        return ts.sieve(self.model, name, keep=SHARE, site="cache")

    def _step(self, cache, ids):
        past = cache.get_seq_length()
        mask = torch.ones(1, past + ids.shape[1], dtype=torch.long)
        places = torch.arange(past, past + ids.shape[1])[None]
        self.model(
            input_ids=ids,
            past_key_values=cache,
            attention_mask=mask,
            position_ids=places,
            use_cache=True,
            logits_to_keep=1,
        )

    def prefill(self, name):
        """Seconds up to the first answer token, without those of the encoder."""
        with ts.sieve(self.model, name, keep=KEEP):
            began = perf_counter()
            self.model(**self.given, use_cache=True, logits_to_keep=1)
            return perf_counter() - began - self.tower

    def decode(self, name):
        """Seconds of a decoded token over what was left of the cache."""
        with self._sieve(name):
            began = perf_counter()
            for _ in range(STEPS):
                self._step(self.caches[name], self.ids[:, :1])
            return (perf_counter() - began) / STEPS


def repeated(call):
    """Seconds of one call, the mean of as many as take :data:`LASTING` together."""
    began, count = perf_counter(), 0
    while count == 0 or perf_counter() - began < LASTING:
        call()
        count += 1
    return (perf_counter() - began) / count


def selection(name):
    """A method on plain arrays."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, TOKENS, WIDTH, generator=g)
    given = {
        "cls_attention": torch.rand(1, HEADS, TOKENS, generator=g).softmax(-1),
        "received_attention": torch.rand(1, HEADS, TOKENS, generator=g).softmax(-1),
        "text_attention": torch.rand(1, HEADS, TEXT, TOKENS, generator=g).softmax(-1),
        "text": torch.randn(1, TEXT, WIDTH, generator=g),
        "keys": torch.randn(1, TOKENS, WIDTH, generator=g),
    }
    return partial(repeated, lambda: ts.reduce(x, name, keep=KEEP, grid=(24, 24), **given))


def searches(folder):
    """By name: an index of random documents, asked."""
    from tokensieve.retrieval import Index

    g = torch.Generator().manual_seed(0)
    docs = torch.nn.functional.normalize(torch.randn(DOCUMENTS, LENGTH, DIM, generator=g), dim=-1)
    query = torch.nn.functional.normalize(docs[0, :QUERY] + 0.1 * torch.randn(QUERY, DIM, generator=g), dim=-1)
    index = Index.create(f"{folder}/index", DIM, "int8", sketch="pooled")
    index.add(list(docs))
    index.compact()
    return {
        "100 candidates, reranked": partial(repeated, lambda: index.search(query, BEST, rerank=100)),
        "all documents": partial(repeated, lambda: index.search(query, BEST, rerank=0)),
    }


@torch.no_grad()
def main(groups):
    things = {}
    models = Models() if {"prefill", "decode"} & set(groups) else None
    if "prefill" in groups:
        things |= {f"prefill, {name}": partial(models.prefill, name) for name in PREFILL}
    if "decode" in groups:
        things |= {f"decoded token, {name}": partial(models.decode, name) for name in DECODE}
    if "selection" in groups:
        things |= {f"selection, {name}": selection(name) for name in SELECTION}
    with TemporaryDirectory() as folder:
        if "search" in groups:
            things |= {f"search, {name}": call for name, call in searches(folder).items()}
        answer(things)


def answer(things):
    """Say what can be timed, and the seconds of each that is asked for."""
    for measure in things.values():
        measure()  # what a first time takes once and for all
    print(json.dumps({"tokensieve": ts.__file__, "things": list(things)}), flush=True)
    for line in sys.stdin:
        print(json.dumps(things[line.strip()]()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
