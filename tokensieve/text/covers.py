"""Next bytes from next tokens: the covers of a prefix, weighed by a model that reads what they share once.

A cover of some bytes is a row of tokens whose text begins with them and whose last token holds the last of them. Its finished
part is all but that token. Covers count here whose finished part is proper: the row that the tokenizer writes for its text.
There is one such part for each place where the last token can begin, so that there are no more of them than bytes in the longest
token.

Sources: Phan et al., Understanding and Mitigating Tokenization Bias in Language Models (arXiv 2406.16829), and Exact Byte-Level
Probabilities from Tokenized Language Models (arXiv 2410.09303). Deviation: their recursions for greedy and for byte-pair
vocabularies are one here, since only the finished part has to be proper, which the tokenizer itself tells.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokensieve.sites.model.compatibility import DynamicLayer, cache_argument, cache_in
from tokensieve.text.prefixes import NONE, Prefixes
from tokensieve.text.proper import Frame, Ids

ROWS = 16
"""Covers that one pass of the model reads beside each other."""


@dataclass(frozen=True)
class Cover:
    """A finished part, and the bytes that the token behind it has to begin with.

    Attributes:
        ids: the tokens behind the frame's head; left: the bytes, none for the part that says the whole prefix.
    """

    ids: Ids
    left: bytes


def covers(frame: Frame, prefixes: Prefixes) -> list[Cover]:
    """The covers of a frame's tail, from the longest finished part on."""
    text = frame.lead + frame.tail
    out = []
    for n in range(len(text), max(-1, len(text) - prefixes.longest), -1):
        left = text[n:]
        place = prefixes.range(left)
        if place.stop <= place.start or 0 < n < len(frame.lead):
            continue
        ids = () if n == 0 else frame.ids(text[len(frame.lead) : n])
        if ids is not None:
            out.append(Cover(ids, left))
    return out


class Reader:
    """A causal model that has read a row of tokens, and goes on from it.

    Attributes:
        model: of transformers, with a cache that can be copied and repeated (``DynamicCache``).
    """

    def __init__(self, model: Any):
        self.model = model
        self._held: Ids = ()
        self._cache: Any = None
        self._last: Tensor | None = None

        self._few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        self._most = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def read(self, ids: Ids) -> Tensor:
        """The logits (V,) behind a row of tokens; what the row read before begins it with is not read again.

        Raises:
            ValueError: the row is longer than what the model reads.
        """
        if ids == self._held and self._last is not None:
            return self._last
        same = next((k for k, (a, b) in enumerate(zip(ids, self._held, strict=False)) if a != b), len(self._held))
        self._keep(min(same, len(ids) - 1))
        return self._forward(ids, self._few)[-1]

    def _keep(self, count: int) -> None:
        """Forget what was read behind so many tokens; all of it, where the cache cannot be cut."""
        if count == len(self._held):
            return
        layers = getattr(self._cache, "layers", None)
        if count and layers and all(type(layer) is DynamicLayer for layer in layers):
            self._cache.crop(count - len(self._held))
            self._held = self._held[:count]
        else:
            self._held, self._cache = (), None

    def spoken(self, ids: Ids, given: int) -> float:
        """The log-probability (nats) of a row of tokens behind the first ``given`` of them; it is read then."""
        self._held, self._cache = (), None
        logits = self._forward(ids, {})
        steps = logits[given - 1 : -1].double().log_softmax(-1)
        return float(steps.gather(1, torch.tensor(ids[given:], device=steps.device)[:, None]).sum())

    @torch.inference_mode()
    def _forward(self, ids: Ids, options: dict[str, Any]) -> Tensor:
        if self._most is not None and len(ids) > self._most:
            raise ValueError(f"the prefix is {len(ids)} tokens long; the model reads at most {self._most}; shorten it")
        fresh = torch.tensor([ids[len(self._held) :]], device=self.model.device)
        held = cache_argument(self.model, self._cache)
        out = self.model(input_ids=fresh, use_cache=True, **held, **options)
        self._held, self._cache, self._last = ids, cache_in(out), out.logits[0, -1]
        return out.logits[0]

    @torch.inference_mode()
    def branch(self, rows: Sequence[Ids]) -> list[Tensor]:
        """The logits (len(row), V) behind each token of rows that follow what was read, none of them kept."""
        out: list[Tensor] = []
        for at in range(0, len(rows), ROWS):
            part = rows[at : at + ROWS]
            cache = copy.deepcopy(self._cache)
            if not hasattr(cache, "batch_repeat_interleave"):
                raise ValueError(
                    f"{type(self.model).__name__} keeps a {type(cache).__name__}, which cannot be repeated for several "
                    "covers; give a model of transformers that keeps a DynamicCache"
                )
            cache.batch_repeat_interleave(len(part))
            width = max(map(len, part))
            # What stands behind a row's end is seen by nothing before it, and not looked at.
            given = torch.tensor([[*r, *[r[-1]] * (width - len(r))] for r in part], device=self.model.device)
            logits = self.model(input_ids=given, use_cache=True, **cache_argument(self.model, cache)).logits
            out += [logits[i, : len(r)] for i, r in enumerate(part)]
        return out


