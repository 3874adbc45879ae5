"""The site of a stage in denoisers: it follows each of their passes, and has a form act in those that it is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from tokensieve.core.denoising import Denoising
from tokensieve.core.reduction import Reduction
from tokensieve.core.stage import Stage
from tokensieve.sites.diffusion import latents
from tokensieve.sites.diffusion.attention_form import AttentionForm
from tokensieve.sites.diffusion.choice import Choice
from tokensieve.sites.diffusion.progress import Progress
from tokensieve.sites.diffusion.running import DenoiserPass, disabled
from tokensieve.sites.diffusion.stream_form import StreamForm
from tokensieve.sites.diffusion.subject import subject
from tokensieve.sites.model import guards
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.calls import Detach, before
from tokensieve.sites.model.clock import Clock
from tokensieve.sites.model.ledger import Ledger
from tokensieve.sites.model.trace import StageTrace, Trace

FORMS: dict[str, Callable[..., AttentionForm | StreamForm]] = {"attention": AttentionForm, "stream": StreamForm}

BETWEEN_STEPS = ("change", "staleness")
"""Signals that say what became of tokens in earlier steps."""


class DiffusionSite:
    """One stage in the denoisers of what was passed.

    Attributes:
        trace: what became of the tokens in each module of the last pass in which the stage acted.

    Raises:
        ValueError: no denoiser, none of the modules that are asked for, or steps without a pipeline that counts them.
    """

    stacks: Sequence[Stack] = ()

    def __init__(self, given: Any, stage: Stage, clock: Clock, ledger: Ledger):
        found = subject(given)
        assert stage.denoising is not None
        self._stage, self._how, self._ledger = stage, stage.denoising, ledger
        if found.pipeline is None and (self._how.timed or self._how.cached):
            raise ValueError(
                f"{_asked(self._how)} needs to know how far a run is, which a pipeline's scheduler says; pass the pipeline in "
                f"the place of its {type(found.denoisers[0]).__name__}"
            )
        told = [n.name for n in stage.method.needs if n.name in BETWEEN_STEPS]
        if told and not self._how.cached:
            raise ValueError(
                f"{stage.method.name} goes by {' and '.join(told)}, which only form='stream' with cached=True knows of; leave "
                "both out"
            )
        self._progress = Progress(found.pipeline) if self._how.timed or self._how.cached else None
        self._denoisers = found.denoisers
        ledger.every.append(stage)
        ledger.models += found.denoisers
        self._now: DenoiserPass | None = None
        self.trace: Trace | None = None
        choice = Choice(stage, clock, ledger.seed(stage))
        self._forms = [FORMS[self._how.form](d, choice, lambda: self._now) for d in self._denoisers]

    def attach(self) -> list[Detach]:
        out: list[Detach] = [] if self._progress is None else self._progress.attach()
        for denoiser, form in zip(self._denoisers, self._forms, strict=True):
            out.append(before(denoiser, self._beginning(form)))
            out.append(denoiser.register_forward_hook(disabled(self._end), always_call=True).remove)
            out += form.attach()
        return out

    def _beginning(self, form: AttentionForm | StreamForm) -> Callable[..., None]:
        def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self._now = None
            seen = latents.read(getattr(module, "config", None), kwargs)
            if seen is None:
                raise guards.refusal("unpictured", model=type(module).__name__)
            progress = 0.0 if self._progress is None else self._progress.now
            acts = self._how.steps[0] <= progress <= self._how.steps[1]
            keep = self._how.budget(self._stage.keep, progress) if acts else None
            step = (0, 0) if self._progress is None else (self._progress.run, self._progress.entry)
            self._now = DenoiserPass(seen, keep, seen.halves and self._how.shared, progress, step)
            if isinstance(form, StreamForm):
                form.begin(self._now)

        return disabled(begin)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._ledger.elsewhere:  # a thread that was refused is at its end, and not the pass that runs
            return
        now, self._now = self._now, None
        if now is None or output is None:  # it broke off
            return
        self._ledger.ran(self._stage)
        if now.keep is None:
            return
        if not now.seen:
            raise guards.refusal("untouched", model=type(module).__name__, form=self._how.form)
        stages = []
        for row, r, rows in now.seen.values():
            kept = Reduction.identity(rows, row.n) if r is None else r
            stages.append(StageTrace(self._stage, kept, None, row.grid))
        tokens = [float(s.reduction.m) for s in stages]
        self.trace = Trace(stages, list(range(now.latents.batch)), tokens, modules=list(now.seen))


def _asked(how: Denoising) -> str:
    return "cached=True" if how.cached else "a schedule for keep" if how.schedule is not None else f"steps={how.steps}"
