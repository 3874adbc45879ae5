"""Drift: how far a plan moves the state from which a model answers, and the options of a method that move it least."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from tokensieve.core.method_registry import get_method
from tokensieve.core.plan import Plan, plan
from tokensieve.parts.budget import Budget
from tokensieve.sites.sieve import sieve


def drift(model: nn.Module, what: Plan, prompts: Iterable[Mapping[str, Any]]) -> float:
    """One minus the mean cosine between the last prompt token's last hidden state and that of the unreduced model.

    Args:
        prompts: model inputs, batch by batch.
    """
    return _drift(model, what, [(given, _last(model, given)) for given in prompts])


def tune(
    model: nn.Module,
    name: str,
    keep: Budget,
    prompts: Iterable[Mapping[str, Any]],
    options: Mapping[str, Sequence[Any]],
    trials: int = 20,
    seed: int = 0,
) -> tuple[Plan, float]:
    """The options of a method under which its plan drifts least on some prompts (VFlowOpt, arXiv 2508.05211).

    The defaults are tried first, then ``trials`` combinations drawn without repetition. The paper searches with Bayesian
    optimisation; over as few values a draw does as well.

    Args:
        options: values to try, by name of the option.

    Returns:
        the best plan, and its drift.
    """
    whole = [(given, _last(model, given)) for given in prompts]
    every = [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]
    drawn = random.Random(seed).sample(every, min(trials, len(every)))
    plans = [plan(get_method(name, **chosen), keep) for chosen in ({}, *drawn)]
    found = [(one, _drift(model, one, whole)) for one in plans]
    return min(found, key=lambda pair: pair[1])


def _drift(model: nn.Module, what: Plan, whole: list[tuple[Mapping[str, Any], Tensor]]) -> float:
    with sieve(model, what):
        alike = [cosine_similarity(_last(model, given), state, dim=-1) for given, state in whole]
    return 1 - float(torch.cat(alike).mean())


@torch.no_grad()
def _last(model: nn.Module, given: Mapping[str, Any]) -> Tensor:
    """``(B, D)``: the last hidden state of each row's last real token."""
    state = model(**given, output_hidden_states=True).hidden_states[-1].double()
    mask = given.get("attention_mask")
    if mask is None:
        return state[:, -1]
    last = torch.where(mask.bool(), torch.arange(mask.shape[1], device=mask.device), -1).amax(1)
    return state[torch.arange(len(state), device=state.device), last]
