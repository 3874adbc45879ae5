"""tokensieve: spend fewer tokens, on current unmodified models.

A name is imported when it is first used, so that ``import tokensieve`` loads neither torch nor transformers. Subpackages are
attributes: ``tokensieve.retrieval``.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from tokensieve import _moved

if TYPE_CHECKING:
    from tokensieve.codec.registry import list_quantizers, quantizer, register_quantizer
    from tokensieve.core.budget import Keep
    from tokensieve.core.focus import Focus
    from tokensieve.core.method import CacheMethod, FocusMethod, Method
    from tokensieve.core.method_registry import get_method, list_methods, method_card, register_method
    from tokensieve.core.needs import Need
    from tokensieve.core.options import Option, option
    from tokensieve.core.plan import Plan, plan, register_plan
    from tokensieve.core.reduce import reduce
    from tokensieve.core.reduction import Reduction
    from tokensieve.core.signals import MissingSignal, Signals, register_signal
    from tokensieve.core.stage import Stage, stage
    from tokensieve.planner.advise import advise
    from tokensieve.planner.cost import cost
    from tokensieve.prompt.compress import Compressor, compress
    from tokensieve.retrieval.client import Client
    from tokensieve.retrieval.encoders.loading import load_encoder
    from tokensieve.retrieval.index.index import Index
    from tokensieve.retrieval.index.library import Library
    from tokensieve.retrieval.index.recipe import Recipe
    from tokensieve.retrieval.scoring.maxsim import maxsim
    from tokensieve.retrieval.storage import list_formats, register_format
    from tokensieve.sites.cache.evicted_layer import cache_bytes
    from tokensieve.sites.cache.prefix import load_cache, prefill, save_cache
    from tokensieve.sites.cache.reading import fit_probes, reading
    from tokensieve.sites.diffusion.tracing import trace
    from tokensieve.sites.loading import load_model
    from tokensieve.sites.sieve import Sieve, attached, sieve
    from tokensieve.text.decoding import byte_model, mix_bytes

__version__ = "0.2.0"

_NAMES = {
    "codec.registry": ("list_quantizers", "quantizer", "register_quantizer"),
    "planner.cost": ("cost",),
    "core.budget": ("Keep",),
    "core.focus": ("Focus",),
    "core.method": ("CacheMethod", "FocusMethod", "Method"),
    "core.method_registry": ("get_method", "list_methods", "method_card", "register_method"),
    "core.needs": ("Need",),
    "core.options": ("Option", "option"),
    "core.plan": ("Plan", "plan", "register_plan"),
    "core.reduce": ("reduce",),
    "core.reduction": ("Reduction",),
    "core.signals": ("MissingSignal", "Signals", "register_signal"),
    "core.stage": ("Stage", "stage"),
    "planner.advise": ("advise",),
    "prompt.compress": ("Compressor", "compress"),
    "retrieval.client": ("Client",),
    "retrieval.encoders.loading": ("load_encoder",),
    "retrieval.index.index": ("Index",),
    "retrieval.index.library": ("Library",),
    "retrieval.index.recipe": ("Recipe",),
    "retrieval.scoring.maxsim": ("maxsim",),
    "retrieval.storage": ("list_formats", "register_format"),
    "sites.cache.evicted_layer": ("cache_bytes",),
    "sites.cache.prefix": ("load_cache", "prefill", "save_cache"),
    "sites.cache.reading": ("fit_probes", "reading"),
    "sites.diffusion.tracing": ("trace",),
    "sites.loading": ("load_model",),
    "sites.sieve": ("Sieve", "attached", "sieve"),
    "text.decoding": ("byte_model", "mix_bytes"),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}
_ROOMS = (
    "bench",
    "catalog",
    "codec",
    "core",
    "integrations",
    "methods",
    "parts",
    "planner",
    "prompt",
    "retrieval",
    "sites",
    "testbed",
    "testing",
    "text",
)
_OLD = {
    "card": "method_card",
    "held_bytes": "cache_bytes",
    "make": "get_method",
    "method": "stage",
    "register": "register_method",
}

__all__ = [
    "CacheMethod",
    "Client",
    "Compressor",
    "Focus",
    "FocusMethod",
    "Index",
    "Keep",
    "Library",
    "Method",
    "MissingSignal",
    "Need",
    "Option",
    "Plan",
    "Recipe",
    "Reduction",
    "Sieve",
    "Signals",
    "Stage",
    "__version__",
    "advise",
    "attached",
    "byte_model",
    "cache_bytes",
    "compress",
    "cost",
    "fit_probes",
    "get_method",
    "list_formats",
    "list_methods",
    "list_quantizers",
    "load_cache",
    "load_encoder",
    "load_model",
    "maxsim",
    "method_card",
    "mix_bytes",
    "option",
    "plan",
    "prefill",
    "quantizer",
    "reading",
    "reduce",
    "register_format",
    "register_method",
    "register_plan",
    "register_quantizer",
    "register_signal",
    "save_cache",
    "sieve",
    "stage",
    "trace",
]

_moved.alias()


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"tokensieve.{name}")
    if name in _OLD:
        _moved.warn(f"tokensieve.{name}", f"tokensieve.{_OLD[name]}")
        return __getattr__(_OLD[name])
    if name == "systems":
        _moved.warn("tokensieve.systems", "tokensieve.catalog.systems")
        return __getattr__("catalog").systems
    if name in _HOMES:
        found = getattr(importlib.import_module(f"tokensieve.{_HOMES[name]}"), name)
        if name == "plan":
            # The module of this name was an attribute, and the function one of the module.
            found.plan = _moved.called(found, "tokensieve.plan.plan", "tokensieve.plan")
        globals()[name] = found
        return found
    former = sys.modules.get(f"tokensieve.{name}")
    if isinstance(former, _moved.Moved):
        return former
    raise AttributeError(f"module 'tokensieve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS})
