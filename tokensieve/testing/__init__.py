"""Testing: the contracts of what can be added, for authors outside this project too.

One line checks a method: ``tokensieve.testing.check_method(MyMethod)``. With pytest, :func:`parametrize_with_checks` makes a
case of every check. Signals, vector formats, sketches, stores, encoders, quantizers, methods of prompts, row initialisations,
and a bench's columns and blocks have a check of their own each.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokensieve.testing.draw import features, signals
from tokensieve.testing.memory import Largest, Live
from tokensieve.testing.running import check_method, method_checks, parametrize_with_checks
from tokensieve.testing.signal_rows import check_signal
from tokensieve.testing.trial import same, slots

if TYPE_CHECKING:
    from tokensieve.testing.bench import check_block, check_column
    from tokensieve.testing.encoders import check_encoder
    from tokensieve.testing.formats import check_format
    from tokensieve.testing.initialisations import check_initialisation
    from tokensieve.testing.prompts import check_prompt_method
    from tokensieve.testing.quantizers import check_quantizer
    from tokensieve.testing.sketches import check_sketch
    from tokensieve.testing.stores import check_store

__all__ = [
    "Largest",
    "Live",
    "check_block",
    "check_column",
    "check_encoder",
    "check_format",
    "check_initialisation",
    "check_method",
    "check_prompt_method",
    "check_quantizer",
    "check_signal",
    "check_sketch",
    "check_store",
    "features",
    "method_checks",
    "parametrize_with_checks",
    "same",
    "signals",
    "slots",
]

# What checks a part of search or of the bench is imported when it is asked for: it takes longer than all else here.
_LATER = {
    "check_block": "bench",
    "check_column": "bench",
    "check_encoder": "encoders",
    "check_format": "formats",
    "check_initialisation": "initialisations",
    "check_prompt_method": "prompts",
    "check_quantizer": "quantizers",
    "check_sketch": "sketches",
    "check_store": "stores",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
