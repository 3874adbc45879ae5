"""Table of sites: for the stages of a plan, what acts on a model in their name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from tokensieve.core.stage import Stage
from tokensieve.sites.cache.eviction_site import CacheSite
from tokensieve.sites.cache.sparse_decode import ReadingSite
from tokensieve.sites.cache.sparse_prefill import SparseSite
from tokensieve.sites.diffusion.site import DiffusionSite
from tokensieve.sites.diffusion.subject import of_diffusers
from tokensieve.sites.encoder.site import EncoderSite
from tokensieve.sites.model import towers
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.clock import Clock
from tokensieve.sites.model.decoder import decoder
from tokensieve.sites.model.guards import VISUAL
from tokensieve.sites.model.ledger import Ledger
from tokensieve.sites.model.quirks import CONNECTED
from tokensieve.sites.model.structure import find
from tokensieve.sites.model.trace import Trace
from tokensieve.sites.visual.cross_site import CrossSite
from tokensieve.sites.visual.language_site import LanguageSite


class Site(Protocol):
    """Stages at work in a model.

    Attributes:
        trace: what happened in the last pass; None in front of the first.
        stacks: those whose attention is read or limited, or whose tokens leave.
    """

    @property
    def trace(self) -> Trace | None: ...

    @property
    def stacks(self) -> Sequence[Stack]: ...

    def attach(self) -> list[Detach]:
        """Put the hooks on; each of what comes back takes some off."""
        ...


@dataclass(frozen=True)
class Work:
    """What a site is made for.

    Attributes:
        own: the stages of the site; every: all of the plan.
        scores: whether the trace is to hold what stages ranked by.
        given: what the user passed: the model, what wraps it, or a pipeline that holds it.
    """

    model: nn.Module
    given: Any
    own: Sequence[Stage]
    every: Sequence[Stage]
    clock: Clock
    ledger: Ledger
    scores: bool


def _vectors(work: Work) -> Site:
    raise ValueError(
        "site='vectors' reduces what an encoder has put out, outside of any model; use tokensieve.reduce, or "
        "tokensieve.retrieval.encoders.reduce.reduce on encoded texts"
    )


def _prompt(work: Work) -> Site:
    names = ", ".join(s.method.name for s in work.own)
    raise ValueError(
        f"{names} at site='prompt' takes text away in front of any model: use tokensieve.compress(text, plan=plan), and give "
        "tokensieve.sieve the plan's other stages"
    )


def _cross(work: Work) -> Site:
    return CrossSite(work.model, work.own[0], work.clock, work.ledger, work.scores)


def _sparse_prefill(work: Work) -> Site:
    return SparseSite(decoder(work.model), work.own[0], work.clock, work.ledger)


def _sparse_decode(work: Work) -> Site:
    return ReadingSite(decoder(work.model), work.own[0], work.clock, work.ledger)


def _visual(work: Work) -> Site:
    """A language model's site sees to its encoder too."""
    model = work.model
    inside = next((s for s in work.own if s.in_encoder), None)
    alone = None if inside is None else towers.tower(model, inside.tower)
    if inside is not None and alone is not None:
        if len(work.own) > 1:
            other = next(s.site for s in work.own if s is not inside)
            raise ValueError(
                f"{type(model).__name__} is an encoder: site={other!r} has no place in it; only site='encoder' does"
            )
        last = len(alone.layers) - 1
        return EncoderSite(alone, inside, work.clock, last, work.ledger, work.scores, model)
    anatomy = find(model)
    if anatomy.language is None and any(not s.in_encoder for s in work.own):
        raise ValueError(
            f"{type(model).__name__} is an encoder without a language model; only site='encoder' applies to it"
        )
    encoder = None
    if inside is not None:
        kind = str(getattr(model.config, "model_type", ""))
        if kind in CONNECTED:
            raise ValueError(
                f"{type(model).__name__} makes its visual tokens inside the encoder, of all patches; use site='handoff'"
            )
        if anatomy.vision is None or anatomy.vision.ragged or anatomy.vision.placed:
            raise ValueError(
                f"{type(model).__name__} has no encoder whose tokens can leave between its blocks (they come with positions "
                "and borders of their own); use site='handoff'"
            )
        encoder = EncoderSite(anatomy.vision, inside, work.clock, anatomy.feature_layer, work.ledger, work.scores, None)
    return LanguageSite(anatomy, work.own, encoder, work.clock, work.ledger, work.scores)


def _diffusion(work: Work) -> Site:
    return DiffusionSite(work.given, work.own[0], work.clock, work.ledger)


def _cache(work: Work) -> Site:
    alone = len(work.own) == len(work.every)
    visual = any(n.name.startswith("visual") for s in work.own for n in s.needs)
    anatomy = find(work.model) if visual else None
    return CacheSite(decoder(work.model), work.own, work.clock, work.ledger, alone, anatomy)


@dataclass(frozen=True)
class SiteKind:
    """One kind of site.

    Attributes:
        takes: whether a stage is of this kind, if of none in a row before.
        make: from its stages to the site.
        alone: what is said where other stages stand beside its own, ``{method}`` being the first; None where they may.
    """

    takes: Callable[[Stage], bool]
    make: Callable[[Work], Site]
    alone: str | None = None


READS = "{method}, which reads a whole cache, stands alone"
TABLE = (
    SiteKind(lambda s: s.site == "prompt", _prompt),
    SiteKind(lambda s: s.site == "vectors", _vectors),
    SiteKind(lambda s: s.site == "diffusion", _diffusion, "a stage at site='diffusion' stands alone: use one of them"),
    SiteKind(lambda s: s.site == "cross", _cross, "a stage at site='cross' stands alone: use one of them"),
    SiteKind(lambda s: s.site == "cache" and s.cache_method.query_block_size > 0, _sparse_prefill, READS),
    SiteKind(lambda s: s.site == "cache" and s.cache_method.sparse_decode, _sparse_decode, READS),
    SiteKind(lambda s: s.site in VISUAL, _visual),
    SiteKind(lambda s: s.site == "cache", _cache),
)
"""In the order in which sites are made and attached; the first tells what happened in a pass."""

APART = {
    ("focus", "cache"): "stages at site='focus' and at site='cache' do not go together: the first would not find its tokens",
}  # fmt: skip
"""Sites that do not go together, and why."""


def sites_of(
    model: nn.Module, given: Any, stages: Sequence[Stage], clock: Clock, ledger: Ledger, scores: bool
) -> list[Site]:
    """The sites of a plan's stages. A plan without any has that of the cache, under which a model reads what has been evicted.

    Raises:
        ValueError: stages that do not go together, or that the model has no place for.
    """
    if of_diffusers(given) and any(s.site != "diffusion" for s in stages):
        raise ValueError(
            f"{type(given).__name__} is of diffusers, where site='diffusion' is the only one; got "
            f"{', '.join(repr(s.site) for s in stages)}"
        )
    for pair, why in APART.items():
        if {s.site for s in stages} >= set(pair):
            raise ValueError(why)
    owned: dict[SiteKind, list[Stage]] = {}
    for stage in stages:
        owned.setdefault(next(row for row in TABLE if row.takes(stage)), []).append(stage)
    out = []
    for row in [row for row in TABLE if row in owned] or [TABLE[-1]]:
        own = owned.get(row, [])
        if row.alone is not None and len(stages) > 1:
            raise ValueError(f"{len(stages)} stages; {row.alone.format(method=own[0].method.name)}")
        out.append(row.make(Work(model, given, own, stages, clock, ledger, scores)))
    return out
