"""Compiled: code that torch.compile made of a model does not see hooks that come, or go, later."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch._dynamo.eval_frame import _debug_get_cache_entry_list


def visibly(model: nn.Module) -> bool:
    """Whether a module's own forward was compiled in its place; one that torch.compile was told to leave alone, as a sieve's
    are around modules of a denoiser, was not."""
    return any(
        getattr(m, "_compiled_call_impl", None) is not None or _compiled(m.__dict__.get("forward"))
        for m in model.modules()
    )


def _compiled(forward: Any) -> bool:
    return hasattr(forward, "_torchdynamo_orig_callable") and not getattr(forward, "_torchdynamo_disable", False)


def renew(model: nn.Module) -> None:
    """Have what was compiled of a model's forward compiled anew, where hooks change; compiled wrappers may be held anywhere."""
    if any(_debug_get_cache_entry_list(code) for code in _codes(model)):
        torch.compiler.reset()


def _codes(model: nn.Module) -> Iterator[CodeType]:
    calls = (nn.Module._call_impl, nn.Module._wrapped_call_impl)
    for function in (*calls, *(kind.forward for kind in {type(m) for m in model.modules()})):
        while True:
            if inspect.isfunction(function):
                yield function.__code__
            if not hasattr(function, "__wrapped__"):
                break
            function = function.__wrapped__
