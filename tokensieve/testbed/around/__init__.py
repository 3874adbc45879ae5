"""A LLaVA around the real SmolLM2: tower, projector and small adapters are packaged, the language model is SmolLM2's own.

Where it came from and what it has in common with real models stands in its MODEL_CARD.md. `load` needs the extra `real`, for
SmolLM2's weights; `test_set` needs nothing.
"""

from .model import load, path, prompt
from .scenes import test_set

__all__ = ["load", "path", "prompt", "test_set"]
