"""What a method outside this project may say in the words of before 0.2: taken up, with a warning, for one release."""

from __future__ import annotations

import warnings
from dataclasses import Field
from operator import attrgetter

HOOKS = {
    "safe": "always_keep",
    "worth": "key_scores",
    "protected": "min_kept",
    "roles": "layer_roles",
    "group": "query_block_size",
    "reading": "sparse_decode",
    "recalls": "restores_dropped",
}
"""Old name -> new name."""

VALUES = ("protected", "group", "reading", "recalls")
"""Those that are values: an option of the name was the hook as well."""

CACHE = (
    "unit", "shared", "sparse_decode", "visual", "query_block_size", "min_kept", "bits", "of_layer", "layer_roles", "key_scores",
)  # fmt: skip
"""What every method had before there were cache methods."""


def translate(cls: type) -> None:
    """Give a subclass of ``Method`` its hooks by the names of today."""
    for old, new in HOOKS.items():
        said = vars(cls).get(old)
        if said is None or new in vars(cls) or (isinstance(said, Field) and old not in VALUES):
            continue
        setattr(cls, new, property(attrgetter(old)) if isinstance(said, Field) else said)
        warnings.warn(f"{cls.__name__}.{old} is now called {new}", DeprecationWarning, stacklevel=3)
    if "stages" in vars(cls):
        warnings.warn(
            f"{cls.__name__}.stages is now a function of (method, keep), beside the class: "
            "@tokensieve.register_plan(name)",
            DeprecationWarning,
            stacklevel=3,
        )


def adopt(cls: type, cache_method: type) -> None:
    """Give a method that runs at the cache, and is no ``CacheMethod``, what is missing for it."""
    for name in CACHE:
        if not hasattr(cls, name):
            setattr(cls, name, vars(cache_method)[name])
    warnings.warn(
        f"{cls.__name__} runs at the cache: make it a subclass of tokensieve.CacheMethod",
        DeprecationWarning,
        stacklevel=3,
    )
