"""Needs: how a method says which signals it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokensieve.core.signal_table import signal


@dataclass(frozen=True)
class Need:
    """A signal that a method reads.

    Args:
        name: a signal of the table (`tokensieve signals` lists it), or one that was registered from outside.
        layers: the encoder layers it is read at (negative counts from the end); () where the site decides.
        instead: names of signals that stand in where this one is absent, tried in this order.
        depth: the number of layers of the encoder that ``layers`` speak of, where a paper names layers of one; they are scaled
            to an encoder of another depth. None: they are meant as they are.
        window: how many queries it is about: the last ones, those expected next, or those that stand for all of a pass.
        rate: by what the weight of earlier queries is multiplied with every further one; or the share of queries that is read.
        own: for `prefill`, which layer's attention is read: that of the layer in front of which the stage stands, from the
            queries and keys that it makes of the states there; by default that of the layer before, as it ran.
    """

    name: str
    layers: tuple[int, ...] = ()
    instead: tuple[str, ...] = ()
    depth: int | None = None
    window: int = 0
    rate: float = 1.0
    own: bool = False

    def scaled(self, layer: int, depth: int) -> int:
        """A layer counted from the end, in an encoder of ``depth`` layers; -2, where features usually leave, stays."""
        if self.depth is None or layer >= -2:
            return layer
        return -2 - round((-2 - layer) * (depth - 2) / (self.depth - 2))


def with_reads(needs: Sequence[Need], site: str) -> tuple[Need, ...]:
    """Needs, and behind them those of the functions that compute one of them at a site.

    Raises:
        ValueError: one signal is to be read in two ways.
    """
    out = list(needs)
    for asked in out:
        row = signal(asked.name)
        for more in row.reads if site in row.sites else ():
            same = next((n for n in out if n.name == more.name), more)
            if replace(same, layers=(), instead=()) != replace(more, layers=(), instead=()):
                raise ValueError(f"{more.name} is read in two ways: {same} and, to compute {asked.name}, {more}")
            if more not in out:
                out.append(more)
    return tuple(out)


def only_given(needs: Sequence[Need]) -> list[str]:
    """Of needs, those signals that no site has, and no stand-in of which any has: a caller gives them."""
    return [n.name for n in needs if not any(signal(name).sites for name in (n.name, *n.instead))]


def need(name: str, **how: Any) -> Need:
    """A need with the stand-ins that the table of signals names; ``how``: the other fields."""
    return Need(name, instead=signal(name).instead, **how)


def CLSAttention(*layers: int, depth: int | None = None) -> Need:
    """Attention of the encoder's CLS token to the patches; mean received attention where an encoder has no CLS."""
    return need("cls_attention", layers=layers, depth=depth)


def ReceivedAttention(*layers: int, depth: int | None = None) -> Need:
    """Mean attention that each patch receives from all queries."""
    return need("received_attention", layers=layers, depth=depth)


def CLSSimilarity(*layers: int, depth: int | None = None) -> Need:
    """Softmax over all tokens of the dot product of their values with the CLS token's."""
    return need("cls_similarity", layers=layers, depth=depth)


def Keys(*layers: int) -> Need:
    """Attention keys; the features where none are given."""
    return need("keys", layers=layers)


def Values(*layers: int, depth: int | None = None) -> Need:
    """Attention values; the features where none are given."""
    return need("values", layers=layers, depth=depth)


TextAttention = need("text_attention")
"""Attention rows of the text tokens to the visual tokens, at the language-model layer of the stage."""

LastAttention = need("last_attention")
"""Attention of the last prompt token to the visual tokens, in the layer before the stage."""

OwnLastAttention = replace(LastAttention, own=True)
"""The same in the layer in front of which the stage stands, before any token has left."""

PageRank = need("pagerank")
"""Where sharpened attention among all tokens comes to rest after a few steps, at the language-model layer of the stage."""

Ranking = need("ranking")
"""What an earlier stage, in front of the language model, ranked the tokens by; in a plan without one, the text's interest."""

Entropy = need("entropy")
"""How many bits a patch's pixel values need; the features where that is not known (a method then goes without)."""

Text = Need("text")
"""Embeddings of the text tokens, in the space of the features."""

PairedText = need("paired")
"""Which text tokens stand between an image and the next one of its prompt; all text where that is not known."""

Relevance = need("relevance")
"""Similarity of each visual token to the text in a shared space (a CLIP pair's); from the text embeddings otherwise."""

Neurons = Need("neurons")
"""Activations of the feed-forward neurons for each visual token, in the layer before the stage."""

TextNeurons = Need("text_neurons")
"""The same for each text token."""

TextToText = Need("text_text")
"""Attention rows of the text tokens to the text tokens, in a layer at ``site="focus"``."""


def WindowAttention(window: int) -> Need:
    """Attention rows of the last ``window`` tokens to all cache entries."""
    return Need("window_attention", window=window)


def AccumulatedAttention(rate: float = 1.0, queries: int = 512) -> Need:
    """Attention that each cache entry got from all queries so far, summed; those t queries ago weigh ``rate ** t``.

    Of a pass of more than ``queries``, so many stand for all of them: no kernel hands attention out, so that whatever is read of
    it is computed a second time."""
    return Need("accumulated_attention", window=queries, rate=rate)


def ExpectedLogits(window: int) -> Need:
    """Log of the attention, not normalised, that each cache entry can expect from queries at the next ``window`` positions."""
    return Need("expected_logits", window=window)


Rarity = Need("idf")
"""How rare each token is in the collection: its inverse document frequency."""

StopWords = Need("stop")
"""Which tokens belong to words that say little on their own: function words and punctuation."""

Passages = Need("passage")
"""Which passage of a prompt each unit of text is of."""

Shift = Need("shift")
"""How far a sentence's vector moves where a unit is left out of it."""

Surprisal = Need("surprisal")
"""How unlikely a unit of text is to a language model."""

Words = Need("word")
"""Which word of its text each token belongs to."""


def ProbeAttention(share: float) -> Need:
    """Mean attention that each cache entry got from those that see it of a ``share`` of the queries, half of them the last."""
    return Need("probe_attention", rate=share)


Visual = Need("visual")
"""Which cached tokens are visual."""

VisualShare = Need("visual_share")
"""How much of each cached token's own attention went to visual tokens."""

TokenIds = Need("token_ids")
"""The vocabulary's number of each cached token."""

Change = Need("change")
"""How far each token of a denoiser has moved since the last pass of all of them."""

Staleness = Need("staleness")
"""In how many passes of a denoiser each token has taken no part."""
