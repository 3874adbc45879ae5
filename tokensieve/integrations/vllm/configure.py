"""When a server is configured: its plan is read, refused where it cannot run, and its model prepared."""

from __future__ import annotations

from typing import Any

from tokensieve.core.plan import Plan
from tokensieve.integrations.vllm import hooks, rope
from tokensieve.integrations.vllm.anatomies import kinds
from tokensieve.integrations.vllm.refusals import Unserved, reads_encoder, refused_model
from tokensieve.integrations.vllm.server import BLIND, Server
from tokensieve.integrations.vllm.stages import KEY, PREFIX

TABLE = "vllm.model_executor.models.config:MODELS_CONFIG_MAP"
BASE = "vllm.model_executor.models.config:VerifyAndUpdateConfig"


def around(architecture: str) -> None:
    """Have an architecture's configs go through :func:`prepare` and :func:`verify`, behind what vLLM does with them; where it has
    no place for that, a plan is refused when the model's processor is made."""
    if hooks.missing((TABLE, BASE)):
        return
    table = hooks.found(TABLE)
    plain = table.get(architecture, hooks.found(BASE))

    class Sieved(plain):  # type: ignore[misc,valid-type]
        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            plain.verify_and_update_model_config(model_config)
            if getattr(model_config.hf_config, KEY, None) is not None:
                prepare(model_config)

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            plain.verify_and_update_config(vllm_config)
            if getattr(vllm_config.model_config.hf_config, KEY, None) is not None:
                verify(vllm_config)

    table[architecture] = Sieved


def prepare(model_config: Any) -> None:
    """Read the plan of a server into its config, and give the model tables of several axes where positions ask for them.

    Raises:
        ValueError: the plan cannot be read, or not be served with this model.
    """
    config, seen = model_config.hf_config, model_config.multimodal_config
    why = hooks.refusal(hooks.FRONT) or refused_model(config, kinds(config))
    if seen is None or seen.language_model_only:
        why = why or "it is served without its pictures"
    if why is not None:
        raise Unserved(f"{type(config).__name__} cannot be served under a plan: {why}")
    if seen.is_multimodal_pruning_enabled():
        raise Unserved(f"--video-pruning-rate {seen.video_pruning_rate} and a plan cannot go together; leave one out")
    odd = sorted(name for name in seen.mm_processor_kwargs or {} if name.startswith(PREFIX))
    if odd:
        raise Unserved(f"{odd[0]} in --mm-processor-kwargs: a server's plan is {KEY} in --hf-overrides")
    if seen.mm_encoder_tp_mode == "data":
        blinded(config, "with --mm-encoder-tp-mode data each rank's encoder sees some of the pictures only")
    text = config.get_text_config()
    if not hooks.found("vllm.transformers_utils.config:uses_mrope")(config) and rope.narrow(text) is None:
        rope.widen(text)
    server = Server(config)
    if server.stage is not None:
        server.check(server.stage)
    setattr(config, KEY, {} if server.stage is None else {"plan": Plan(server.stage).to_json()})


def verify(vllm_config: Any) -> None:
    """Look at the rest of a server, and switch off what would go past the plan.

    Raises:
        ValueError: the plan does not go together with it.
    """
    config, compilation = vllm_config.model_config.hf_config, vllm_config.compilation_config
    if vllm_config.speculative_config is not None:
        raise Unserved("a plan does not go together with speculative decoding; leave --speculative-config out")
    if compilation.compile_mm_encoder:
        blinded(config, "in an encoder that is compiled (compile_mm_encoder) attention is not seen")
    compilation.cudagraph_mm_encoder = False  # its graphs go past what thins pictures
    server = Server(config)
    if server.stage is not None and reads_encoder(server.stage.method, server.tower):
        server.check(server.stage)


def blinded(config: Any, why: str) -> None:
    setattr(config, BLIND, why)
