"""Where modules stood before 0.2: their old paths work for one release, with a warning that names the new one."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

MOVED = {
    "bench.case": "bench.compat.check",
    "bench.crossing": "bench.compat.cross",
    "bench.models": "bench.compat.matrix",
    "bench.prompts": "bench.compat.prompts",
    "bench.tiny": "bench.compat.tiny_models",
    "focus": "core.focus",
    "method": "core.method",
    "methods.over": "methods.cache.score_wrappers",
    "modules": "retrieval.heads",
    "modules.colberter": "retrieval.heads.colberter",
    "modules.contrast": "retrieval.heads.contrast",
    "modules.crisp": "retrieval.heads.crisp",
    "modules.projection": "retrieval.heads.projection",
    "needs": "core.needs",
    "parts.anchor": "parts.attention.anchor",
    "parts.bits": "parts.numeric.bits",
    "parts.cluster": "parts.merge.cluster",
    "parts.coverage": "parts.select.coverage",
    "parts.crops": "parts.score.crops",
    "parts.curve": "parts.budget.adaptive_count",
    "parts.distance": "parts.select.distance",
    "parts.dpp": "parts.select.dpp",
    "parts.flops": "parts.budget.flops",
    "parts.graph": "parts.score.graph",
    "parts.groups": "parts.select.groups",
    "parts.layers": "parts.budget.across_layers",
    "parts.likeness": "parts.numeric.similarity",
    "parts.match": "parts.merge.match",
    "parts.medoids": "parts.select.medoids",
    "parts.pages": "parts.attention.pages",
    "parts.place": "parts.numeric.position_ids",
    "parts.rows": "parts.attention.rows",
    "parts.segments": "parts.select.segments",
    "parts.temporal": "parts.score.temporal",
    "parts.transform": "parts.merge.transform",
    "plan": "core.plan",
    "reduction": "core.reduction",
    "registry": "core.method_registry",
    "retrieval.encode": "retrieval.encoders.encoded",
    "retrieval.encode_head": "retrieval.encoders.head",
    "retrieval.encode_pages": "retrieval.encoders.pages",
    "retrieval.encode_text": "retrieval.encoders.text",
    "retrieval.evaluate": "retrieval.evaluation.evaluate",
    "retrieval.fde": "retrieval.scoring.fde",
    "retrieval.folder": "retrieval.sources.folder",
    "retrieval.library": "retrieval.index.library",
    "retrieval.measure": "retrieval.evaluation.measure",
    "retrieval.mirror": "retrieval.index.sync",
    "retrieval.passages": "retrieval.sources.passages",
    "retrieval.ragged": "retrieval.scoring.ragged",
    "retrieval.recipe": "retrieval.index.recipe",
    "retrieval.reduce": "retrieval.encoders.reduce",
    "retrieval.search": "retrieval.index.search",
    "retrieval.sketch": "retrieval.scoring.sketch",
    "retrieval.store": "retrieval.stores.protocol",
    "search": "planner",
    "search.drift": "planner.drift",
    "search.heads": "planner.heads",
    "search.quality": "planner.quality",
    "search.schedule": "planner.schedule",
    "search.stages": "planner.stages",
    "signals": "core.signals",
    "sites.anatomy": "sites.model.structure",
    "sites.store": "sites.cache.prefix",
    "sites.taps": "sites.model.taps",
}
"""Old path -> new path, both below the package."""

RENAMED = {
    "codec.Binary": "retrieval.storage.integer.Binary",
    "codec.CODECS": "retrieval.storage.FORMATS",
    "codec.Codec": "retrieval.storage.VectorFormat",
    "codec.Fields": "retrieval.storage.Fields",
    "codec.Float16": "retrieval.storage.dense.Float16",
    "codec.Float32": "retrieval.storage.dense.Float32",
    "codec.Int4": "retrieval.storage.integer.Int4",
    "codec.Int8": "retrieval.storage.integer.Int8",
    "codec.Residual": "retrieval.storage.residual.Residual",
    "codec.codec": "retrieval.storage.vector_format",
    "method.reduce": "core.reduce.reduce",
    "parts.budget.share": "parts.budget.fraction_of",
    "parts.score.share": "parts.score.normalized",
    "parts.select.held": "parts.select.group_sizes",
    "plan.POLICIES": "core.stage.POLICIES",
    "plan.method": "core.stage.stage",
    "registry.System": "catalog.table.System",
    "registry.card": "core.method_registry.method_card",
    "registry.entries": "catalog.table.entries",
    "registry.get": "core.method_registry.method_class",
    "registry.make": "core.method_registry.get_method",
    "registry.methods": "core.method_registry.list_methods",
    "registry.record": "catalog.table.record",
    "registry.register": "core.method_registry.register_method",
    "registry.systems": "catalog.table.systems",
    "retrieval.encode.load": "retrieval.encoders.loading.load_encoder",
}
"""What stands elsewhere than the rest of its module, or is also called otherwise."""

GONE = {
    "modules.block_transformer": "block_transformer_184",
    "modules.cats": "cats_148",
    "modules.dupmae": "dupmae_21",
    "modules.encoder": "text_encoder",
    "modules.inceptive": "inceptive_160",
    "modules.longcoder": "longcoder_178",
    "modules.longmamba": "longmamba_265",
    "modules.lotlip": "lotlip_338",
    "modules.mexma": "mexma_382",
    "modules.mta": "mta_348",
    "modules.nats": "nats_79",
    "modules.pod": "pod_291",
    "modules.poly": "poly_encoder_188",
    "modules.tiny": "decoder",
    "modules.tree": "tree_cross_attention_274",
    "parts.ring": "token_ring_149",
    "retrieval.docstrings": "docstrings",
    "retrieval.hits": "token_hits_132_135",
    "retrieval.sticky": "sticky_tokens_307",
    "sites.temperature": "tempscale_122",
}
"""Published systems that nobody called by name: they stand in the repository, beside the check that shows them."""


class Moved(ModuleType):
    """Stands at an old path and hands on what is asked of it, with a warning."""

    def __init__(self, old: str, new: str):
        super().__init__(f"tokensieve.{old}", f"Now tokensieve.{new}.")
        self.__dict__.update(_old=old, _new=new, __path__=[])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if (below := sys.modules.get(f"{self.__name__}.{name}")) is not None:
            return below
        return handed(f"{self._old}.{name}", RENAMED.get(f"{self._old}.{name}", f"{self._new}.{name}"))

    def __dir__(self) -> list[str]:
        return dir(importlib.import_module(f"tokensieve.{self._new}"))


class Gone(ModuleType):
    """Stands where something was that the package does not carry any more."""

    def __init__(self, old: str, file: str):
        super().__init__(f"tokensieve.{old}")
        self.__dict__["_file"] = file

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        raise ImportError(
            f"{self.__name__} is no part of the package any more: benchmarks/reference/{self._file}.py of the repository has it"
        )


def warn(old: str, new: str) -> None:
    """Say to who asked the caller that a name is called otherwise now."""
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)


def handed(old: str, new: str) -> Any:
    """What stands at a new path, with a warning to who asked for the old one."""
    module, _, name = new.rpartition(".")
    found = getattr(importlib.import_module(f"tokensieve.{module}"), name)
    warnings.warn(f"tokensieve.{old} is now tokensieve.{new}", DeprecationWarning, stacklevel=3)
    return found


def alias() -> None:
    """Put the old paths where ``import`` looks first; they are no attributes of their packages, whose names stay."""
    for old, new in MOVED.items():
        sys.modules.setdefault(f"tokensieve.{old}", Moved(old, new))
    for old, file in GONE.items():
        sys.modules.setdefault(f"tokensieve.{old}", Gone(old, file))


def below(package: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package: old paths of modules (``tokensieve.sites.anatomy``), old names of functions."""

    def find(name: str) -> Any:
        found = sys.modules.get(f"{package}.{name}")
        if isinstance(found, (Moved, Gone)):
            return found
        old = f"{package}.{name}".removeprefix("tokensieve.")
        if old in RENAMED:
            return handed(old, RENAMED[old])
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


def called(function: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    """The function under an old name."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
        return function(*args, **kwargs)

    return call