def common(found: Sequence[Cover]) -> int:
    """How many tokens all finished parts begin with."""
    first, shared = found[0].ids, 0
    while all(len(c.ids) > shared and c.ids[shared] == first[shared] for c in found):
        shared += 1
    return shared


def weighed(reader: Reader, before: Ids, found: Sequence[Cover]) -> list[tuple[float, Tensor]]:
    """For each cover the log-probability (nats) of its finished part, but for what all of them share, and those of the tokens
    (V,) behind it.

    Args:
        before: the tokens that stand before all of them, at least one.
    """
    shared = common(found)
    first = reader.read(before + found[0].ids[:shared]).double().log_softmax(-1)
    tails = sorted({c.ids[shared:] for c in found} - {()})
    leaves = [t for i, t in enumerate(tails) if i + 1 == len(tails) or tails[i + 1][: len(t)] != t]
    behind = {
        leaf: logits.double().log_softmax(-1)
        for leaf, logits in zip(leaves, reader.branch(leaves) if leaves else [], strict=True)
    }
    out = []
    for c in found:
        tail = c.ids[shared:]
        steps = [first]
        if tail:
            leaf = next(leaf for leaf in leaves if leaf[: len(tail)] == tail)
            steps = [first, *behind[leaf][: len(tail)]]
        out.append((float(sum(steps[k][t] for k, t in enumerate(tail))), steps[-1]))
    return out


@dataclass(frozen=True)
class Tally:
    """What the covers of a prefix say.

    Attributes:
        next: (257,) probabilities of each next byte and of the end, summing to 1.
        outside: the share of the prefix's own probability, over rows whose finished part is proper, that they leave out: rows
            that say the prefix exactly and are not proper, and special tokens behind it.
        log_total: nats of the prefix's probability over all its covers, but for what all of them share.
    """

    next: Tensor
    outside: float
    log_total: float


def tally(
    prefixes: Prefixes, found: Sequence[Cover], weights: Sequence[tuple[float, Tensor]], ends: Sequence[int]
) -> Tally:
    """Sum covers up.

    Args:
        found, weights: the covers, and what :func:`weighed` gives of them; ends: ids of tokens that end a text.

    Raises:
        ValueError: the model gives none of them any probability.
    """
    highest = max(w for w, _ in weights)
    mass = torch.zeros(NONE + 1, dtype=torch.float64)
    end = longer = 0.0
    exact: dict[Ids, float] = {}
    for c, (weight, tokens) in zip(found, weights, strict=True):
        scale = math.exp(weight - highest) if weight > -math.inf else 0.0
        place = prefixes.range(c.left)
        ids, going = torch.from_numpy(prefixes.ids[place]), torch.from_numpy(prefixes.column(len(c.left))[place])
        p = tokens.cpu().exp() * scale
        mass.index_add_(0, going, p[ids])
        if c.left:
            longer += float(p[ids[going != NONE]].sum())
            exact |= {(*c.ids, i): float(p[i]) for i in ids[going == NONE].tolist()}
        else:
            end = float(p[list(ends)].sum())
            exact[c.ids] = scale
    kept = torch.cat([mass[:NONE], torch.tensor([end], dtype=torch.float64)])
    goes_on, total = float(kept.sum()), longer + sum(exact.values())
    if not goes_on > 0:
        raise ValueError("no token goes on behind this prefix with any probability; are the model's outputs finite?")
    return Tally(kept / goes_on, max(0.0, 1.0 - goes_on / total), math.log(total) + highest)
