"""What cannot be read off a model: the only place that names architectures."""

from __future__ import annotations

TILED = frozenset({"internvl", "qianfan_ocr", "got_ocr2", "pp_chart2table", "perception_lm"})
"""An image comes in tiles whose placeholders follow each other without a gap, the whole picture last."""

ROW_BY_ROW = frozenset({"kimi_k25", "muse_glimmer", "paddleocr_vl"})
"""Packed patches lie row by row, not block by block as they become tokens."""

CONNECTED = frozenset({"granite_docling"})
"""The encoder itself makes visual tokens of all its patches, as a grid, and of those of earlier blocks."""

DEEPSTACK = (("visual_pos_masks", "deepstack_visual_embeds"),)
"""Arguments of language models that add features of the encoder's blocks to the states of visual tokens behind the first
layers: the mask of those tokens, and the features by layer."""

NO_ROPE = frozenset({"cohere2", "cohere2_moe", "exaone4", "exaone_moe"})
"""Layers that see every token have no rotary positions, where others see a window."""

REFUSED: dict[str, str] = {
    "diffusion_gemma": "it denoises blocks of text instead of writing on",
    "gemma3n": "its language model carries several states per token (AltUp)",
    "granite4_vision": "image features are added inside the language model only; its input holds none to choose by",
}
"""Model types that a sieve would run on, and get wrong."""
