"""What checks of small language models on text share: a Llama from the ground up, taught to end texts that are begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.systems import small

END = 0
"""Ends an answer, and begins a text; it also pads."""
Pair = tuple[list[int], list[int]]


def llama(vocab: int, width: int, layers: int = 2, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, num_key_value_heads=width // 32, bos_token_id=END, eos_token_id=END,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def collate(pairs: Sequence[Pair]) -> Tensor:
    """(2, B, T): ids, and those of the answers alone, -100 elsewhere."""
    rows = [[END, *given, *answer, END] for given, answer in pairs]
    width = max(map(len, rows))
    out = torch.full((2, len(rows), width), END)
    out[1] = -100
    for i, ((given, _), row) in enumerate(zip(pairs, rows, strict=True)):
        out[0, i, : len(row)] = torch.tensor(row)
        out[1, i, 1 + len(given) : len(row)] = out[0, i, 1 + len(given) : len(row)]
    return out


def teach(name: str, model: Any, make: Callable[[int], Pair], steps: int, batch: int, rate: float) -> None:
    """Train a model to answer, by the loss of the answers."""

    def loss(rows: Tensor) -> Tensor:
        ids, wanted = rows
        logits = model(input_ids=ids[:, :-1]).logits
        return cross_entropy(logits.float().flatten(0, 1), wanted[:, 1:].flatten(), ignore_index=-100)

    small.train(name, model, loss, make, steps, rate, batch, collate)


@torch.no_grad()
def answers(model: Any, given: Sequence[list[int]], most: int) -> list[list[int]]:
    """What a model says behind texts, greedily, up to its end; rows of one length are asked at once."""
    out: dict[int, list[int]] = {}
    for length in sorted({len(g) for g in given}):
        some = [i for i, g in enumerate(given) if len(g) == length]
        for part in (some[at : at + 64] for at in range(0, len(some), 64)):
            rows = torch.tensor([[END, *given[i]] for i in part])
            made = model.generate(
                rows, attention_mask=torch.ones_like(rows), max_new_tokens=most, do_sample=False, pad_token_id=END
            )
            for i, row in zip(part, made[:, rows.shape[1] :].tolist(), strict=True):
                out[i] = row[: row.index(END)] if END in row else row
    return [out[i] for i in range(len(given))]
