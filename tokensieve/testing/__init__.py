"""Testing: the contract of methods, for authors outside this project too.

One line checks a method: ``tokensieve.testing.check_method(MyMethod)``. With pytest, :func:`parametrize_with_checks` makes a
case of every check.
"""

from tokensieve.testing.draw import features, signals
from tokensieve.testing.memory import Largest, Live
from tokensieve.testing.running import check_method, method_checks, parametrize_with_checks
from tokensieve.testing.trial import same, slots

__all__ = [
    "Largest",
    "Live",
    "check_method",
    "features",
    "method_checks",
    "parametrize_with_checks",
    "same",
    "signals",
    "slots",
]
