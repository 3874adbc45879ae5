"""lmms-eval under a plan: each of its models that holds a model of transformers, registered as `tokensieve-` and its own name.

They take the model's arguments of lmms-eval, and ``plan`` and ``sieve_seed``. lmms-eval prints errors and ends well all the same,
and some of its models answer with nothing where generating failed; under a plan both end in an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar

from tokensieve.core.plan import Plan
from tokensieve.integrations.command import Harness
from tokensieve.integrations.planned import NAME, Planned, check_hooks, read_plan

try:
    from lmms_eval.api.model import lmms
    from lmms_eval.models import AVAILABLE_CHAT_TEMPLATE_MODELS, AVAILABLE_SIMPLE_MODELS, MODEL_REGISTRY_V2
    from lmms_eval.models.model_utils.gen_metrics import log_metrics
    from lmms_eval.models.registry_v2 import ModelManifest
except ImportError as error:
    raise ImportError(
        f"lmms-eval cannot be imported ({error}); it takes an environment of its own, which the guide to harnesses makes"
    ) from error

TESTED = "0.7"
check_hooks(lmms, ("generate_until", "loglikelihood", "clean", "create_from_arg_string"), "lmms-eval", TESTED)
check_hooks(
    type(MODEL_REGISTRY_V2), ("register_manifest", "get_manifest", "list_canonical_model_ids"), "lmms-eval", TESTED
)
SIMPLE, CHAT = "simple_", "chat_"
"""What the names of classes under a plan begin with; the model's name follows."""


class LmmsUnderPlan:
    """What a plan adds to a model of lmms-eval.

    Args:
        plan: as for :func:`read_plan`; by default the one beside the weights.
        sieve_seed: for methods that draw.
        others: the model's own arguments.

    Attributes:
        problems: what was raised under a plan; ended: the plans under which every request has its answer.
    """

    problems: ClassVar[list[Exception]] = []
    ended: ClassVar[list[Planned]] = []

    def __init__(self, *, plan: Any = None, sieve_seed: int = 0, **others: Any):
        try:
            read = read_plan(plan, others.get("pretrained"))
            super().__init__(**others)
            model = getattr(self, "model", None)
            if not hasattr(model, "generate"):
                raise ValueError(f"{type(self).__name__} holds no model of transformers, which a plan could go with")
            self.planned = Planned(model, read, int(sieve_seed))
        except Exception as error:
            self.problems.append(error)
            raise

    def clean(self) -> None:
        """Called by lmms-eval once every request has its answer."""
        self.ended.append(self.planned)
        super().clean()  # type: ignore[misc]

    def generate_until(self, requests: Any) -> Any:
        return self._asked("generate_until", requests)

    def generate_until_multi_round(self, requests: Any) -> Any:
        return self._asked("generate_until_multi_round", requests)

    def loglikelihood(self, requests: Any) -> Any:
        if any(stage.site == "cache" for stage in self.planned.acting):
            error = ValueError(
                "a likelihood is one forward pass here, which reads nothing from a cache: its stages would not act"
            )
            self.problems.append(error)
            raise error
        return self._asked("loglikelihood", requests)

    def _asked(self, how: str, requests: Any) -> Any:
        try:
            with self.planned:
                answers = getattr(super(), how)(requests)
        except Exception as error:
            self.problems.append(error)
            raise
        facts = {f"tokensieve_{name}": value for name, value in self.planned.facts().items()}
        log_metrics(total_elapsed_time=0.0, total_gen_tokens=0, avg_speed=0.0, additional_metrics=facts)
        return answers


def __getattr__(name: str) -> type:
    """The class of a model under a plan, which lmms-eval asks for by the path under which it is registered."""
    for kind, paths in ((SIMPLE, AVAILABLE_SIMPLE_MODELS), (CHAT, AVAILABLE_CHAT_TEMPLATE_MODELS)):
        if name.startswith(kind) and name.removeprefix(kind) in paths:
            model = KNOWN[name.removeprefix(kind)]
            path = model.simple_class_path if kind == SIMPLE else model.chat_class_path
            module, own = str(path).rsplit(".", 1)
            base = getattr(import_module(module), own)
            return type(
                f"Planned{own}", (LmmsUnderPlan, base), {"__module__": __name__, "__doc__": f"{own} under a plan."}
            )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register(model: str, name: str) -> None:
    """Have lmms-eval know one of its models under a plan by a name."""
    known = KNOWN[model]
    simple = f"{__name__}.{SIMPLE}{model}" if known.simple_class_path else None
    chat = f"{__name__}.{CHAT}{model}" if known.chat_class_path else None
    MODEL_REGISTRY_V2.register_manifest(ModelManifest(name, simple, chat), overwrite=True)


KNOWN = {name: MODEL_REGISTRY_V2.get_manifest(name) for name in MODEL_REGISTRY_V2.list_canonical_model_ids()}
for _name in KNOWN:
    register(_name, NAME + _name)
HARNESS = Harness("lmms-eval", tuple(KNOWN), "eval", adds=False)


def run(args: Sequence[str], plan: Plan | None = None, seed: int = 0) -> None:
    """lmms-eval's command line under a plan.

    Args:
        args: as lmms-eval takes them. The model keeps its name there, by which tasks choose their prompts.
        plan: None for the one beside the weights.

    Raises:
        ValueError: a model or a command that no plan goes with, or that a plan does not fit.
        RuntimeError: what went wrong under the plan; or lmms-eval has ended without an answer, and printed why.
    """
    from lmms_eval.cli.dispatch import main

    own = HARNESS.model(args)
    LmmsUnderPlan.problems.clear()
    LmmsUnderPlan.ended.clear()
    register(own, own)
    try:
        with HARNESS.called([*HARNESS.told(args, plan, seed), "--model", own]):
            main()
    finally:
        MODEL_REGISTRY_V2.register_manifest(KNOWN[own], overwrite=True)
    for problem in LmmsUnderPlan.problems:
        raise problem if isinstance(problem, ValueError) else RuntimeError(f"{type(problem).__name__}: {problem}")
    if not LmmsUnderPlan.ended:
        raise RuntimeError("lmms-eval ended without an answer of the model; what it has printed says why")
