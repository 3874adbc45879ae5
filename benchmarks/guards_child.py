"""One side of `benchmarks.guards`, in a process that stays alive: it times what it is asked for, line by line.

It runs tokensieve from wherever PYTHONPATH says, and uses no more of it than every commit has.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from time import perf_counter

import torch
from llava300 import VOCAB, build, inputs
from transformers import DynamicCache

import tokensieve as ts

KEEP, CONTEXT, QUESTION, SHARE, STEPS = 64, 1024, 64, 0.25, 4
PREFILL, DECODE = ("visionzip", "fastv"), ("snapkv", "adakv")


class Side:
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


@torch.no_grad()
def main():
    side = Side()
    things = {f"prefill, {name}": partial(side.prefill, name) for name in PREFILL}
    things |= {f"decoded token, {name}": partial(side.decode, name) for name in DECODE}
    for measure in things.values():
        measure()  # what a first time takes once and for all
    size = sum(p.numel() for p in side.model.parameters())
    print(json.dumps({"tokensieve": ts.__file__, "parameters": size, "things": list(things)}), flush=True)
    for line in sys.stdin:
        print(json.dumps(things[line.strip()]()), flush=True)


if __name__ == "__main__":
    main()
