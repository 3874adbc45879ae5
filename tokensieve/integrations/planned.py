"""A harness's model under a plan: where the plan comes from, what it kept, and errors that a harness passes over in silence."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokensieve import __version__
from tokensieve.core.plan import FILE, Plan
from tokensieve.core.stage import Stage
from tokensieve.sites.loading import fitting
from tokensieve.sites.model.calls import around

NAME = "tokensieve-"
"""What the names of models under a plan begin with; the harness's own name follows."""
UNCACHED = ".*evicted nothing: the pass had no cache"


def read_plan(plan: Plan | Mapping[str, Any] | str | None, model: Any) -> Plan:
    """The plan that a harness's model is told.

    Args:
        plan: a plan, its JSON (parsed or not), or the path of a file; None for the one beside the weights.
        model: the folder or name of the model.

    Raises:
        FileNotFoundError: there is no such file, or none beside the weights.
        ValueError: not a plan.
    """
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, Mapping):
        return Plan.from_json(dict(plan))
    if plan is not None and plan.lstrip().startswith("{"):
        return Plan.from_json(json.loads(plan))
    if plan is not None:
        return Plan.load(plan)
    if not isinstance(model, str) or not (Path(model) / FILE).is_file():
        raise FileNotFoundError(
            f"no plan: give --plan, or plan=plan.json among the model's arguments, or put {FILE} beside {model}"
        )
    return Plan.load(model)


def check_hooks(owner: type, names: Iterable[str], package: str, tested: str) -> None:
    """Refuse a release of a harness that has other methods than those which a plan goes in by.

    Raises:
        ImportError: one is missing; it says which.
    """
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise ImportError(
            f"{package} {version(package)} has no {owner.__name__}.{', '.join(missing)}, by which a plan would go in; "
            f"install the release that was tested: pip install {package}=={tested}"
        )


class Planned:
    """A plan on a harness's model, put on with ``with`` while the harness asks it.

    Attributes:
        acting: the stages that do not keep everything.
    """

    def __init__(self, model: Any, plan: Plan, seed: int):
        self.model, self.plan, self.seed = model, plan, seed
        self.acting = [stage for stage in plan.stages if not stage.whole]
        self.sieve = fitting(model, plan, seed)
        self._rows = self._untouched = 0
        self._before = self._kept = 0.0
        self._seen: Any = None
        self._undo: list[Callable[[], None]] = []
        self._error: Exception | None = None

    def __enter__(self) -> Planned:
        self._error = None
        self._undo.append(self.sieve.attach().detach)
        self._undo.append(around(self.model, "generate", self._watched))
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        while self._undo:
            self._undo.pop()()
        if error is None and self._error is not None:
            raise RuntimeError(
                f"a question was answered with nothing, for under the plan {type(self._error).__name__} was raised: {self._error}"
            ) from self._error
        if error is None:
            self.check()

    @property
    def _leaving(self) -> bool:
        """Whether tokens are to leave, and are not only held in fewer bits or read by fewer."""
        aside = (s.site == "cache" and (s.cache_method.bits or s.cache_method.query_block_size) for s in self.acting)
        return bool(self.acting) and not any(aside)

    def check(self) -> None:
        """Say so where nothing acted.

        Raises:
            RuntimeError: no prompt brought what the plan works on.
        """
        if self.acting and not self._rows:
            raise RuntimeError(f"{_names(self.acting)} never acted: no prompt brought what it works on")
        if self._leaving and self._kept >= self._before:
            warnings.warn(
                f"{_names(self.acting)} kept every token of every prompt: all are within the budget", stacklevel=3
            )

    def pass_over(self, prompts: int) -> None:
        """Count prompts that are answered without the plan, for they bring nothing that it could work on."""
        self._untouched += prompts

    def _watched(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def generate(*args: Any, **kwargs: Any) -> Any:
            if self._error is not None:
                raise self._error
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("error", UNCACHED)
                    out = plain(*args, **kwargs)
            except Exception as error:  # some harnesses answer with nothing and ask the next question
                self._error = error
                raise
            ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
            self.note(len(ids), float(ids.shape[1] if mask is None else mask.ne(0).sum(1).float().mean()))
            return out

        return generate

    def note(self, prompts: int, tokens: float) -> None:
        """Add up what the last pass over prompts kept.

        Args:
            prompts: how many; tokens: how many each has on average, padding left out.
        """
        trace = self.sieve.last
        if trace is None or trace is self._seen:
            self.pass_over(prompts)
            return
        self._seen, rows = trace, len(trace.rows)
        before = float(trace.stages[0].reduction.n) if trace.stages else tokens
        kept = sum(min(count, before) for count in trace.layer_tokens) / len(trace.layer_tokens)
        self._rows += rows
        self._before += rows * before
        self._kept += rows * kept

    def said(self) -> dict[str, Any]:
        """What results are told of the plan."""
        return {"plan": self.plan.to_json(), "seed": self.seed, "version": __version__}

    def facts(self) -> dict[str, float]:
        """What came through this process: images (under a plan that acts on them; prompts otherwise), the means of their tokens
        and of those that a layer of the language model read of them, and prompts that brought nothing to act on."""
        of = max(self._rows, 1)
        return {
            "acted_on": self._rows,
            "tokens": self._before / of,
            "tokens_kept": self._kept / of,
            "untouched": self._untouched,
        }


def _names(stages: Iterable[Stage]) -> str:
    return " and ".join(f"{s.method.name!r} at site={s.site!r}" for s in stages)
