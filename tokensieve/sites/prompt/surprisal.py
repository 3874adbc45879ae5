"""Surprisal: how unlikely each unit of a text is to a language model, which reads the text in windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tokensieve.sites.prompt.cutting import Cut
from tokensieve.sites.prompt.protect import Span

WINDOW = 1024
"""Tokens that are read at once."""
BEFORE = 64
"""Tokens of the window before that each further window begins with."""


def surprisals(cut: Cut, model: Any, tokenizer: Any) -> Tensor:
    """``(n,)``: the mean nats of the tokens of each unit; every passage is read by itself.

    Args:
        model: a causal language model; tokenizer: its own, a fast one.
    """
    out = torch.zeros(len(cut.spans))
    ends = [*cut.starts[1:], len(cut.text)]
    by_passage: dict[int, list[int]] = {}
    for unit, passage in enumerate(cut.passages):
        by_passage.setdefault(passage, []).append(unit)
    for passage, units in by_passage.items():
        start = cut.starts[passage]
        nats, spans = _read(model, tokenizer, cut.text[start : ends[passage]])
        out[units] = _means(nats, spans, [(cut.spans[u][0] - start, cut.spans[u][1] - start) for u in units])
    return out


def _means(nats: Tensor, spans: Sequence[Span], units: Sequence[Span]) -> Tensor:
    """The mean over the tokens that have a part in each unit; tokens and units are in the order of the text."""
    out, token = torch.zeros(len(units)), 0
    for i, (a, b) in enumerate(units):
        while token < len(spans) and spans[token][1] <= a:
            token += 1
        last = token
        while last < len(spans) and spans[last][0] < b:
            last += 1
        if last > token:
            out[i] = nats[token:last].mean()
    return out


@torch.no_grad()
def _read(model: Any, tokenizer: Any, text: str) -> tuple[Tensor, list[Span]]:
    """The nats of each token of a text, and its characters."""
    read = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    ids, spans = torch.tensor(read["input_ids"], dtype=torch.long), list(map(tuple, read["offset_mapping"]))
    if not len(ids):
        return torch.zeros(0), spans
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    # Behind nothing at all, every token is as likely as any other.
    nats = [torch.full((1,), math.log(model.config.get_text_config().vocab_size))] if begin is None else []
    row = ids if begin is None else torch.cat([torch.tensor([begin]), ids])
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or WINDOW
    window, done = min(WINDOW, longest), 0
    before = min(BEFORE, window // 2)
    while done < len(row) - 1:
        low = max(0, done - before)
        stop = min(low + window, len(row) - 1)
        given = row[low:stop][None].to(model.device)
        logits = model(given, use_cache=False, logits_to_keep=stop - done).logits[0]
        nats.append(cross_entropy(logits.float(), row[done + 1 : stop + 1].to(model.device), reduction="none").cpu())
        done = stop
    return torch.cat(nats), spans
