"""Real pretrained models that come inside wheels of the package index, so that nothing needs a model hub."""

from .cards import CARDS, ModelCard
from .store import CACHE, get, load, there

__all__ = ["CACHE", "CARDS", "ModelCard", "get", "load", "there"]
