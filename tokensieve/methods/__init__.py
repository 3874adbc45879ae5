"""Methods, one short file per idea, in folders by the site they are made for; the registry imports every module here."""

from __future__ import annotations

import sys
import warnings
from types import ModuleType


class _Callable(ModuleType):
    """The package, which is called as the function that stood in its place before 0.2."""

    def __call__(self, site: str | None = None, family: str | None = None) -> list[str]:
        from tokensieve.core.method_registry import list_methods

        warnings.warn("tokensieve.methods() is now tokensieve.list_methods()", DeprecationWarning, stacklevel=2)
        return list_methods(site=site, family=family)


sys.modules[__name__].__class__ = _Callable
