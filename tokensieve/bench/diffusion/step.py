"""Step: what one call of a denoiser costs with and without a sieve, and from how many tokens on it pays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode

from tokensieve.core.stage import Stage
from tokensieve.sites.diffusion import latents
from tokensieve.sites.sieve import sieve

ROUNDS = 7
SCALES = (0.5, 1, 2)
"""By how much sides are scaled to find from how many tokens on a sieve pays."""


@torch.no_grad()
def flops(model: nn.Module, given: Mapping[str, Any]) -> int:
    """Floating-point operations of one call, matrix products and attention alone; counted as torch runs them."""
    # Other kernels of attention are not counted on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(**given)
    return int(counter.get_total_flops())


@torch.no_grad()
def cost(model: nn.Module, given: Mapping[str, Any], stage: Stage, rounds: int = ROUNDS) -> dict[str, float]:
    """Ratios to the plain call, of calls in turns: ``time``, ``selection`` (its share of the plain time), ``floor`` (the same
    call on that many tokens, selection free) and ``flops``, selection among them; and ``tokens``, those of the
    module that has most."""
    plain: list[float] = []
    sieved: list[float] = []
    chosen: list[float] = []
    counted = flops(model, given)
    with sieve(model, stage) as s:
        fewer = flops(model, given)
        trace = s.last
    assert trace is not None
    for i in range(rounds + 1):  # the first warms up
        took = _seconds(lambda: model(**given))
        s = sieve(model, stage)
        s.timed = True
        with s:
            under = _seconds(lambda: model(**given))
        if i:
            plain.append(took)
            sieved.append(under)
            chosen.append(s.seconds)
    whole = median(plain)
    return {
        "time": median(a / b for a, b in zip(sieved, plain, strict=True)),
        "selection": median(chosen) / whole,
        "floor": median((a - c) / b for a, b, c in zip(sieved, plain, chosen, strict=True)),
        "flops": fewer / counted,
        "tokens": float(max(one.reduction.n for one in trace.stages)),
    }


@torch.no_grad()
def break_even(model: nn.Module, given: Mapping[str, Any], stage: Stage, rounds: int = 3) -> dict[int, float]:
    """By the number of tokens, the time of a call as a share of the plain one, where the model takes pictures of other sizes."""
    name = next((n for n in latents.NAMES if isinstance(given.get(n), Tensor) and given[n].dim() == 4), None)
    out: dict[int, float] = {}
    for scale in SCALES if name else ():
        assert name is not None
        x = given[name]
        size = [max(int(side * scale) // 8 * 8, 8) for side in x.shape[-2:]]
        try:
            found = cost(model, {**given, name: interpolate(x, size, mode="nearest")}, stage, rounds)
        except (RuntimeError, ValueError):  # one size alone, or a grid that the method does not take
            continue
        out[int(found["tokens"])] = found["time"]
    return out


def _seconds(call: Callable[[], Any]) -> float:
    began = perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter() - began
