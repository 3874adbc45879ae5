"""Latents: text as a few embeddings in front of a frozen language model."""

from .module import TextLatents, TextToLatents
from .pages import PageStyle
from .presets import arc, c3, load, vist
from .rarity import enhancement, rare, rarity

__all__ = ["PageStyle", "TextLatents", "TextToLatents", "arc", "c3", "enhancement", "load", "rare", "rarity", "vist"]
