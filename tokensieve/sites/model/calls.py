"""Calls: a module's arguments by name, whether they were passed by name or by place."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

Detach = Callable[[], None]
"""Takes a hook away again."""

PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def names_of(module: nn.Module) -> tuple[str, ...]:
    """The names of the arguments that a module's forward takes by place, in order."""
    return tuple(n for n, p in inspect.signature(module.forward).parameters.items() if p.kind in PLACED)


def before(module: nn.Module, hook: Callable[..., Any], prepend: bool = False) -> Detach:
    """Have a module call ``hook(module, (), kwargs)`` in front of its forward, every argument by name; returns the function that
    takes the hook away again. What the hook returns, ``(args, kwargs)`` or None, is as for `register_forward_pre_hook`."""
    names = names_of(module)

    def named(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return hook(module, (), {**dict(zip(names, args, strict=False)), **kwargs} if args else kwargs)

    return module.register_forward_pre_hook(named, with_kwargs=True, prepend=prepend).remove


def around(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[], None]:
    """Have an object's method ``name`` be what ``wrap`` makes of it; returns the function that puts back what was there, be it
    the class's or one that somebody has set on the object."""
    plain, own = getattr(owner, name), owner.__dict__.get(name)
    owner.__dict__[name] = functools.wraps(plain)(wrap(plain))

    def undo() -> None:
        if own is None:
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = own

    return undo
