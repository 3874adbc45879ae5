"""Method: the contract of a token reduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from tokensieve.core import budget, old_hooks
from tokensieve.core.needs import Need
from tokensieve.core.options import check_options, option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.topk import ranks, top

if TYPE_CHECKING:
    from tokensieve.core.focus import Focus

LONG = 1024
"""Tokens of a row from which, on a processor, its pairs are compared before those of the next row."""


@dataclass(frozen=True)
class Method:
    """A recipe that turns :class:`Signals` and a budget into a :class:`Reduction`.

    Subclasses are frozen dataclasses: hyperparameters as fields with the paper's defaults, each an :func:`option` that says what
    it means and which values it takes (any other is a ValueError when the method is made), the class attributes below, and
    :meth:`reduce`. Register them with ``@register_method("name", systems=[...])``. One that has a ``__post_init__`` of its own
    calls ``super().__post_init__()`` first.

    Attributes:
        name: the registered name.
        site: where the paper applies it, one of ``tokensieve.core.stage.SITES`` ("encoder", "handoff", ...); any other one of
            ``sites`` may be asked for.
        sites: all sites that can supply its needs.
        adaptive: True where the method may keep fewer tokens than the budget by its own rule; where that depends on a field,
            `__post_init__` sets it, so read it from the instance.
        pairs: True where the algorithm compares all pairs of tokens, or tokens with cluster centres round by round (time
            quadratic in N, memory in blocks).
        proportional: True where later attention weighs merged tokens by their size.
        between: True where, in an encoder, tokens leave between a block's attention and its MLP, not behind the block.
        schedule, begins, returns: in an encoder, the schedule by which tokens leave; from which share of its depth on; and at
            which they come back to their places, None where they do so behind the last block.
        restores_dropped: True where, in front of its prefill stage, tokens that left inside the language model come back.
        ends: for a system of several stages, True where the number given to ``tokensieve.sieve`` is what its last stage leaves;
            in a plan it is the mean over the language model's layers for all.
        layer: for `prefill`, the language-model layer before which tokens leave by default.
        small: options with which the algorithm has a choice to make among a few dozen tokens, where with the defaults (a window
            of 32, say) it has none; the contract's checks run with both.
        inert: options, and needs, that change no result on plain arrays of that size, each with the reason.
        unranked: why the tokens that stay need not be those of the higher :meth:`score`; "" where they are, on average.
        favours: what kept tokens have more of than dropped ones, as named in ``tokensieve.testing.meaning.MEASURES``, for a
            method with a :meth:`score`; None where that is what its needs say.
        positional: why of identical tokens others than the earliest may stay; "" where the earliest do.
        sited: by site, options whose default is another one there.
        denoises: fields of :class:`~tokensieve.core.denoising.Denoising` whose default is another one for it.
    """

    name: ClassVar[str] = ""
    site: ClassVar[str] = "handoff"
    sites: ClassVar[tuple[str, ...]] = ("handoff",)
    adaptive: ClassVar[bool] = False
    pairs: ClassVar[bool] = False
    proportional: ClassVar[bool] = False
    between: ClassVar[bool] = False
    schedule: ClassVar[str] = "constant"
    begins: ClassVar[float] = 0.0
    returns: ClassVar[float | None] = None
    restores_dropped: ClassVar[bool] = False
    ends: ClassVar[bool] = False
    layer: ClassVar[int] = 2
    small: ClassVar[Mapping[str, Any]] = {}
    inert: ClassVar[Mapping[str, str]] = {}
    unranked: ClassVar[str] = ""
    favours: ClassVar[tuple[str, ...] | None] = None
    positional: ClassVar[str] = ""
    sited: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    denoises: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        old_hooks.translate(cls)
        if "cache" in cls.sites and not all(hasattr(cls, name) for name in old_hooks.CACHE):
            old_hooks.adopt(cls, CacheMethod)

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def needs(self) -> Sequence[Need]:
        """The signals it reads; a property, since layers may be fields."""
        return ()

    def score(self, s: Signals) -> Tensor | None:
        """``(B, N)``, what the method ranks tokens by, for heat maps; None where it does not rank them."""
        return None

    def always_keep(self, s: Signals, keep: Tensor) -> Tensor:
        """``(B, N)`` bool, at most ``keep`` tokens that stay whatever their score; by default none."""
        return torch.zeros_like(s.valid)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        """Keep exactly ``keep[b]`` tokens of row b (``(B,)`` long, 1 <= keep[b] <= valid tokens of the row).

        By default those that are safe, and of the others those of the highest score.
        """
        score, always_keep = self.score(s), self.always_keep(s, keep)
        if score is None:
            raise NotImplementedError(f"{self.name} has neither a score nor a reduction of its own")
        return Reduction.keep(always_keep | top(score, keep - always_keep.sum(1), s.valid & ~always_keep))

    def __call__(self, s: Signals, keep: budget.Budget | Tensor) -> Reduction:
        """Resolve the budget and reduce; the identity where every token is kept."""
        counts = budget.counts(keep, s.valid)
        if bool((counts == s.valid.sum(1)).all()):
            whole = s.mask is None or bool(s.mask.all())
            return Reduction.identity(s.batch, s.n, s.device) if whole else Reduction.keep(s.valid)
        if self.pairs and s.batch > 1 and s.n >= LONG and s.device.type == "cpu":
            # The pairs of one long row fit the processor's caches; those of all rows do not.
            return Reduction.stack([self(s.row(i), counts[i : i + 1]) for i in range(s.batch)])
        return self.reduce(s, counts)


@dataclass(frozen=True)
class CacheMethod(Method):
    """A method that can run at ``site="cache"``: it evicts entries, or has layers or prompts read a few of them.

    There the features of :class:`Signals` are the keys.

    Attributes:
        unit: what a row of :class:`Signals` is: "head" (the entries of one key-value head), "token" (the entries
            of a layer, whose heads all keep the same tokens) or "entry" (the entries of all heads of a layer one after the
            other, which share one budget; ``head`` names each one's head).
        shared: for the unit "entry", True where layers share one budget, by one ranking of the slots of them all;
            they evict together, behind the last.
        sparse_decode: True where nothing leaves and layers read a few entries, as :meth:`layer_roles` says.
        query_block_size: for a method under which the queries of a prompt read a few keys: of how many that read the same
            ones, as :meth:`key_scores` says; 0 for all others.
        visual: True where the budget counts visual entries alone, of each image: what else the prompt held has
            room beside them, and what is decoded takes theirs.
        min_kept: how many entries always stay: a smaller budget is an error there, and a row that holds no more
            stays whole.
    """

    site: ClassVar[str] = "cache"
    sites: ClassVar[tuple[str, ...]] = ("cache",)
    unit: ClassVar[str] = "head"
    shared: ClassVar[bool] = False
    sparse_decode: ClassVar[bool] = False
    visual: ClassVar[bool] = False

    @property
    def query_block_size(self) -> int:
        return 0

    @property
    def min_kept(self) -> int:
        return 0

    @property
    def bits(self) -> tuple[int, int] | None:
        """For the unit "token", the precision of what it keeps and of all the rest, which then stays as well."""
        return None

    def of_layer(self, keep: Tensor, seen: Tensor, layer: int, depth: int) -> Tensor:
        """What layer ``layer`` of ``depth`` keeps of each row, where all keep ``keep`` on average.

        Args:
            keep: ``(B,)``; seen: ``(B,)``, the tokens of the row so far.
        """
        return keep

    def layer_roles(self, depth: int) -> list[str]:
        """For a method with :attr:`sparse_decode`: which of ``depth`` layers are "dense", which "select", and which "read"."""
        return ["dense"] * depth

    def key_scores(self, query: Tensor, key: Tensor, scale: float, real: Tensor) -> Tensor:
        """For methods with a :attr:`query_block_size`: how much each key is worth to a block of queries, below 0
        if not read.

        Args:
            query: ``(B, H, g, d)``; key: ``(B, H, n, d)``, those in front of the group and its own g, which are always read.
            real: ``(B, n)`` bool, False at padding.

        Returns:
            ``(B, H, n - g)``.
        """
        raise NotImplementedError


UNITS = ("passage", "sentence", "line", "word")
"""What a prompt's text may be cut into."""


@dataclass(frozen=True)
class PromptMethod(Method):
    """A method that runs at ``site="prompt"``, on units of text in front of a model: it says in which order they enter the
    prompt, for as long as a budget of the model's tokens lasts.

    There the features of :class:`Signals` are the units' vectors, by an encoder of sentences.

    Attributes:
        vectors: whether it reads these; where it does not, features are any numbers that tell units apart.
    """

    site: ClassVar[str] = "prompt"
    sites: ClassVar[tuple[str, ...]] = ("prompt",)
    inert: ClassVar[Mapping[str, str]] = {"unit": "an array holds units that are cut already"}
    vectors: ClassVar[bool] = True
    unit: str = option("sentence", "what the text is cut into", choices=UNITS)

    def order(self, s: Signals, most: Tensor) -> Tensor:
        """``(B, N)`` long: the place of each unit in the order in which they enter, 0 for the first; -1 for those that never do.

        By default that of their scores.

        Args:
            most: ``(B,)``, how many can enter at most: behind them the order need not be the method's best.
        """
        score = self.score(s)
        if score is None:
            raise NotImplementedError(f"{self.name} has neither a score nor an order of its own")
        return ranks(score, s.valid)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        order = self.order(s, keep)
        return Reduction.keep((order >= 0) & (order < keep[:, None]))


@dataclass(frozen=True)
class FocusMethod(Method):
    """A method that hides tokens, at ``site="focus"``, and removes none.

    One that also removes them at another site names that in ``sites`` and defines :meth:`reduce` as well.
    """

    site: ClassVar[str] = "focus"
    sites: ClassVar[tuple[str, ...]] = ("focus",)

    def focus(self, s: Signals, keep: int | float) -> Focus:
        """What of a layer is left, all tokens staying. ``keep`` says of what: see the method."""
        raise NotImplementedError

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        raise ValueError(
            f"{self.name} hides tokens from layers and removes none: it is no reduction of an array; "
            f"run it in a model, tokensieve.sieve(model, {self.name!r}, keep=...), or call its focus(signals, keep)"
        )
