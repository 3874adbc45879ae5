"""A check of reading by chunks, on the packaged language model and lists of keys and values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor

import tokensieve as ts
from benchmarks.systems.bed import SEED, CheckContext, Outcome, check
from tokensieve.sites.cache.reading import ChunkReader, ReadingSample, asked
from tokensieve.testbed import lm

LENGTH, CHUNK, FITTED, ASKED = 512, 64, 60, 80


def samples(say: Any, count: int, seed: int) -> list[tuple[ReadingSample, list[int]]]:
    """Lists of keys and values, one of the keys again, where its line ends, and its value."""
    out = []
    for i in range(count):
        made = lm.pairs(np.random.default_rng((SEED, seed, i)), say, LENGTH, 1)
        start, end = made.answers[0]
        ids = torch.from_numpy(made.ids)
        each = LENGTH - made.context
        line = int(made.depths[0] * (made.context // each))
        sample = ReadingSample(ids[: made.context], ids[made.context : start], (line + 1) * each)
        out.append((sample, made.ids[start:end].tolist()))
    return out


@torch.no_grad()
def answer(model: Any, text: Tensor, question: Tensor, count: int) -> list[int]:
    ids = torch.cat([text, question])[None]
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return out[0, ids.shape[1] :].tolist()


@torch.no_grad()
def f1(model: Any, reader: ChunkReader, held: list[tuple[ReadingSample, list[int]]]) -> float:
    """Of the ensemble behind every chunk of texts that it was not fitted to."""
    said, truth = [], []
    for sample, _ in held:
        for n in range(CHUNK, len(sample.text) + 1, CHUNK):
            cache = ts.prefill(model, sample.text[None, :n])
            p = float(reader.probes.probability(asked(model, cache, sample.question[None]))[0])
            said.append(p >= reader.threshold)
            truth.append(n >= sample.enough)
    return float(f1_score(truth, said))


@check(341)
def cutoff(_: CheckContext) -> Outcome:
    """The packaged model, lists of keys and values of 512 tokens, one key asked for: 60 lists to fit probes to, 80 others read
    by chunks of 64. F1 of the ensemble, answers as many as of the whole lists, tokens of them that were read; and answers of as
    many tokens from their beginning, and from their end."""
    model, tokenizer = lm.load()
    say = lm.speech(tokenizer)
    probes = ts.fit_probes(model, [s for s, _ in samples(say, FITTED, 0)], CHUNK, seed=SEED)
    reader, held = ts.reading(model, probes, CHUNK), samples(say, ASKED, 1)
    right = dict.fromkeys(("whole", "reading", "beginning", "end"), 0)
    found = [reader(s.text, s.question) for s, _ in held]
    mean = round(float(np.mean([r.read for r in found])))
    for read, (s, value) in zip(found, held, strict=True):
        inputs = read.inputs
        out = model.generate(**inputs, max_new_tokens=len(value), do_sample=False, pad_token_id=0)
        right["reading"] += out[0, read.ids.shape[1] :].tolist() == value
        for name, text in (("whole", s.text), ("beginning", s.text[:mean]), ("end", s.text[-mean:])):
            right[name] += answer(model, text, s.question, len(value)) == value
    n: dict[str, Any] = {f"right of {ASKED}, {k}": v for k, v in right.items()}
    n["F1"] = round(f1(model, reader, held[:25]), 4)
    n["tokens read"], n["of"] = mean, len(held[0][0].text)
    n["times fewer"] = round(n["of"] / mean, 3)
    n["tokens of questions, in addition"] = round(float(np.mean([r.probed for r in found])), 1)
    shorter = max(right["beginning"], right["end"])
    equal = right["reading"] >= 0.99 * right["whole"]
    return n["F1"] > 0.9 and n["times fewer"] >= 1.3 and equal and shorter < right["reading"], n
