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

ENCODERS: dict[str, str] = {
    "deberta-v2": "it makes one table of relative positions for all rows, and rows lose different tokens",
    "flaubert": "its blocks are no modules of their own",
    "imagegpt": "its tokens see only those before them, by a mask that its blocks hold",
    "mlcd": "it makes one table of rotary positions for all rows, and rows lose different tokens",
    "mlcd_vision_model": "it makes one table of rotary positions for all rows, and rows lose different tokens",
    "mobilevit": "its blocks stand in stages between which tokens are joined on their grid (a pyramid), which needs them all",
    "sew-d": "it makes one table of relative positions for all rows, and rows lose different tokens",
    "speecht5": "it makes one table of relative positions for all rows, and rows lose different tokens",
    "squeezebert": "its blocks hold tokens in the last dimension, for convolutions",
    "vitdet": "its blocks hold states as maps, which needs all tokens",
    "xlm": "its blocks are no modules of their own",
}
"""Model types of encoders between whose blocks no token can leave."""

REFUSED: dict[str, str] = {
    "diffusion_gemma": "it denoises blocks of text instead of writing on",
    "gemma3n": "its language model carries several states per token (AltUp)",
    "granite4_vision": "image features are added inside the language model only; its input holds none to choose by",
}
"""Model types that a sieve would run on, and get wrong."""
