"""Quantizers by name: one registry, one way to make them, to save them and to load them again."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file

from tokensieve.codec.quantizer import Quantizer
from tokensieve.core.errors import near
from tokensieve.core.files import write, write_json
from tokensieve.core.registry import Registry

FORMAT = "tokensieve.quantizer.1"
QUANTIZERS: Registry[type[Quantizer]] = Registry("quantizer", "tokensieve.codec.quantizers")
KINDS = ("VQ", "RVQ", "PQ", "AQ", "FSQ", "LFQ", "BSQ", "GART")
"""The eight kinds of the survey arXiv 2507.22920: nearest neighbour, residual, product, additive, finite scalar, lookup-free,
binary spherical, and by anchors and relations of a graph (of which there is none here)."""
Q = TypeVar("Q", bound=type[Quantizer])


def register_quantizer(name: str, kind: str, systems: tuple[int, ...] = ()) -> Callable[[Q], Q]:
    """Class decorator: give a quantizer its name.

    Args:
        kind: which of :data:`KINDS` it is.
        systems: published systems that it answers to, by their ids in the catalog.

    Raises:
        ValueError: an unknown kind, or the name is taken.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}; it must be one of {', '.join(KINDS)}")

    def add(cls: Q) -> Q:
        QUANTIZERS.register(name, kind=kind, systems=systems)(cls)
        return cls

    return add


def list_quantizers(pattern: str = "*", kind: str | None = None) -> list[str]:
    """The names of all quantizers that fit a pattern ("f*") and are of a kind ("VQ", "FSQ", ...), sorted."""
    return QUANTIZERS.names(pattern, kind=kind)


def quantizer(name: str, **options: Any) -> Quantizer:
    """A quantizer by name: ``quantizer("vq", codes=1024, dim=32)``, ``quantizer("fsq", levels=(8, 5, 5, 5))``.

    Raises:
        ValueError: no such name or option (it offers the nearest), an option that is missing, or one out of its range.
    """
    cls = QUANTIZERS.get(name)
    known = inspect.signature(cls).parameters
    nested = [p.name for p in known.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
    wrong = [o for o in options if o not in known and not nested]
    if wrong:
        raise ValueError(f"{name} has no option {wrong[0]!r}; did you mean {near(wrong[0], known)}?")
    missing = [
        p.name for p in known.values() if p.default is p.empty and p.kind is p.KEYWORD_ONLY and p.name not in options
    ]
    if missing:
        raise ValueError(f"{name} needs {', '.join(f'{m}=' for m in missing)}")
    try:
        made = cls(**options)
    except ValueError as problem:
        raise ValueError(f"{name}: {problem}") from problem
    made.config = {"name": name, **{k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}}
    return made


def save_quantizer(made: Quantizer, folder: str | Path) -> Path:
    """Write a quantizer made by :func:`quantizer` as a folder of ``quantizer.json`` and ``quantizer.safetensors``.

    Raises:
        ValueError: it was made otherwise, so that it could not be made again.
    """
    if not made.config:
        raise ValueError(
            f"{type(made).__name__} was not made by tokensieve.quantizer(name, ...): it cannot be made again"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().clone() for name, value in made.state_dict().items()}
    state.setdefault("_", torch.zeros(1))  # a file of no tensors is none
    write(folder / "quantizer.safetensors", lambda part: save_file(state, part))
    write_json(folder / "quantizer.json", {"format": FORMAT, **made.config})
    return folder


def load_quantizer(folder: str | Path) -> Quantizer:
    """A quantizer from a folder that :func:`save_quantizer` wrote, in evaluation mode.

    Raises:
        ValueError: the folder holds none, or one of another version.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "quantizer.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as problem:
        raise ValueError(f"{folder} holds no quantizer: {problem}") from problem
    if not isinstance(config, dict) or config.pop("format", None) != FORMAT:
        raise ValueError(f"{folder / 'quantizer.json'} is not of the format {FORMAT!r}")
    made = quantizer(config.pop("name"), **config)
    state = load_file(folder / "quantizer.safetensors")
    state.pop("_", None)
    made.load_state_dict(state)
    return made.eval()
