"""vLLM serves under a plan: `vllm serve MODEL --hf-overrides '{"tokensieve": {"method": "divprune", "keep": 64}}'`.

:func:`register` is the entry point that vLLM calls in each of its processes. It has every multimodal architecture made from a
subclass, when one is asked for; without a plan that is what it was.
"""

from __future__ import annotations

from tokensieve.integrations.vllm.refusals import Tower, Unserved, served_methods, why_not
from tokensieve.integrations.vllm.stages import KEY, PREFIX, count, of_request, of_server, stage_of

__all__ = [
    "KEY", "PREFIX", "Tower", "Unserved", "count", "of_request", "of_server", "register", "served_methods", "stage_of", "why_not",
]  # fmt: skip


def register() -> None:
    """Make vLLM's multimodal architectures known as those that can be thinned. It may be called again."""
    from tokensieve.integrations.vllm.architectures import register_all

    register_all()
