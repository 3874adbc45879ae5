"""Checks of vocabularies under small language models, which are trained here on manuals and Python's library."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.systems.bed import CheckContext, Outcome, check
from benchmarks.systems.tokenizers import MB, documents, on, trained
from tokensieve.retrieval.encoders.loading import load_encoder
from tokensieve.text import adapt, donors, models
from tokensieve.text.audit import audit, likeness
from tokensieve.text.config import TokenizerConfig
from tokensieve.text.rows import INITS
from tokensieve.text.tuning import Tuning
from tokensieve.text.vocabulary import Vocabulary

WITHHELD = 50
STEPS = 300


@dataclass(frozen=True)
class Small:
    """A tied language model of two layers, its tokenizer, the ids kept from its text, and how often all ids occur in it."""

    model: Any
    tokenizer: Tokenizer
    withheld: tuple[int, ...]
    counts: np.ndarray


@cache
def small(vocab: int, kind: str = "both", seed: int = 0, withhold: bool = False) -> Small:
    tokenizer = trained(kind, 2 * MB, TokenizerConfig(vocab=vocab)).tokenizer
    texts = [d.text for d in documents(kind, False, 2 * MB)]
    ids = np.concatenate([np.array(e.ids) for e in tokenizer.encode_batch_fast(texts)])
    counts = np.bincount(ids, minlength=vocab).astype(float)
    withheld: tuple[int, ...] = ()
    if withhold:
        rng, table = np.random.default_rng(seed), Vocabulary.of(tokenizer)
        open_ = np.array(
            [i for i in table.plain() if table.texts[i] is not None and len(table.texts[i] or "") > 1 and counts[i]]
        )
        drawn = rng.choice(open_, WITHHELD, replace=False, p=counts[open_] / counts[open_].sum())
        withheld = tuple(int(i) for i in drawn)
        ids = ids[~np.isin(ids, drawn)]
        counts = np.bincount(ids, minlength=vocab).astype(float)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, max_position_embeddings=1024,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with Tuning(model, ids.tolist(), None, rate=3e-3, length=128, batch=8, seed=seed) as tuning:
        for _ in range(STEPS):
            tuning.step()
    return Small(model.eval(), tokenizer, withheld, counts)


@check(399)
def magikarp(_: CheckContext) -> Outcome:
    """Language models of two layers, seeds 0 to 2, each with 50 tokens drawn by frequency kept from its text: AUROC of the cosine
    to untrained rows that were found, among tokens that occur; of short rows and of length alone; and how often flagged and
    random tokens cannot be repeated."""
    n: dict[str, Any] = {}
    worst, failing = 1.0, []
    for seed in range(3):
        bed = small(1024, seed=seed, withhold=True)
        rows = models.embeddings(bed.model)[0]

        def repeat(ids: Any, bed: Small = bed) -> list[float]:
            return models.repeats(bed.model, bed.tokenizer, ids)

        found = audit(bed.tokenizer, rows, repeat, most=WITHHELD)
        scores = aurocs(bed, rows, found.untrained)
        worst = min(worst, scores["cosine"])
        n |= {f"AUROC, {name}, seed {seed}": round(value, 4) for name, value in scores.items()}
        n[f"untrained rows, seed {seed}"] = len(found.untrained)
        failing.append(found.failing)
    n["cannot be repeated, flagged"] = round(float(np.mean([f for f, _ in failing])), 3)
    n["cannot be repeated, random"] = round(float(np.mean([r for _, r in failing])), 3)
    return worst > 0.95 and n["cannot be repeated, flagged"] > n["cannot be repeated, random"], n


def aurocs(bed: Small, rows: torch.Tensor, untrained: tuple[int, ...]) -> dict[str, float]:
    """Of each indicator, over withheld tokens and those that occur in the training text."""
    table = Vocabulary.of(bed.tokenizer)
    held = set(bed.withheld)
    ids = [i for i in table.plain() if table.texts[i] is not None and (i in held or bed.counts[i] > 0)]
    truth = [i in held for i in ids]
    by = {"cosine": likeness(rows, untrained), "norm": likeness(rows, ())}
    out = {name: float(roc_auc_score(truth, value[ids])) for name, value in by.items()}
    return out | {"length": float(roc_auc_score(truth, [len(table.texts[i] or "") for i in ids]))}


@check(88)
def problematic(_: CheckContext) -> Outcome:
    """The model of seed 0 with 50 planted tokens: share of them among the tokens flagged at 5% false alarms, by likeness to
    untrained rows and by length alone."""
    bed = small(1024, seed=0, withhold=True)
    rows = models.embeddings(bed.model)[0]
    untrained = audit(bed.tokenizer, rows, most=1).untrained
    table, held = Vocabulary.of(bed.tokenizer), set(bed.withheld)
    others = [i for i in table.plain() if table.texts[i] is not None and bed.counts[i] > 0 and i not in held]
    length = torch.tensor([float(len(t or "")) for t in table.texts])
    n = {}
    for name, score in (("audit", likeness(rows, untrained)), ("length", length)):
        limit = torch.quantile(score[others], 0.95)
        n[f"flagged, {name}"] = round(float((score[list(held)] > limit).float().mean()), 3)
    return n["flagged, audit"] >= 0.9 and n["flagged, audit"] > n["flagged, length"], n


@check(246)
def omp(_: CheckContext) -> Outcome:
    """A two-layer model of 1,024 tokens moved without training to the 768 tokens of another, whose embeddings are the donor: bits
    per byte on held-out text by initialisation; shared rows are unchanged."""
    base, donor = small(1024), small(768, "code", seed=1)
    n = moved(base, donor.tokenizer, models.embeddings(donor.model)[0])
    same = n.pop("shared rows unchanged")
    return same and n["omp"] < n["mean"] and n["omp"] < n["zero"], n | {"shared rows unchanged": same}


def moved(base: Small, new: Tokenizer, donor: torch.Tensor) -> dict[str, Any]:
    """Bits per byte of a model before, and under another vocabulary by every initialisation."""
    held = adapt.shortened([d.text for d in documents("both", True, MB)], 20_000)
    gaps = adapt.gaps_of(base.model, base.tokenizer, new, donor)
    size = new.get_vocab_size()
    n: dict[str, Any] = {
        "shared": len(gaps[0].shared_new),
        "missing": len(gaps[0].missing),
        "before": round(models.bits_per_byte(base.model, base.tokenizer, held), 4),
    }
    before = models.embeddings(base.model)[0].clone()
    same = True
    for row in adapt.compared(base.model, gaps, new, size, held):
        now = models.embeddings(base.model)[0]
        same &= torch.equal(now[gaps[0].shared_new], before[gaps[0].shared_old])
        n[row.name] = round(row.bits, 4)
    models.with_rows(base.model, before, None)
    return n | {"shared rows unchanged": same}


@check(78)
def hybrid(_: CheckContext) -> Outcome:
    """The same model moved to 768 tokens of code with MiniLM's vectors of the tokens as the donor: bits per byte of the hybrid
    against the mean of parts and random rows; and tokens of 8,192 with superwords against as many without."""
    base, new = small(1024), trained("code", 2 * MB, TokenizerConfig(vocab=768)).tokenizer
    encoder: Any = load_encoder()
    space = donors.of_strings(new, lambda strings: donors.pooled(encoder.documents(list(strings))))
    n = moved(base, new, space)
    plain, across = (trained("both", 12 * MB, TokenizerConfig(vocab=8192, superwords=s)) for s in (0.0, 0.45))
    n["supertokens, fewer"] = round(1 - on(across, "both").tokens / on(plain, "both").tokens, 4)
    assert set(INITS) <= n.keys()
    return n["hybrid"] < n["mean"] and n["hybrid"] < n["random"] and n["supertokens, fewer"] > 0, n
