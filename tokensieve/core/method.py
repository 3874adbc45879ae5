"""Method: the contract of a token reduction, and `reduce`, which runs one on plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tokensieve.core import budget
from tokensieve.core.needs import Need
from tokensieve.core.options import check_options
from tokensieve.core.reduction import Reduction
from tokensieve.core.signal_table import SIGNALS
from tokensieve.core.signals import Signals
from tokensieve.core.topk import top

if TYPE_CHECKING:
    from tokensieve.core.focus import Focus
    from tokensieve.core.plan import Stage

LONG = 1024
"""Tokens of a row from which, on a processor, its pairs are compared before those of the next row."""


@dataclass(frozen=True)
class Method:
    """A recipe that turns :class:`Signals` and a budget into a :class:`Reduction`.

    Subclasses are frozen dataclasses: hyperparameters as fields with the paper's defaults, each an :func:`option` that says what
    it means and which values it takes (any other is a ValueError when the method is made), the class attributes below, and
    :meth:`reduce`. Register them with ``@register("name", systems=[...])``. One that has a ``__post_init__`` of its own calls
    ``super().__post_init__()`` first.

    Attributes:
        name: the registered name.
        site: where the paper applies it, one of ``tokensieve.core.plan.SITES`` ("encoder", "handoff", ...); any other one of
            ``sites`` may be asked for.
        sites: all sites that can supply its needs.
        adaptive: True where the method may keep fewer tokens than the budget by its own rule; where that depends on a field,
            `__post_init__` sets it, so read it from the instance.
        pairs: True where the algorithm compares all pairs of tokens, or tokens with cluster centres round by round (time
            quadratic in N, memory in blocks).
        proportional: True where later attention weighs merged tokens by their size.
        restores_dropped: True where, in front of its prefill stage, tokens that left inside the language model come back.
        ends: for a system of several stages, True where the number given to ``tokensieve.sieve`` is what its last stage leaves;
            in a plan it is the mean over the language model's layers for all.
        layer: for `prefill`, the language-model layer before which tokens leave by default.
        unit: for `cache`, what a row of :class:`Signals` is: "head" (the entries of one key-value head), "token" (the entries
            of a layer, whose heads all keep the same tokens) or "entry" (the entries of all heads of a layer one after the
            other, which share one budget; ``head`` names each one's head).
        shared: for `cache` and the unit "entry", True where layers share one budget, by one ranking of the slots of them all;
            they evict together, behind the last.
        sparse_decode: for `cache`, True where nothing leaves and layers read a few entries, as :meth:`layer_roles` says.
        query_block_size: for `cache` and a method under which the queries of a prompt read a few keys: of how many that
            read the same ones, as :meth:`key_scores` says; 0 for all others.
        visual: for `cache`, True where the budget counts visual entries alone, of each image: what else the prompt held has
            room beside them, and what is decoded takes theirs.
        min_kept: for `cache`, how many entries always stay: a smaller budget is an error there, and a row that holds no more
            stays whole.
        small: options with which the algorithm has a choice to make among a few dozen tokens, where with the defaults (a window
            of 32, say) it has none; the contract's checks run with both.
        inert: options, and needs, that change no result on plain arrays of that size, each with the reason.
        unranked: why the tokens that stay need not be those of the higher :meth:`score`; "" where they are, on average.
        favours: what kept tokens have more of than dropped ones, as named in ``tokensieve.testing.meaning.MEASURES``, for a
            method with a :meth:`score`; None where that is what its needs say.
        positional: why of identical tokens others than the earliest may stay; "" where the earliest do.
    """

    name: ClassVar[str] = ""
    site: ClassVar[str] = "handoff"
    sites: ClassVar[tuple[str, ...]] = ("handoff",)
    adaptive: ClassVar[bool] = False
    pairs: ClassVar[bool] = False
    proportional: ClassVar[bool] = False
    restores_dropped: ClassVar[bool] = False
    ends: ClassVar[bool] = False
    layer: ClassVar[int] = 2
    unit: ClassVar[str] = "head"
    shared: ClassVar[bool] = False
    sparse_decode: ClassVar[bool] = False
    visual: ClassVar[bool] = False
    small: ClassVar[Mapping[str, Any]] = {}
    inert: ClassVar[Mapping[str, str]] = {}
    unranked: ClassVar[str] = ""
    favours: ClassVar[tuple[str, ...] | None] = None
    positional: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def query_block_size(self) -> int:
        return 0

    @property
    def min_kept(self) -> int:
        return 0

    @property
    def bits(self) -> tuple[int, int] | None:
        """For `cache` and the unit "token", the precision of what it keeps and of all the rest, which then stays as well."""
        return None

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

    def focus(self, s: Signals, keep: int | float) -> Focus:
        """At ``site="focus"``: what of a layer is left, all tokens staying. ``keep`` says of what: see the method."""
        raise NotImplementedError

    def of_layer(self, keep: Tensor, seen: Tensor, layer: int, depth: int) -> Tensor:
        """For `cache`, what layer ``layer`` of ``depth`` keeps of each row, where all keep ``keep`` on average.

        Args:
            keep: ``(B,)``; seen: ``(B,)``, the tokens of the row so far.
        """
        return keep

    def layer_roles(self, depth: int) -> list[str]:
        """For `cache` and a method that reads: which of ``depth`` layers are "dense", which "select", and which "read"."""
        return ["dense"] * depth

    def key_scores(self, query: Tensor, key: Tensor, scale: float, real: Tensor) -> Tensor:
        """For `cache` and methods with a :attr:`query_block_size`: how much each key is worth to a block of queries, below 0
        if not read.

        Args:
            query: ``(B, H, g, d)``; key: ``(B, H, n, d)``, those in front of the group and its own g, which are always read.
            real: ``(B, n)`` bool, False at padding.

        Returns:
            ``(B, H, n - g)``.
        """
        raise NotImplementedError

    def stages(self, keep: budget.Budget) -> Sequence[Stage]:
        """For a system of several stages, all of them: this method at its site first, others behind it; () for all others.

        ``keep`` is then the mean over the language model's layers, so that systems compare at the same cost (see :attr:`ends` for
        ``tokensieve.sieve``).
        """
        return ()

    def __call__(self, s: Signals, keep: budget.Budget | Tensor) -> Reduction:
        """Resolve the budget and reduce; the identity where every token is kept."""
        counts = budget.counts(keep, s.valid)
        if bool((counts == s.n).all()):
            return Reduction.identity(s.batch, s.n, s.device)
        if bool((counts == s.valid.sum(1)).all()):
            return Reduction.keep(s.valid)
        if self.pairs and s.batch > 1 and s.n >= LONG and s.device.type == "cpu":
            # The pairs of one long row fit the processor's caches; those of all rows do not.
            return Reduction.stack([self(s.row(i), counts[i : i + 1]) for i in range(s.batch)])
        return self.reduce(s, counts)


def reduce(x: Any, method: str | Method, keep: budget.Budget, *, seed: int = 0, **signals: Any) -> Reduction:
    """Reduce an array of tokens, outside any model.

    Args:
        x: ``(B, N, D)`` or ``(N, D)``, a tensor or anything NumPy reads.
        method: a registered name (``tokensieve.methods()`` lists them) or a :class:`Method`.
        keep: an int (tokens per row), a float in (0, 1] (share of the row's valid tokens), or a :class:`Keep`.
        seed: for methods that draw.
        signals: what the method needs, by keyword: ``cls_attention``, ``received_attention``, ``text``, ``keys``, ``values``,
            ``grid``, ``mask``, ... (`tokensieve signals` lists them). Arrays, or tensors on any device.

    Returns:
        The :class:`Reduction`; ``.apply(x)`` gives the reduced tokens.

    Raises:
        ValueError: a budget outside its range, NaN or infinite input, shapes that do not fit; `MissingSignal`, a ValueError,
            names a signal that the method needs and how to pass it.

    Example:
        >>> import torch, tokensieve as ts
        >>> x = torch.randn(2, 576, 64)
        >>> ts.reduce(x, "divprune", keep=64).apply(x).shape
        torch.Size([2, 64, 64])
    """
    from tokensieve.core.method_registry import make

    made = make(method) if isinstance(method, str) else method
    x = _tensor(x)
    one = x.dim() == 2
    x = x[None] if one else x
    given: dict[str, Any] = {k: _beside(v, x, one) for k, v in signals.items() if v is not None}
    unknown = sorted(name for name in given if name not in SIGNALS or name == "features")
    if unknown:
        raise ValueError(f"unknown signals {unknown}; known are {sorted(set(SIGNALS) - {'features'})}")
    if "mask" in given:
        given["mask"] = given["mask"].bool()
    return made(Signals.of(x, seed=seed, **given), keep)


def _beside(v: Any, x: Tensor, one: bool) -> Any:
    """A signal on the device of ``x`` and in its precision, at least single; with a batch axis where ``x`` is one row."""
    if isinstance(v, Mapping):
        return {k: _beside(a, x, one) for k, a in v.items()}
    if not isinstance(v, (Tensor, np.ndarray, list)):
        return v
    out = _tensor(v).to(x.device)
    out = out.to(torch.promote_types(x.dtype, torch.float32)) if out.is_floating_point() else out
    return out[None] if one else out


def _tensor(v: Any) -> Tensor:
    return v if isinstance(v, Tensor) else torch.as_tensor(np.asarray(v))
