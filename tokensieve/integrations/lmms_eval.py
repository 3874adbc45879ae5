"""lmms-eval under a plan: each of its models that holds a model of transformers, registered as `tokensieve-` and its own name.

They take the model's arguments of lmms-eval, and ``plan`` and ``sieve_seed``. lmms-eval prints errors and ends well all the same,
and some of its models answer with nothing where generating failed; under a plan both end in an error.
"""

from __future__ import annotations

from collections.abc import Sequence
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
check_hooks(lmms, ("generate_until", "loglikelihood", "create_from_arg_string"), "lmms-eval", TESTED)
check_hooks(type(MODEL_REGISTRY_V2), ("register_manifest", "get_model_class"), "lmms-eval", TESTED)
SIMPLE, CHAT = "simple_", "chat_"


class UnderPlan:
    """What a plan adds to a model of lmms-eval.

    Args:
        plan: as for :func:`read_plan`; by default the one beside the weights.
        sieve_seed: for methods that draw.
        others: the model's own arguments.

    Attributes:
        problems: what was raised under a plan; asked: how often a model under one has answered.
    """

    problems: ClassVar[list[Exception]] = []
    asked: ClassVar[list[str]] = []

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
        self.asked.append(how)
        facts = {f"tokensieve_{name}": value for name, value in self.planned.facts().items()}
        log_metrics(total_elapsed_time=0.0, total_gen_tokens=0, avg_speed=0.0, additional_metrics=facts)
        return answers


def __getattr__(name: str) -> type:
    """The class of a model under a plan, which lmms-eval asks for by the path under which it is registered."""
    for kind in (SIMPLE, CHAT):
        if name.startswith(kind):
            base = MODEL_REGISTRY_V2.get_model_class(name.removeprefix(kind), force_simple=kind == SIMPLE)
            return type(
                f"Planned{base.__name__}",
                (UnderPlan, base),
                {"__module__": __name__, "__doc__": f"{base.__name__} under a plan."},
            )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> tuple[str, ...]:
    """Have lmms-eval know its models under a plan; returns their names there without a plan."""
    names = tuple(sorted({*AVAILABLE_SIMPLE_MODELS, *AVAILABLE_CHAT_TEMPLATE_MODELS}))
    for name in names:
        simple = f"{__name__}.{SIMPLE}{name}" if name in AVAILABLE_SIMPLE_MODELS else None
        chat = f"{__name__}.{CHAT}{name}" if name in AVAILABLE_CHAT_TEMPLATE_MODELS else None
        MODEL_REGISTRY_V2.register_manifest(ModelManifest(NAME + name, simple, chat), overwrite=True)
    return names


HARNESS = Harness("lmms-eval", register(), "eval", adds=False)


def run(args: Sequence[str], plan: Plan | None = None, seed: int = 0) -> None:
    """lmms-eval's command line under a plan.

    Args:
        args: as lmms-eval takes them; ``--model qwen2_5_vl`` becomes ``tokensieve-qwen2_5_vl``.
        plan: None for the one beside the weights.

    Raises:
        ValueError: a model or a command that no plan goes with.
        RuntimeError: the model was not asked; what lmms-eval has printed says why.
    """
    from lmms_eval.cli.dispatch import main

    UnderPlan.problems.clear()
    UnderPlan.asked.clear()
    with HARNESS.called(HARNESS.under(args, plan, seed)):
        main()
    if UnderPlan.problems:
        raise UnderPlan.problems[0]
    if not UnderPlan.asked:
        raise RuntimeError("lmms-eval ended without asking the model; what it has printed says why")
