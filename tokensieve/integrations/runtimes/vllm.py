"""What vLLM can serve; nothing here needs vLLM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokensieve.core.plan import Plan
from tokensieve.integrations.vllm import rope
from tokensieve.integrations.vllm.anatomies import kinds, tower_of
from tokensieve.integrations.vllm.refusals import refused_model, refused_stage
from tokensieve.planner.runtimes import RUNTIMES, Served
from tokensieve.sites.model.structure import find


@RUNTIMES.register("vllm")
def vllm(model: Any) -> Served:
    """vLLM under the plugin of this package: one stage at the handoff, of a fixed number of tokens that no text decides."""
    config, anatomy = model.config, find(model)
    tower, whole = tower_of(config, anatomy), refused_model(config, kinds(config))
    text = config.get_text_config()
    axes = "mrope_section" in (getattr(text, "rope_parameters", None) or {})
    compact = not axes and rope.narrow(text) is not None

    def served(plan: Plan) -> Plan | str:
        why = whole or refused_stage(plan, tower)
        if why is not None:
            return why
        # Where kept tokens cannot have the positions that they had, the plan is judged with those that they get.
        return Plan([replace(plan.stages[0], positions="compact")]) if compact else plan

    return served
