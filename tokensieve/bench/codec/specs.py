"""Specs: tokenizers as they are typed."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokensieve.bench.codec.autoencoder import LATENT, grid, load
from tokensieve.codec import Quantizer, quantizer
from tokensieve.codec.registry import QUANTIZERS
from tokensieve.codec.tokenizer import ADAPTERS, Tokenizer
from tokensieve.core.errors import near

MAIN = {
    "vq": "codes", "set": "codes", "gsq": "codes", "product": "codes", "residual": "codes", "cascade": "codes", "tied": "codes",
    "joint": "codes", "depths": "codes", "scales": "codes", "channels": "codes", "fsq": "levels", "lfq": "bits", "bsq": "bits",
    "quantile": "bins",
}  # fmt: skip
"""The option that the numbers behind a quantizer's name are."""


@dataclass(frozen=True)
class Spec:
    """A tokenizer to be measured.

    Attributes:
        name: as it was typed.
        quantizer: from the number of tokens and the signal's shape; None for a tokenizer that stands by itself.
        tokenizer: one that stands by itself, at its own rate.
    """

    name: str
    quantizer: Callable[[int, tuple[int, int, int]], Quantizer] | None = None
    tokenizer: Callable[[], Tokenizer] | None = None


def parse(text: str) -> Spec:
    """A spec: a quantizer (``vq:16384``, ``fsq:8,5,5,5``, ``gsq:64,groups=2``), a folder that ``--save`` wrote,
    ``diffusers:PATH``, ``transformers:PATH``, or ``module:function`` of your own.

    Raises:
        ValueError: it is none of these; it says what is near.
    """
    head, _, rest = text.partition(":")
    if head in QUANTIZERS:
        options = _options(head, rest, text)
        return Spec(text, quantizer=lambda tokens, shape: quantizer(head, **_fitted(head, options, tokens, shape)))
    if head in ADAPTERS and rest:
        return Spec(text, tokenizer=lambda: ADAPTERS.get(head)(rest))
    if Path(text).is_dir():
        return Spec(text, tokenizer=lambda: load(Path(text)))
    if rest and head.replace(".", "").isidentifier():
        return Spec(text, tokenizer=lambda: _own(head, rest, text))
    raise ValueError(
        f"--tokenizer {text!r} is no quantizer (did you mean {near(head, QUANTIZERS)}?), no folder that --save wrote, no "
        f"{' or '.join(f'{a}:PATH' for a in ADAPTERS.names())}, and no module:function"
    )


def _options(name: str, rest: str, text: str) -> dict[str, Any]:
    bare, options = [], {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        try:
            if equals:
                options[key.strip()] = _value(value)
            else:
                bare.append(int(part))
        except ValueError as problem:
            raise ValueError(
                f"--tokenizer {text!r}: {part!r} is neither a whole number nor option=value; for example vq:16384, "
                "fsq:8,5,5,5, gsq:64,groups=2, joint:512,dims=8/8"
            ) from problem
    if bare:
        if name not in MAIN or (len(bare) > 1 and name != "fsq"):
            raise ValueError(f"--tokenizer {text!r}: {name} takes one number; give the others as option=value")
        options[MAIN[name]] = tuple(bare) if name == "fsq" else bare[0]
    _fitted_check(name, options, text)
    return options


def _fitted_check(name: str, options: dict[str, Any], text: str) -> None:
    """Make one at once, so that a wrong option is told before anything is measured."""
    try:
        quantizer(name, **_fitted(name, options, 16, (3, 16, 16)))
    except ValueError as problem:
        raise ValueError(f"--tokenizer {text!r}: {problem}") from problem


def _value(text: str) -> Any:
    if "/" in text:
        return tuple(_value(part) for part in text.split("/"))
    if text in ("True", "False"):
        return text == "True"
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _fitted(name: str, options: dict[str, Any], tokens: int, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Options with those that the autoencoder decides: its latent's dimensions, its places."""
    out, known = dict(options), inspect.signature(QUANTIZERS.get(name)).parameters
    own = name in ("fsq", "lfq", "bsq")
    if "dims" in known and name != "product":
        out.setdefault("dims", (LATENT // 2, LATENT // 2))
    elif "dim" in known and not own:
        out.setdefault("dim", LATENT)
    if name == "product":
        out.setdefault("groups", 2)
    if name == "residual":
        out.setdefault("stages", 2)
    if "places" in known:
        out.setdefault("places", tokens)
    if "sides" in known and "sides" not in out:
        rows, columns = grid(shape, tokens)
        if rows != columns:
            raise ValueError(
                f"{name} takes square grids; tokens={tokens} of {shape[1]} x {shape[2]} values are {rows} x {columns}"
            )
        out["sides"] = tuple(sorted({1, *(2**i for i in range(1, int(math.log2(rows)) + 1)), rows}))
    return out


def _own(module: str, name: str, text: str) -> Tokenizer:
    sys.path.insert(0, "")
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as problem:
        raise ValueError(f"--tokenizer {text!r}: {problem}") from problem
    finally:
        sys.path.remove("")
    out = made() if (callable(made) and not isinstance(made, Tokenizer)) or inspect.isclass(made) else made
    if not isinstance(out, Tokenizer):
        raise ValueError(f"--tokenizer {text!r} gives {type(out).__name__}, which lacks encode or decode")
    return out
