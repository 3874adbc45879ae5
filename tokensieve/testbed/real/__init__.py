"""Real pretrained models that come inside wheels of the package index, so that nothing needs a model hub."""

from .cards import CARDS, Card
from .store import CACHE, get, load

__all__ = ["CACHE", "CARDS", "Card", "get", "load"]
