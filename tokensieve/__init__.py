"""tokensieve: spend fewer tokens, on current unmodified models."""

# The package first: imported later, it would take the place of the function `methods` below.
import tokensieve.methods  # noqa: F401
from tokensieve.bench.cost import cost
from tokensieve.core.focus import Focus
from tokensieve.core.method import Method, reduce
from tokensieve.core.method_registry import card, make, methods, register, systems
from tokensieve.core.needs import Need
from tokensieve.core.options import Option, option
from tokensieve.core.plan import Plan, Stage, method
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import MissingSignal, Signals
from tokensieve.parts.budget import Keep
from tokensieve.sites.cache.evicted_layer import held_bytes
from tokensieve.sites.cache.prefix import load_cache, prefill, save_cache
from tokensieve.sites.sieve import Sieve, sieve

__version__ = "0.1.0"

__all__ = [
    "Focus",
    "Keep",
    "Method",
    "MissingSignal",
    "Need",
    "Option",
    "Plan",
    "Reduction",
    "Sieve",
    "Signals",
    "Stage",
    "__version__",
    "card",
    "cost",
    "held_bytes",
    "load_cache",
    "make",
    "method",
    "methods",
    "option",
    "prefill",
    "reduce",
    "register",
    "save_cache",
    "sieve",
    "systems",
]
