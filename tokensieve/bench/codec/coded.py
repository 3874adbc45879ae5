"""What the codes of a tokenizer say: bytes, usage, a small model of them, and what errors do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from tokensieve.codec import usage
from tokensieve.codec.packing import pack
from tokensieve.codec.statistics import static_bits, zipf_slope

ALPHABET = 1 << 16
"""Codes of a token that are modelled as one symbol; where there are more, each component is a symbol."""
STEPS, ROWS, HIDDEN = 40, 4, 64
SWAPPED = 0.1


def symbols(indices: Tensor, levels: Sequence[int]) -> tuple[Tensor, int]:
    """Codes ``(n, N, C)`` as sequences ``(n, symbols)``, and how many different symbols there can be."""
    if math.prod(levels) <= ALPHABET:
        return pack(indices, levels), math.prod(levels)
    start = torch.tensor([sum(levels[:i]) for i in range(len(levels))])
    return (indices + start).flatten(1), sum(levels)


def described(train: Tensor, test: Tensor, levels: Sequence[int], seed: int) -> dict[str, Any]:
    """Columns that need the codes alone.

    Args:
        train, test: ``(n, N, C)``.
    """
    a, count = symbols(train, levels)
    b, _ = symbols(test, levels)
    every, held = usage(torch.cat([train, test]), levels), usage(test, levels)
    joint = pack(test, levels) if math.prod(levels) <= 2**63 else b
    seen = joint.flatten().unique(return_counts=True)[1].sort(descending=True).values
    return {
        "static_bytes": float(static_bits(a, b, count).mean()) / 8,
        "used": 1 - every.dead, "distinct": every.distinct, "entropy": held.entropy, "perplexity": held.perplexity,
        "zipf": zipf_slope(joint), "lm_bits": modelled(a, b, count, seed) * a.shape[1] / test.shape[1],
        "histogram": seen[torch.linspace(0, len(seen) - 1, min(len(seen), 200)).long()].tolist(),
    }  # fmt: skip


def modelled(train: Tensor, test: Tensor, count: int, seed: int) -> float:
    """Bits a symbol of ``test`` under one fixed small autoregressive model, trained on ``train`` for a fixed number of steps.

    Its output starts from the symbols' frequencies, so that the steps go into what depends on the context.
    """
    from transformers import LlamaConfig, LlamaModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=1, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=train.shape[1] + 1, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        body, table = LlamaModel(config), torch.nn.Embedding(count + 1, HIDDEN)
        head = torch.nn.Linear(HIDDEN, count)
    seen = torch.bincount(train.flatten(), minlength=count).float() + 0.5
    head.bias.data = (seen / seen.sum()).log()
    torch.nn.init.zeros_(head.weight)

    def bits(rows: Tensor) -> Tensor:
        before = torch.cat([rows.new_full((len(rows), 1), count), rows[:, :-1]], 1)
        hidden = body(inputs_embeds=table(before), use_cache=False).last_hidden_state
        return torch.nn.functional.cross_entropy(head(hidden).flatten(0, 1), rows.flatten()) / math.log(2)

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([*body.parameters(), *table.parameters(), *head.parameters()], 3e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        bits(train[torch.randint(len(train), (ROWS,), generator=generator)]).backward()
        optimizer.step()
    with torch.no_grad():
        return float(torch.stack([bits(part) * len(part) for part in test.split(ROWS)]).sum() / len(test))


def swapped(indices: Tensor, near: Callable[[Tensor, Generator], Tensor], seed: int) -> Tensor:
    """Codes ``(n, N, C)``, a tenth of them, drawn, become neighbours, as a generator's near misses do."""
    generator = torch.Generator().manual_seed(seed)
    flat = indices.flatten(0, 1).clone()
    at = torch.randperm(len(flat), generator=generator)[: max(1, round(SWAPPED * len(flat)))]
    flat[at] = near(flat[at], generator)
    return flat.view_as(indices)


def probe(train: Tensor, test: Tensor, labels: tuple[Tensor, Tensor]) -> float:
    """Accuracy of a linear probe on what stands for a signal, ``(n, values)``."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    return float(model.fit(train.numpy(), labels[0].numpy()).score(test.numpy(), labels[1].numpy()))
