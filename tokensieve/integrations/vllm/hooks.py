"""Every name of vLLM that the plugin takes hold of; each is checked before a plan runs. Nothing of vLLM is imported before."""

from __future__ import annotations

from functools import reduce
from importlib import import_module
from typing import Any

from packaging.version import Version

OLDEST = "0.30"
TESTED = ("0.32.0",)
"""Releases whose packaged LLaVA answers as `tokensieve.sieve` does."""

FRONT = (
    "vllm:ModelRegistry.register_model",
    "vllm:ModelRegistry.models",
    "vllm.model_executor.models.registry:_MULTIMODAL_MODELS",
    "vllm.model_executor.models.config:MODELS_CONFIG_MAP",
    "vllm.model_executor.models.config:VerifyAndUpdateConfig.verify_and_update_config",
    "vllm.model_executor.models.config:VerifyAndUpdateConfig.verify_and_update_model_config",
    "vllm.multimodal.processing:BaseMultiModalProcessor.apply",
    "vllm.multimodal.processing:BaseMultiModalProcessor._get_mm_prompt_updates",
    "vllm.multimodal.processing:BaseProcessingInfo.get_mm_max_tokens_per_item",
    "vllm.multimodal.processing:ProcessorInputs.get_mm_hashes",
    "vllm.multimodal.processing:PromptUpdateDetails.from_seq",
    "vllm.multimodal.inputs:MultiModalFieldElem",
    "vllm.multimodal.inputs:MultiModalBatchedField",
    "vllm.multimodal.registry:_ProcessorFactories",
    "vllm.config.multimodal:MultiModalConfig.is_multimodal_pruning_enabled",
    "vllm.transformers_utils.config:uses_mrope",
)
"""What the processes use that read requests: module, and the path inside it."""
DUMMY, OLDER_DUMMY = "get_dummy_inputs", "get_dummy_processor_inputs"
"""What makes the largest picture: of a processor, and in older releases of what it has for that."""
WORKER = (
    "vllm.model_executor.layers.attention.mm_encoder_attention:MMEncoderAttention.forward",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._gather_mm_embeddings",
    "vllm.distributed:get_tp_group",
)
"""What those use that run the model."""


def found(path: str) -> Any:
    """The thing at "module:path.inside"."""
    module, _, inside = path.partition(":")
    return reduce(getattr, inside.split("."), import_module(module))


def missing(paths: tuple[str, ...]) -> list[str]:
    """Those of the names that this vLLM lacks."""
    out = []
    for path in paths:
        try:
            found(path)
        except (ImportError, AttributeError):
            out.append(path.replace(":", "."))
    return out


def refusal(paths: tuple[str, ...]) -> str | None:
    """Why no plan can run on this vLLM; None where one can."""
    release = version()
    if Version(release) < Version(OLDEST):
        return f"vLLM {release} is older than {OLDEST}, from which on tokensieve's plans run; install a newer one"
    lacking = missing(paths)
    if lacking:
        return f"vLLM {release} lacks {', '.join(lacking)}, which plans hook into; tested are vLLM {', '.join(TESTED)}"
    return None


def version() -> str:
    return str(import_module("vllm").__version__).partition("+")[0]
