"""The table of signals: what methods may read, one row each. All else that knows of a signal reads its row here."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokensieve.core.registry import Registry

if TYPE_CHECKING:
    from tokensieve.core.needs import Need

VALUES = ("real", "share", "number", "part", "bool")


@dataclass(frozen=True)
class Signal:
    """A signal: a tensor about the tokens of each row.

    Attributes:
        name: the keyword of `tokensieve.reduce`, and the attribute of :class:`~tokensieve.Signals`.
        shape: in words, "(B, heads, N) or (B, N)": B rows, N tokens, T text tokens, W queries, D as wide as the features; any
            other word stands for a size of its own. The same axis, counted from the end, holds the tokens in all alternatives.
        meaning: what its values say.
        layers: whether a mapping from encoder layer to tensor may be given as well.
        instead: signals that usually stand in where it is absent, in this order.
        sites: who gives it; () where only the caller can.
        values: "real" numbers; "share", which sum to 1 along the last axis; "number", which of many things it is, from 0; "part",
            the same, with -1 for none; "bool".
        passed: how it is passed, where that is not by its name and shape.
        compute: what gives it at its ``sites``, for signals from outside: a function of the :class:`~tokensieve.Signals` that
            a method is about to get there, and of the model, to a tensor of that shape.
        reads: what that function reads beside the features; the site then gives it, as it would to a method.
    """

    name: str
    shape: str
    meaning: str
    layers: bool = False
    instead: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    values: str = "real"
    passed: str = ""
    # Not compared: a function that is defined once more, in a notebook, is the same signal's.
    compute: Callable[[Any, Any], Any] | None = field(default=None, compare=False, repr=False)
    reads: tuple[Need, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"a signal is called by a keyword; {self.name!r} is none")
        if self.values not in VALUES:
            raise ValueError(f"values={self.values!r} of the signal {self.name!r}; they are {', '.join(VALUES)}")
        if any(not re.fullmatch(r"\(\w+(, [\w/]+)+\)", one) for one in self.shape.split(" or ")):
            raise ValueError(f"shape={self.shape!r} of the signal {self.name!r}; write it as '(B, heads, N) or (B, N)'")
        for letter in "NT":
            self._axis(letter)

    @cached_property
    def shapes(self) -> tuple[tuple[str, ...], ...]:
        """The shapes that it may have, each as the words of its axes."""
        return tuple(tuple(one.strip("()").split(", ")) for one in self.shape.split(" or "))

    @cached_property
    def axis(self) -> int | None:
        """The axis of the N tokens, counted from the end: -1, -2; None where it is not about them."""
        return self._axis("N")

    @cached_property
    def text_axis(self) -> int | None:
        """The axis of the T text tokens, likewise."""
        return self._axis("T")

    @property
    def how(self) -> str:
        """How to pass it: "keys=k with k of shape ..."."""
        letter = self.name.rpartition("_")[2][:1]
        mapping = f", or {{layer: {letter}}}" if self.layers else ""
        return self.passed or f"{self.name}={letter} with {letter} of shape {self.shape}{mapping}"

    def fits(self, shape: tuple[int, ...], batch: int, n: int) -> bool:
        """Whether a tensor of this shape may be it, for ``batch`` rows of ``n`` tokens."""
        if len(shape) not in map(len, self.shapes) or shape[0] != batch:
            return False
        return self.axis is None or shape[self.axis] == n

    def _axis(self, letter: str) -> int | None:
        # Where one of several shapes has the letter, a tensor may do without: (B, N) or (B, T, N) is not about text alone.
        found = {words.index(letter) - len(words) if letter in words else None for words in self.shapes}
        if len(found - {None}) > 1 or (letter == "N" and len(found) > 1):
            raise ValueError(
                f"shape={self.shape!r} of the signal {self.name!r} has {letter} at different axes from the end"
            )
        return None if None in found else found.pop()


SIGNALS: Registry[Signal] = Registry("signal")

ATTENTION = "(B, heads, N) or (B, N)"
ROWS = "(B, heads, T, N) or (B, T, N)"
KEYS = "(B, N, D) or (B, heads, N, D/heads)"
TEXT_SITES = ("handoff", "prefill", "focus", "cross")
OF_TEXT = ("text", "received_attention")

# Random draws of the contract follow this order: a new row goes to the end.
TABLE = {
    signal.name: signal
    for signal in (
        Signal(
            "cls_attention", ATTENTION, "attention of the encoder's CLS token to each patch",
            True, ("received_attention",), ("encoder", "handoff"), "share",
        ),
        Signal(
            "received_attention", ATTENTION, "mean attention that each token receives from all queries",
            True, ("cls_attention",), ("encoder", "handoff", "prefill", "vectors"), "share",
        ),
        Signal(
            "cls_similarity", ATTENTION, "softmax over all tokens of the dot product of their values with the CLS token's",
            True, ("cls_attention", "received_attention"), ("encoder", "handoff"), "share",
        ),
        Signal(
            "pagerank", ATTENTION, "what attention among all tokens gathers at each in a few steps",
            instead=("received_attention",), sites=("encoder", "prefill"), values="share",
        ),
        Signal(
            "last_attention", ATTENTION, "the row of attention of the last prompt token",
            instead=("text_attention", *OF_TEXT), sites=("prefill",), values="share",
        ),
        Signal(
            "text_attention", ROWS, "rows of attention of the text tokens over the visual tokens",
            instead=OF_TEXT, sites=("prefill", "focus", "cross"), values="share",
        ),
        Signal(
            "text_text", "(B, Q, T)",
            "rows of attention of Q text tokens (the last of the T) over the text tokens, averaged over heads",
            sites=("focus",), values="share",
        ),
        Signal(
            "text", "(B, T, D)", "the text tokens, in the space of the features; of units of a prompt, the question",
            sites=("handoff", "prefill", "prompt"),
        ),
        Signal("keys", KEYS, "attention keys", True, ("features",), ("encoder", "handoff", "prefill", "cache")),
        Signal("values", KEYS, "attention values", True, ("features",), ("encoder", "handoff", "prefill", "cache")),
        Signal(
            "window_attention", "(B, heads, W, N) or (B, W, N)", "rows of attention of the last W tokens over the cache entries",
            sites=("cache",), values="share",
        ),
        Signal(
            "accumulated_attention", ATTENTION, "attention summed over all queries so far", sites=("cache",), values="share"
        ),
        Signal(
            "expected_logits", ATTENTION, "the log of attention, not normalised, to be expected from the next queries",
            sites=("cache",),
        ),
        Signal(
            "probe_attention", ATTENTION, "mean attention from those of a few queries that see each entry",
            sites=("cache",), values="share",
        ),
        Signal("token_ids", "(B, N)", "the vocabulary's number of each token", sites=("cache",), values="number"),
        Signal("visual", "(B, N)", "above 0 at visual tokens", sites=("cache",)),
        Signal(
            "visual_share", ATTENTION, "how much of each token's own attention went to visual tokens",
            sites=("cache",), values="share",
        ),
        Signal(
            "relevance", "(B, N) or (B, T, N)", "similarity to the text, or to each text token, in a space they share",
            instead=("text",),
        ),
        Signal(
            "entropy", "(B, N)", "the entropy of each patch's pixel values, in bits", instead=("features",), sites=("handoff",)
        ),
        Signal(
            "ranking", "(B, N)", "what an earlier stage ranked the tokens by",
            instead=("last_attention", "text_attention", *OF_TEXT), sites=("prefill",),
        ),
        Signal("idf", "(B, N)", "inverse document frequency, higher for rarer tokens", sites=("vectors",)),
        Signal("stop", "(B, N)", "above 0 at tokens of stop words and punctuation", sites=("vectors",)),
        Signal(
            "neurons", "(B, N, F)", "what enters a feed-forward network's last projection: above 0 where a neuron is active",
            sites=("prefill", "focus"),
        ),
        Signal(
            "text_neurons", "(B, T, F)", "the same of the text: above 0 where a neuron is active", sites=("prefill", "focus")
        ),
        Signal(
            "paired", "(B, T)", "True at the text tokens that belong to the row's image",
            instead=("text",), sites=("handoff",), values="bool",
        ),
        Signal(
            "word", "(B, N)", "long, equal at tokens of the same word of a text, also where it comes again; -1 at tokens of none",
            sites=("vectors",), values="part",
        ),
        Signal(
            "crop", "(B, N)", "long, 0 for the thumbnail, 1, 2, ... for the crops of an image, -1 at tokens of none (line ends)",
            sites=("handoff", "prefill"), values="part",
        ),
        Signal(
            "frame", "(B, N)", "long, the frame of a video, 0, 1, ... in order of time; -1 at tokens of none",
            sites=("handoff", "prefill"), values="part",
        ),
        Signal(
            "spot", "(B, N, 2)", "the centre (y, x) of what a token sees, in the whole picture, in [0, 1]",
            sites=("handoff", "prefill"),
        ),
        Signal("head", "(B, N)", "long, the key-value head of each entry, where a row holds those of several", sites=("cache",)),
        Signal("sizes", "(B, N)", "how many source tokens each token already stands for", sites=("encoder", "prefill")),
        Signal("text_mask", "(B, T)", "False at padding of the text", sites=TEXT_SITES, values="bool"),
        Signal("mask", "(B, N)", "False at padding", sites=(*TEXT_SITES, "encoder", "cache", "vectors"), values="bool"),
        Signal(
            "grid", "(rows, columns)", "two numbers, where the tokens lie on a grid, row by row",
            sites=("handoff", "prefill", "encoder", "focus", "diffusion"), passed="grid=(rows, columns)",
        ),
        Signal(
            "features", "(B, N, D)", "the tokens themselves",
            sites=(*TEXT_SITES, "encoder", "cache", "vectors", "prompt", "diffusion"), passed="x, of shape (B, N, D)",
        ),
        Signal(
            "passage", "(B, N)", "long, which passage of the prompt each unit of text is of, from 0", sites=("prompt",),
            values="part",
        ),
        Signal(
            "shift", "(B, N)", "how far a sentence's vector moves, as one minus the cosine, where the unit is left out of it",
            sites=("prompt",),
        ),
        Signal(
            "surprisal", "(B, N)", "nats of the unit's tokens under a language model, on average", sites=("prompt",)
        ),
        Signal(
            "change", "(B, N)", "how far a token's state behind a denoiser's last block is from that before the last pass of all",
            sites=("diffusion",),
        ),
        Signal(
            "staleness", "(B, N)", "how many passes of a denoiser went by since the token took part in one", sites=("diffusion",)
        ),
        Signal(
            "classes", "(B, N, C)", "how likely each token is of each of C classes, by a head on the states where tokens leave",
            values="share",
        ),
        Signal("foreground", "(B, N)", "how likely each token shows part of an object, by a classifier or a detector"),
        Signal("prior", "(B, N)", "how much each place of the grid is usually looked at, as a mean over many pictures"),
    )
}  # fmt: skip

for _signal in TABLE.values():
    SIGNALS.register(_signal.name)(_signal)


def signal(name: str) -> Signal:
    """A row of the table, or a signal from outside.

    Raises:
        ValueError: no signal is called so; the message offers the nearest names.
    """
    # What is built in is found without importing what other packages register.
    return TABLE.get(name) or SIGNALS.get(name)
