"""tokensieve: spend fewer tokens, on current unmodified models."""

# The package first: imported later, it would take the place of the function `methods` below.
import tokensieve.methods  # noqa: F401
from tokensieve.bench.cost import cost
from tokensieve.core.options import Option, option
from tokensieve.focus import Focus
from tokensieve.method import Method, reduce
from tokensieve.needs import Need
from tokensieve.parts.budget import Keep
from tokensieve.plan import Plan, Stage, method
from tokensieve.reduction import Reduction
from tokensieve.registry import card, make, methods, register, systems
from tokensieve.signals import MissingSignal, Signals
from tokensieve.sites.evicted import held_bytes
from tokensieve.sites.sieve import Sieve, sieve
from tokensieve.sites.store import load_cache, prefill, save_cache

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
