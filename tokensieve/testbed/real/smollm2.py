"""SmolLM2 from its GGUF file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tokensieve.extras import install
from tokensieve.sites.model.compatibility import GenerationConfig


def require() -> None:
    """Raise ImportError where a package of the extra "real" is missing."""
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)} is not installed, and reads GGUF files; {install('real')}")


def convert(source: Path, target: Path) -> None:
    """Write the model of a folder with one GGUF file as a plain Hugging Face directory, in float32.

    A model read from GGUF cannot be saved as it is: its weights go into a fresh one. transformers shows the progress.
    """
    (file,) = source.glob("*.gguf")
    quantised = LlamaForCausalLM.from_pretrained(source, gguf_file=file.name, dtype=torch.float32)
    kept = quantised.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "transformers_version", "architectures"):
        kept.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**kept))
    model.load_state_dict(quantised.state_dict())
    ends = model.config.eos_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id, eos_token_id=ends, pad_token_id=ends
    )
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file.name)
    tokenizer.padding_side, tokenizer.model_max_length = "left", model.config.max_position_embeddings
    tokenizer.save_pretrained(target)
