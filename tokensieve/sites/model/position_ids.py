"""Rotary tables of a language model for other position ids, and the rotation of queries by them."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.sites.model.quirks import NO_ROPE


def tables_of(language: nn.Module) -> Any:
    """The module that makes a language model's rotary tables; None where it has none."""
    return getattr(language, "rotary_emb", getattr(language, "pos_emb", None))


def rotary(language: nn.Module, hidden: Tensor, ids: Tensor, kind: str | None = None) -> Any:
    """Rotary tables for other ids.

    Args:
        kind: of the layer, where there is a table for each kind of layer.

    Raises:
        ValueError: the language model has none, or several and no kind is given.
    """
    tables = tables_of(language)
    if tables is None:
        raise ValueError(f"{type(language).__name__} has no rotary positions; use positions='original'")
    several = "layer_type" in inspect.signature(tables.forward).parameters
    try:
        own = {"layer_type": kind} if several and kind is not None else {}
        return tables(hidden, position_ids=ids[-3:] if ids.dim() == 3 else ids, **own)
    except (KeyError, TypeError, AttributeError) as error:  # one table per kind of layer
        raise ValueError(f"{type(language).__name__} has several rotary tables; use positions='original'") from error


def lower(language: nn.Module, kwargs: dict[str, Any], ids: Tensor, shift: Tensor, hidden: Tensor) -> None:
    """Tokens after a compacted prompt go on from its new end.

    Args:
        kwargs: a layer's arguments, changed in place; ids: ``(..., B, l)``, as the language model was given them.
        shift: ``(..., B)``, by how much they are lowered.
    """
    new = ids.expand(*shift.shape, ids.shape[-1]) - shift[..., None]
    given = kwargs.get("position_ids")
    if given is not None:
        kwargs["position_ids"] = new[0] if new.dim() > given.dim() else new
    kwargs["position_embeddings"] = rotary(language, hidden, new)


def uses_rope(attention: nn.Module, tables: Any) -> bool:
    """Whether a layer turns its queries by the rotary tables of its pass; positions may be told elsewhere, or not at all."""
    config: Any = attention.config
    narrow = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if not getattr(attention, "use_rope", True) or (config.model_type in NO_ROPE and narrow):
        return False
    own = inspect.unwrap(type(attention).forward)
    if not any("rotary" in name for name in own.__code__.co_names):
        return False
    return tables is not None or "position_embeddings" not in inspect.signature(own).parameters


def apply_rope(attention: nn.Module, x: Tensor, tables: Any, back: bool = False) -> Tensor:
    """Vectors ``(B, H, t, d)`` turned by rotary tables ``(B or 1, t or 1, d)``, as a layer that :func:`turns` does queries.

    Args:
        back: undo it.

    Raises:
        ValueError: the model's rotation is not known.
    """
    turn = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    latent = hasattr(attention, "qk_rope_head_dim")
    if turn is None or not isinstance(tables, tuple) or tables[0].dim() != 3 or latent:
        raise ValueError(
            f"{type(attention).__name__} turns queries in a way that is not known; take a method that reads attention, such as "
            "'snapkv'"
        )
    cos, sin = (t.float() for t in tables)
    if back:
        size = (cos.square() + sin.square()).mean()
        cos, sin = cos / size, -sin / size
    part = getattr(attention, "rotary_ndims", x.shape[-1])
    x, rest = x[..., :part], x[..., part:]
    alone = list(inspect.signature(turn).parameters)[1] == "cos"
    out = turn(x, cos, sin) if alone else turn(x, x[:, :1], cos, sin)[0]
    return torch.cat([out, rest], -1) if rest.shape[-1] else out
