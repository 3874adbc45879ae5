"""What of a model can be served by the vLLM that is installed: `tokensieve vllm check MODEL`."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from typing import Any

from transformers import AutoConfig

from tokensieve.core.method_registry import get_method, list_methods
from tokensieve.core.plan import Plan
from tokensieve.core.stage import Stage
from tokensieve.extras import install
from tokensieve.integrations.vllm import hooks, rope
from tokensieve.integrations.vllm.anatomies import anatomy_of, kinds, tower_of
from tokensieve.integrations.vllm.architectures import TABLE
from tokensieve.integrations.vllm.refusals import Tower, refused_model, refused_stage


@dataclass(frozen=True)
class ServeReport:
    """What was found.

    Attributes:
        vllm: its version; "" where it is not installed.
        hooks: why no plan can run on it; "" where one can.
        model: why no plan can be served with the model; "" where one can.
        architecture: as its config names it; known: whether this vLLM has it.
        tower: what the model's encoder can tell.
        positions: the policies that can be served, each with why it cannot, or "".
        methods: those that run at the handoff, each with why it cannot be served, or "".
    """

    vllm: str
    hooks: str
    model: str
    architecture: str
    known: bool
    tower: Tower
    positions: dict[str, str]
    methods: dict[str, str]

    @property
    def ok(self) -> bool:
        return bool(self.vllm) and not self.hooks and not self.model and self.known

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ok": self.ok}


def check(model: str) -> ServeReport:
    """Look at a local or hub model's config, and at vLLM.

    Raises:
        OSError: there is no such model.
    """
    config = AutoConfig.from_pretrained(model)
    installed = importlib.util.find_spec("vllm") is not None
    tower = tower_of(config, anatomy_of(config))
    architecture = (getattr(config, "architectures", None) or [""])[0]
    text = config.get_text_config()
    own = "mrope_section" in (getattr(text, "rope_parameters", None) or {})
    methods = {
        name: refused_stage(Plan(Stage(get_method(name), 16, "handoff")), tower) or ""
        for name in list_methods(site="handoff")
    }
    return ServeReport(
        vllm=hooks.version() if installed else "",
        hooks=(hooks.refusal((*hooks.FRONT, *hooks.WORKER)) or "")
        if installed
        else f"vLLM is not installed; {install('vllm')}",
        model=refused_model(config, kinds(config)) or "",
        architecture=architecture,
        known=installed and architecture in hooks.found(TABLE),
        tower=tower,
        positions={"original": "" if own else rope.narrow(text) or "", "compact": ""},
        methods=methods,
    )
