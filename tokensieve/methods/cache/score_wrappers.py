"""Over: what methods have in common that change another one's score and leave the rest of it as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from tokensieve.core.method import CacheMethod
from tokensieve.core.method_registry import get_method
from tokensieve.core.needs import WindowAttention
from tokensieve.core.options import option
from tokensieve.core.signals import Signals
from tokensieve.parts import score


def pairs(options: Any) -> tuple[tuple[str, Any], ...]:
    """Options of a method, a mapping or pairs, as pairs.

    Raises:
        ValueError: it is neither.
    """
    found = options.items() if isinstance(options, Mapping) else options
    try:
        return tuple(sorted((str(k), v) for k, v in found))
    except (TypeError, ValueError):
        raise ValueError(f"options={options!r}; it must be a mapping, such as {{'window': 16}}") from None


def ranking(over: Inner) -> CacheMethod:
    """The method that another one stands on: one that ranks cache entries.

    Raises:
        ValueError: it does not, there is none of that name, or it cannot have these options.
    """
    said = f"{over.name}: scorer={over.scorer!r}"
    if over.options and not over.scorer:
        raise ValueError(f"{said}, options={dict(over.options)}; the options are those of a scorer: name one")
    try:
        inner = over.inner
    except ValueError as error:
        raise ValueError(f"{said}: {error}") from None
    if (
        "cache" not in inner.sites
        or type(inner).score is CacheMethod.score
        or type(inner).reduce is not CacheMethod.reduce
    ):
        raise ValueError(
            f"{said}; it must be a cache method that keeps entries by a score ('h2o', 'snapkv', 'tova', ...)"
        )
    return inner


def of_heads(inner: CacheMethod, s: Signals) -> Tensor:
    """``(B, N)``: the score of a method that looks at one head, for rows that hold several."""
    each, where = score.apart(s)
    rank = inner.score(each)
    assert rank is not None
    return score.together(rank, where, s)


def always_keep_of_heads(inner: CacheMethod, s: Signals, keep: Tensor) -> Tensor:
    """``(B, N)`` bool: what such a method has stay of each head, of which it would keep ``keep``, ``(B, G)``."""
    each, where = score.apart(s)
    return score.together(inner.always_keep(each, keep.flatten()).float(), where, s) > 0


class Inner(CacheMethod):
    """Reads what the method ``inner`` reads, the one called ``scorer`` with its ``options``, and always keeps what it does."""

    scorer: str
    options: Any

    @property
    def inner(self) -> CacheMethod:
        raise NotImplementedError

    @property
    def needs(self):
        return self.inner.needs

    @property
    def min_kept(self) -> int:
        return self.inner.min_kept


@dataclass(frozen=True)
class Over(Inner):
    """All but the score comes from the method called ``scorer``.

    Attributes:
        scorer: a registered cache method that ranks entries and protects some, such as "h2o", "snapkv" or "tova"; "" for the
            last token's attention.
        options: options of it, a mapping (kept as pairs).
    """

    scorer: str = option("", 'the cache method that ranks and protects entries; "" for the attention of the last token')
    options: Any = option((), "options of the scorer, a mapping, kept as pairs")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "options", pairs(self.options))
        object.__setattr__(self, "unit", ranking(self).unit)

    @property
    def inner(self) -> CacheMethod:
        return cast(CacheMethod, get_method(self.scorer, **dict(self.options))) if self.scorer else Last()

    def of_layer(self, keep: Tensor, seen: Tensor, layer: int, depth: int) -> Tensor:
        return self.inner.of_layer(keep, seen, layer, depth)

    def always_keep(self, s: Signals, keep: Tensor) -> Tensor:
        return self.inner.always_keep(s, keep)


@dataclass(frozen=True)
class Last(CacheMethod):
    """Ranks the entries of each head by the last token's attention; that token stays."""

    positional = "the last token stays"

    @property
    def needs(self):
        return (WindowAttention(1),)

    @property
    def min_kept(self) -> int:
        return 1

    def score(self, s: Signals) -> Tensor:
        return score.per_token(s.get(self.needs[0])[1])

    def always_keep(self, s: Signals, keep: Tensor) -> Tensor:
        return score.recent(s, 1)
