"""Architectures: vLLM's own, each under its name as one that can be thinned; made when it is asked for.

A class is named by its architecture and by vLLM's version, since vLLM remembers on disk what it found out about one.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from tokensieve.integrations.vllm import configure, hooks
from tokensieve.integrations.vllm.stages import KEY

TABLE, REGISTRY = "vllm.model_executor.models.registry:_MULTIMODAL_MODELS", "vllm:ModelRegistry"
LOGGER = logging.getLogger("vllm.tokensieve")
PLAIN: dict[str, Any] = {}
"""What was registered before, by architecture."""
MADE: dict[str, type] = {}


def register_all() -> None:
    """Register all that vLLM knows; where it has no table of them any more, say so, and leave it as it is."""
    lacking = hooks.missing((TABLE, REGISTRY))
    if lacking:
        LOGGER.warning("tokensieve: vLLM %s has no %s; it thins no pictures", hooks.version(), ", ".join(lacking))
        return
    registry, mark = hooks.found(REGISTRY), hooks.version().replace(".", "_")
    for name in hooks.found(TABLE):
        plain = registry.models.get(name)
        if plain is None or getattr(plain, "module_name", "") == __name__:
            continue
        PLAIN[name] = plain
        registry.register_model(name, f"{__name__}:{name}__{mark}")
        configure.around(name)


def __getattr__(name: str) -> type:
    architecture, there, _ = name.partition("__")
    if not architecture or not there:
        raise AttributeError(name)
    if name not in MADE:
        register_all()
        MADE[name] = sieved(PLAIN[architecture].load_model_cls())
    return MADE[name]


def sieved(plain: Any) -> Any:
    """A subclass of a model's class that thins pictures where its config asks for that."""
    if not hasattr(plain, "_processor_factory") or not hasattr(plain, "embed_multimodal"):
        return plain

    def __init__(self: Any, *, vllm_config: Any, prefix: str = "") -> None:
        plain.__init__(self, vllm_config=vllm_config, prefix=prefix)
        if getattr(vllm_config.model_config.hf_config, KEY, None) is not None:
            from tokensieve.integrations.vllm.worker import install

            install(self, vllm_config)

    made = type(plain.__name__, (plain,), {"__init__": __init__, "__module__": __name__})
    factories = plain._processor_factory
    made._processor_factory = dataclasses.replace(factories, processor=_processors(factories.processor))  # type: ignore[attr-defined]
    return made


def _processors(plain: Any) -> Any:
    def make(info: Any, dummy_inputs: Any, **more: Any) -> Any:
        from tokensieve.integrations.vllm.front_end import attach

        return attach(plain(info, dummy_inputs, **more))

    return make
