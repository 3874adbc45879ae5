"""Encode texts by a transformers encoder: one vector per token, from its last hidden states."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tokensieve.core.plan import Plan
from tokensieve.parts.attention import rows
from tokensieve.retrieval.encoders.encoded import Encoded, Identity, ends, join
from tokensieve.retrieval.encoders.reading import Reader, Reading, TokenizedText
from tokensieve.sites.model import taps
from tokensieve.sites.model.structure import find
from tokensieve.sites.sieve import Sieve

BATCH = 4096
"""Tokens of a batch."""


class TextEncoder:
    """Token vectors of a transformers encoder, of length 1.

    Texts of equally many tokens share a batch, so that nothing is padded and no text depends on its neighbours.

    Args:
        model: an encoder whose output has ``last_hidden_state``.
        tokenizer: a fast one, which knows the characters behind its tokens.
        reading: markers, prompts and lengths.
        heads: modules applied to the hidden state of each token (ColBERT's linear layer).
        single_heads: modules applied to the single vector.
        plan: reductions inside the encoder (site "encoder"), for documents only.
        name: for people.

    Raises:
        ValueError: a slow tokenizer, markers that its vocabulary lacks, a plan for other sites.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        reading: Reading | None = None,
        heads: Sequence[nn.Module] = (),
        single_heads: Sequence[nn.Module] = (),
        plan: Plan | None = None,
        name: str = "",
    ):
        if plan is not None and any(s.site != "encoder" for s in plan.stages):
            raise ValueError("plan holds stages of other sites than 'encoder'; reduce stored vectors afterwards")
        self.model, self.tokenizer, self.reading = model.eval(), tokenizer, reading or Reading()
        self.reader = Reader(tokenizer, self.reading)
        self.heads, self.single_heads, self.plan = list(heads), list(single_heads), plan
        self.name = name or type(model).__name__

    @cached_property
    def identity(self) -> Identity:
        digest = sha256(json.dumps(asdict(self.reading), sort_keys=True).encode())
        if self.plan is not None:
            digest.update(json.dumps(self.plan.to_json(), sort_keys=True).encode())
        # What a call leaves behind in the tokenizer changes no vectors.
        cuts = json.loads(self.tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
        digest.update(json.dumps(cuts, sort_keys=True).encode())
        config: Any = self.model.config
        width = config.get_text_config().hidden_size
        for part in (self.model, *self.heads, *self.single_heads):
            for key, value in sorted(part.state_dict().items()):
                digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        for head in self.heads:
            width = next((m.out_features for m in head.modules() if isinstance(m, nn.Linear)), width)
        return Identity(self.name, digest.hexdigest(), width)

    def documents(self, items: Sequence[str], needs: Collection[str] = ()) -> Encoded:
        return self._encode(items, False, "received_attention" in needs and self.plan is None)

    def queries(self, texts: Sequence[str]) -> Encoded:
        return self._encode(texts, True, False)

    # ---- running ----------------------------------------------------------------------------------------------------

    def _encode(self, texts: Sequence[str], query: bool, attention: bool) -> Encoded:
        read = self.reader.read(texts, query)
        if not read:
            empty = torch.zeros(0, dtype=torch.long)
            return Encoded(torch.zeros(0, self.identity.dim), ends(empty), empty.view(0, 2))
        parts, order = [], []
        for batch in _batches([len(t.ids) for t in read]):
            parts.append(self._run([read[i] for i in batch], query, attention))
            order += batch
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return join(parts).rows(back)

    @torch.no_grad()
    def _run(self, texts: Sequence[TokenizedText], query: bool, attention: bool) -> Encoded:
        """Texts of one length."""
        device = next(self.model.parameters()).device
        ids = torch.tensor([t.ids for t in texts])
        attended = torch.tensor([t.attended for t in texts])[:, None]
        mask = torch.arange(ids.shape[1]) < attended
        given: dict[str, Tensor] = {"input_ids": ids.to(device)}
        if not bool(mask.all()):
            given["attention_mask"] = mask.long().to(device)
        sieve = None if query or self.plan is None else Sieve(self.model, self.plan)
        heard, undo = self._listen() if attention else ([], None)
        try:
            if sieve is None:
                hidden = self.model(**given).last_hidden_state
            else:
                with sieve:
                    hidden = self.model(**given).last_hidden_state
        finally:
            if undo is not None:
                undo()
        single = self._single(hidden, mask.to(device))
        keep = torch.ones_like(ids, dtype=torch.bool)
        if not query and self.reader.skipped:
            keep = ~torch.isin(ids, torch.tensor(self.reader.skipped))
            # A document of skipped words alone keeps them.
            keep |= ~keep.any(1, keepdim=True)
        signals = {
            "ids": ids,
            "word": torch.tensor([t.words for t in texts]),
            "stop": torch.tensor([t.stops for t in texts]),
        }
        if heard:
            signals["received_attention"] = heard[-1].mean(1).float().cpu()
        if sieve is not None and sieve.last is not None and sieve.last.stays is not None:
            stays = sieve.last.stays
            keep = stays & (keep | ~(stays & keep).any(1, keepdim=True))
        for head in self.heads:
            hidden = head(hidden)
        vectors = normalize(hidden.float(), dim=-1).cpu()
        spans = torch.tensor([t.spans for t in texts])
        return Encoded(vectors[keep], ends(keep.sum(1)), spans[keep], {k: v[keep] for k, v in signals.items()}, single)

    def _single(self, hidden: Tensor, mask: Tensor) -> Tensor | None:
        if self.reading.pooling is None:
            return None
        valid = mask[..., None].to(hidden.dtype)
        if self.reading.pooling == "cls":
            one = hidden[:, 0]
        elif self.reading.pooling == "last":
            one = hidden[torch.arange(len(hidden)), mask.sum(1) - 1]
        elif self.reading.pooling == "max":
            one = hidden.masked_fill(valid == 0, -torch.inf).amax(1)
        else:
            one = (hidden * valid).sum(1) / valid.sum(1)
        for head in self.single_heads:
            one = head(one)
        return normalize(one.float(), dim=-1).cpu()

    def _listen(self) -> tuple[list[Tensor], Callable[[], None]]:
        """Record the attention that each token receives in the last layer."""
        try:
            stack = find(self.model).vision
        except ValueError:
            stack = None
        module = None if stack is None else stack.attentions[-1]
        if module is None:
            raise ValueError(
                f"received_attention cannot be read from {type(self.model).__name__}; choose a method that does not need it"
            )
        heard: list[Tensor] = []

        def observe(call: taps.Call) -> None:
            heard.append(rows.received(call.query, call.key, call.scale, call.mask))

        return heard, taps.attach(module, observe=observe)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Texts of equal lengths together, up to ``BATCH`` tokens at a time."""
    by_length: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        by_length.setdefault(length, []).append(i)
    for length, found in sorted(by_length.items()):
        size = max(BATCH // length, 1)
        yield from (found[i : i + size] for i in range(0, len(found), size))
