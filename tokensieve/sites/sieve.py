"""sieve: run a model on fewer tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, overload

from torch import nn

from tokensieve.core.denoising import KEYWORDS
from tokensieve.core.method import Method
from tokensieve.core.method_registry import check_names, get_method
from tokensieve.core.plan import Plan, applied
from tokensieve.core.stage import WHERE, Stage
from tokensieve.parts.budget import Budget, Keep
from tokensieve.sites.diffusion.subject import of_diffusers, subject
from tokensieve.sites.encoder import speech
from tokensieve.sites.model import compiled, copies, decoding, guards, towers
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.clock import Clock
from tokensieve.sites.model.compatibility import warn_untested
from tokensieve.sites.model.ledger import Ledger
from tokensieve.sites.model.structure import pretrained
from tokensieve.sites.model.trace import Trace
from tokensieve.sites.table import sites_of

NEST = "_tokensieve_sieves"


class Sieve:
    """A plan applied to a model: a context manager, or :meth:`attach` and :meth:`detach`.

    Sieves on one model nest: while the inner one is attached, the stages of both run as one plan.

    Attributes:
        plan: what is applied.
        seed: for methods that draw.
        scores: whether :attr:`last` is to hold what each stage ranked by, which costs a second ranking.
        given: signals that are given to the methods, by name.
        timed: set to True to have selection timed (waits for the model's device); ``seconds`` adds it up.
        last: what happened in the last pass that brought visual tokens.
    """

    def __init__(
        self, model: Any, plan: Plan, seed: int = 0, scores: bool = False, given: Mapping[str, Any] | None = None
    ):
        self.model, self.plan, self.seed, self.scores, self.given = model, plan, seed, scores, dict(given or {})
        _asked(plan, self.given)
        self._inner = _inner(model)
        self._clock = Clock(self._inner)
        self._sites = _Sites(self._inner, model, plan, self._clock, {id(s): self for s in plan.stages}, scores)

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
            RuntimeError: this sieve is attached already, or the model is running in another thread.
            ValueError: it does not go together with one that is attached to the same model.
        """
        around: list[Sieve] = self._inner.__dict__.get(NEST, [])
        if self in around:
            raise RuntimeError("this sieve is attached already; detach() it first, or make a second one to nest")
        _settle(self._inner, [*around, self])
        if not of_diffusers(self._inner):
            warn_untested()
        return self

    def detach(self) -> None:
        """Take this sieve's hooks off; without others around it, the model is what it was.

        Raises:
            RuntimeError: the model is running in another thread.
        """
        around = self._inner.__dict__.get(NEST, [])
        if self in around:
            _settle(self._inner, [s for s in around if s is not self])

    def __enter__(self) -> Sieve:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()


def attached(model: Any) -> tuple[Sieve, ...]:
    """The sieves on a model, outermost first: to see what they did (``last``), or to ``detach()`` them."""
    return tuple(_inner(model).__dict__.get(NEST, ()))


def _asked(plan: Plan, given: Mapping[str, Any]) -> None:
    """Raise ValueError for a signal that no stage in an encoder reads."""
    inside = [s for s in plan.stages if s.in_encoder]
    read = {name for s in inside for need in s.needs for name in (need.name, *need.instead)}
    for name in given:
        if name not in read:
            what = ", ".join(sorted(read)) or "none: signals are given to methods at site='encoder' or 'patch'"
            raise ValueError(f"given={{{name!r}: ...}}: what these methods read that can be given is {what}")


def _inner(given: Any) -> nn.Module:
    """The model that is meant: inside what wraps it, or in a pipeline of diffusers the first of its denoisers."""
    return subject(given).denoisers[0] if of_diffusers(given) else pretrained(given)


class _Sites:
    """The sites of one plan on one model.

    Args:
        of: by the id of each stage, the sieve it is of.
    """

    def __init__(self, model: nn.Module, given: Any, plan: Plan, clock: Clock, of: dict[int, Sieve], scores: bool):
        self.model = model
        self.ledger = Ledger({i: s.seed for i, s in of.items()}, {i: s.given for i, s in of.items()})
        self.undo: list[Detach] = []
        self.sites = sites_of(model, given, plan.stages, clock, self.ledger, scores)
        guards.attachable(model, (stack.config for site in self.sites for stack in site.stacks))

    @property
    def trace(self) -> Trace | None:
        return self.sites[0].trace

    def attach(self) -> None:
        try:
            for site in self.sites:
                self.undo += site.attach()
            self.undo += self.ledger.attach(self.model)
            self.undo += [copies.forbid(self.model), *decoding.forbid(self.model)]
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        while self.undo:
            self.undo.pop()()


def _settle(model: nn.Module, sieves: list[Sieve]) -> None:
    """Make ``sieves``, outermost first, the ones that act on the model, as one plan; where that fails, those before it go on."""
    before: list[Sieve] = model.__dict__.get(NEST, [])
    if before and before[-1]._sites.ledger.elsewhere:
        raise guards.refusal("settling")
    sites = None
    if sieves:
        own = [(replace(stage), s) for s in sieves for stage in s.plan.stages]  # one stage may be of two sieves
        whole, of = Plan([stage for stage, _ in own]), {id(stage): s for stage, s in own}
        sites = _Sites(model, sieves[-1].model, whole, sieves[-1]._clock, of, any(s.scores for s in sieves))
    compiled.renew(model)
    model.__dict__.pop(NEST, None)
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


@overload
def sieve(model: Any, what: Literal["speech"], *, margin: float = ...) -> speech.SpeechCut: ...


@overload
def sieve(
    model: Any,
    what: str | Method | Stage | Plan,
    keep: Budget | Callable[[float], float] | None = None,
    *,
    r: int | None = None,
    seed: int = 0,
    scores: bool = False,
    given: Mapping[str, Any] | None = None,
    **where: Any,
) -> Sieve: ...


def sieve(
    model: Any,
    what: str | Method | Stage | Plan,
    keep: Budget | Callable[[float], float] | None = None,
    *,
    r: int | None = None,
    seed: int = 0,
    scores: bool = False,
    given: Mapping[str, Any] | None = None,
    **where: Any,
) -> Sieve | speech.SpeechCut:
    """Run a model on fewer tokens, through hooks that go away again.

    Args:
        model: an unmodified transformers model: a vision-language model, an encoder (of images, text or sound, one of two towers,
            or in front of a decoder), or, for methods that evict from the cache, a causal language model. What holds one may
            stand in its place: a `sentence-transformers` model, a pipeline, a model under PEFT. Or a pipeline of diffusers, or
            its unet or transformer (site="diffusion").
        what: a method's name, a :class:`Method`, a :class:`Stage` or a :class:`Plan`; or "speech", under which a Whisper runs on
            what was said and ``margin`` seconds (see :class:`~tokensieve.sites.encoder.speech.SpeechCut`).
        keep: the budget, for a name or a method: tokens (int), share (float) or :class:`Keep`; per image unless it says "prompt".
            Of systems of several stages it is the mean over the language model's layers, or what the last leaves where the
            method says so (`sparsevlm`). In a pipeline of diffusers also a function of progress (0 the first step, 1 the last).
        r: in place of ``keep``, how many tokens leave in each block of an encoder: ``Keep(r=r)``.
        seed: for methods that draw.
        given: in an encoder, signals that the method reads and the model does not have, by name: a tensor of all tokens (of each
            row, or of all rows alike), or a function of the :class:`~tokensieve.Signals` and of the block (-1 in front of the
            first), such as a head on the states there. `tokensieve signals` lists them.
        scores: have the sieve's ``last`` hold what each stage ranked by, for heat maps.
        where: ``site``, ``layers`` and the other fields of :class:`~tokensieve.Stage`, or options of the method. In a model that
            is an encoder, methods stand at ``site="encoder"`` that can; in diffusers also ``form``, ``steps``, ``shared`` and
            ``cached`` (see :class:`~tokensieve.core.denoising.Denoising`).

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
        if keep is not None or r is not None or where:
            raise ValueError("a plan or stage carries its own keep and options; pass the model and the plan only")
        return Sieve(model, what if isinstance(what, Plan) else Plan(what), seed, scores, given)
    if what == "speech":
        if keep is not None or r is not None:
            raise ValueError("'speech' keeps what was said; nest it with another sieve: sieve(model, 'tome', keep=0.5)")
        return speech.speech(model, **where)
    if keep is not None and r is not None:
        raise ValueError(f"keep={keep!r} and r={r!r}: both say how many tokens leave; give one of them")
    keep = Keep(r=r) if r is not None else keep
    if keep is None:
        raise ValueError(f"keep is missing; say how many tokens to keep: sieve(model, {what!r}, keep=64)")
    if of_diffusers(model):
        where.setdefault("site", "diffusion")
    if isinstance(what, str):
        check_names(
            what, where, (*WHERE, *(KEYWORDS if where.get("site") == "diffusion" else ()), "seed", "scores", "given")
        )
    made = get_method(what) if isinstance(what, str) else what
    if (
        "site" not in where
        and made.site not in ("patch", "encoder")
        and "encoder" in made.sites
        and towers.towers(pretrained(model))
    ):
        where["site"] = "encoder"
    return Sieve(model, applied(what, keep, **where), seed, scores, given)
