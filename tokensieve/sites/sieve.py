"""sieve: run a model on fewer tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokensieve.method import Method
from tokensieve.parts.budget import Budget
from tokensieve.plan import WHERE, Plan, Stage, plan
from tokensieve.registry import check_names
from tokensieve.sites.anatomy import find
from tokensieve.sites.clock import Clock
from tokensieve.sites.cross import CrossSite
from tokensieve.sites.decoder import decoder
from tokensieve.sites.encoder import Detach, EncoderSite
from tokensieve.sites.eviction import CacheSite
from tokensieve.sites.language import LanguageSite
from tokensieve.sites.reading import ReadingSite
from tokensieve.sites.sparse import SparseSite
from tokensieve.sites.trace import Trace

NEST = "_tokensieve_sieves"


class Sieve:
    """A plan applied to a model: a context manager, or :meth:`attach` and :meth:`detach`.

    Sieves on one model nest: while the inner one is attached, the stages of both run as one plan.

    Attributes:
        plan: what is applied.
        seed: for methods that draw.
        scores: whether :attr:`last` is to hold what each stage ranked by, which costs a second ranking.
        timed: set to True to have selection timed (waits for the model's device); ``seconds`` adds it up.
        last: what happened in the last pass that brought visual tokens.
    """

    def __init__(self, model: nn.Module, plan: Plan, seed: int = 0, scores: bool = False):
        self.model, self.plan, self.seed, self.scores = model, plan, seed, scores
        self._clock = Clock(model)
        self._sites = _Sites(model, plan, self._clock, seed, scores)

    @property
    def timed(self) -> bool:
        return self._clock.on

    @timed.setter
    def timed(self, on: bool) -> None:
        self._clock.on = on

    @property
    def seconds(self) -> float:
        """Time spent on selection so far, recording attention rows included (only while ``timed``)."""
        return self._clock.seconds

    @property
    def last(self) -> Trace | None:
        return self._sites.trace

    def attach(self) -> Sieve:
        """Put the hooks on.

        Raises:
            RuntimeError: this sieve is attached already.
            ValueError: it does not go together with one that is attached to the same model.
        """
        around: list[Sieve] = self.model.__dict__.get(NEST, [])
        if self in around:
            raise RuntimeError("this sieve is attached already; detach() it first, or make a second one to nest")
        _settle(self.model, [*around, self])
        return self

    def detach(self) -> None:
        """Take this sieve's hooks off; without others around it, the model is what it was."""
        around = self.model.__dict__.get(NEST, [])
        if self in around:
            _settle(self.model, [s for s in around if s is not self])

    def __enter__(self) -> Sieve:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()


class _Sites:
    """The sites of one plan on one model."""

    def __init__(self, model: nn.Module, plan: Plan, clock: Clock, seed: int, scores: bool):
        self.undo: list[Detach] = []
        self.encoder: EncoderSite | None = None
        self.language: LanguageSite | None = None
        self.cross: CrossSite | None = None
        self.cache: CacheSite | None = None
        self.reading: ReadingSite | SparseSite | None = None
        late = [s for s in plan.stages if s.site == "cache"]
        stages = [s for s in plan.stages if s.site != "cache"]
        if any(s.site == "vectors" for s in plan.stages):
            raise ValueError(
                "site='vectors' reduces what an encoder has put out, outside of any model; use tokensieve.reduce, or "
                "tokensieve.retrieval.reduce.reduce on encoded texts"
            )
        if any(s.site == "cross" for s in plan.stages):
            if len(plan.stages) > 1:
                raise ValueError(f"{len(plan.stages)} stages; a stage at site='cross' stands alone: use one of them")
            self.cross = CrossSite(model, plan.stages[0], clock, seed, scores)
            return
        if late and any(s.site == "focus" for s in stages):
            raise ValueError(
                "stages at site='focus' and at site='cache' do not go together: the first would not find its tokens"
            )
        reading = [s for s in late if s.method.reading or s.method.group]
        if reading:
            if len(plan.stages) > 1:
                raise ValueError(
                    f"{len(plan.stages)} stages; {reading[0].method.name}, which reads a whole cache, stands alone"
                )
            site = SparseSite if reading[0].method.group else ReadingSite
            self.reading = site(decoder(model), reading[0], clock, seed)
            return
        if late or not stages:
            visual = any(n.name.startswith("visual") for s in late for n in s.method.needs)
            anatomy = find(model) if visual else None
            self.cache = CacheSite(decoder(model), late, clock, seed, not stages, anatomy)
        if not stages:
            return
        anatomy = find(model)
        inside = next((s for s in stages if s.site == "encoder"), None)
        if anatomy.language is None and any(s.site != "encoder" for s in stages):
            raise ValueError(
                f"{type(model).__name__} is an encoder without a language model; only site='encoder' applies to it"
            )
        if inside is not None:
            if anatomy.vision is None or anatomy.vision.ragged:
                raise ValueError(
                    f"{type(model).__name__} has no encoder whose tokens can leave between its blocks (they come with positions "
                    "and borders of their own); use site='handoff'"
                )
            self.encoder = EncoderSite(anatomy.vision, inside, clock, anatomy.feature_layer, seed, scores)
        if anatomy.language is not None:
            self.language = LanguageSite(anatomy, stages, self.encoder, clock, seed, scores)

    @property
    def trace(self) -> Trace | None:
        site = self.cross or self.language or self.encoder or self.cache or self.reading
        return None if site is None else site.trace

    def attach(self) -> None:
        try:
            for site in (self.encoder, self.language, self.cross, self.cache, self.reading):
                if site is not None:
                    self.undo += site.attach()
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        while self.undo:
            self.undo.pop()()


def _settle(model: nn.Module, sieves: list[Sieve]) -> None:
    """Make ``sieves``, outermost first, the ones that act on the model, as one plan; where that fails, those before it go on."""
    sites = None
    if sieves:
        inner, whole = sieves[-1], Plan([stage for s in sieves for stage in s.plan.stages])
        sites = _Sites(model, whole, inner._clock, inner.seed, any(s.scores for s in sieves))
    before: list[Sieve] = model.__dict__.pop(NEST, [])
    if before:
        before[-1]._sites.detach()
    if sites is not None:
        try:
            sites.attach()
        except BaseException:
            if before:
                before[-1]._sites.attach()
                model.__dict__[NEST] = before
            raise
        for s in sieves:
            s._sites = sites
        model.__dict__[NEST] = sieves


def sieve(
    model: nn.Module,
    what: str | Method | Stage | Plan,
    keep: Budget | None = None,
    *,
    seed: int = 0,
    scores: bool = False,
    **where: Any,
) -> Sieve:
    """Run a model on fewer tokens, through hooks that go away again.

    Args:
        model: an unmodified transformers model: a vision-language model, a vision encoder or, for methods that evict from the
            cache, a causal language model.
        what: a method's name, a :class:`Method`, a :class:`Stage` or a :class:`Plan`.
        keep: the budget, for a name or a method: tokens (int), share (float) or :class:`Keep`; per image unless it says "prompt".
        seed: for methods that draw.
        scores: have the sieve's ``last`` hold what each stage ranked by, for heat maps.
        where: ``site``, ``layers``, ``positions``, ``every``, ``prefill``, or options of the method.

    Returns:
        a :class:`Sieve`, to be used in a ``with`` statement or with ``attach()`` and ``detach()``.

    Raises:
        ValueError: no vision part is recognised, a site or layer does not exist here, a budget or an option is out of range, or
            a keyword is unknown.

    Prompts without images pass through untouched. Output shapes stay as they are: logits at removed positions come from
    the state in which the token left.

    Example:
        >>> with ts.sieve(model, "visionzip", keep=64):  # doctest: +SKIP
        ...     model.generate(**inputs)
    """
    if isinstance(what, (Plan, Stage)):
        if keep is not None or where:
            raise ValueError("a plan or stage carries its own keep and options; pass the model and the plan only")
        return Sieve(model, what if isinstance(what, Plan) else Plan(what), seed, scores)
    if keep is None:
        raise ValueError(f"keep is missing; say how many tokens to keep: sieve(model, {what!r}, keep=64)")
    if isinstance(what, str):
        check_names(what, where, (*WHERE, "seed", "scores"))
    return Sieve(model, plan(what, keep, **where), seed, scores)
