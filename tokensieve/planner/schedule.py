"""Schedules: how many visual tokens each layer of the language model needs, searched on a calibration set.

G-Search and P-Sigmoid: arXiv 2412.00556. Both rest on its finding that attention ranks tokens alike in all layers but the
first, so that the number of tokens that matter never rises with depth.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from tokensieve.core.method import Method
from tokensieve.core.method_registry import get_method
from tokensieve.core.plan import Plan
from tokensieve.core.stage import Stage
from tokensieve.extras import install
from tokensieve.parts.budget import check
from tokensieve.parts.budget import flops as cost
from tokensieve.planner.quality import Inputs, answered, prompts, quality
from tokensieve.sites.model.structure import find
from tokensieve.sites.sieve import sieve

SLOPES = (1.0, 64.0)


def gsearch(
    model: nn.Module,
    batches: Iterable[Inputs],
    floor: float = 0.99,
    method: str | Method = "fastv",
    first: int | None = None,
) -> Plan:
    """The least number of visual tokens for each layer with which the model keeps its accuracy, from shallow to deep.

    For each layer in turn, with the counts of those before it fixed, bisection finds the smallest count that, kept to the
    last layer, leaves ``floor`` times the unreduced accuracy. A count that has been accepted was measured, so the plan
    meets the floor on these batches. Costs about depth x log2(tokens) passes over them.

    Args:
        batches: calibration prompts (see :func:`tokensieve.planner.quality.answered`).
        floor: share of the unreduced accuracy that has to stay, in (0, 1].
        method: ranks the tokens.
        first: the first layer that may lose some, at least 1; the method's own by default.

    Deviation: the published search runs on a benchmark's own metric; here it is the accuracy of whole answers.
    """
    check(floor, "floor", whole=False, most=1.0)
    ranking, first = beginning(model, method, first)
    asked = answered(model, batches)
    least = floor * quality(model, asked).accuracy - 1e-9
    depth, now = _depth(model), _tokens(model, asked, ranking, first)
    counts = [now] * depth

    def holds(counts: Sequence[int]) -> bool:
        with sieve(model, scheduled(ranking, counts)):
            return quality(model, asked).accuracy >= least

    for layer in range(first, depth):
        low, high = 1, counts[layer]
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(counts[:layer] + [middle] * (depth - layer)) else (middle + 1, high)
        counts[layer:] = [high] * (depth - layer)
    return scheduled(ranking, counts)


def psigmoid(
    model: nn.Module,
    batches: Iterable[Inputs],
    flops: float,
    method: str | Method = "fastv",
    first: int | None = None,
    trials: int = 32,
    seed: int = 0,
) -> Plan:
    """The sigmoid over depth that answers best at given FLOPs, its parameters found by Bayesian optimisation.

    A layer at depth x keeps the share ``low + (1 - low) / (1 + exp(slope * (x - middle)))``. Searched are the slope and
    ``low``; ``middle`` then follows from the budget, so that every schedule tried costs the same. Schedules are judged by
    the likelihood of the answers, which a small calibration set resolves better than their accuracy.

    Args:
        batches: calibration prompts (see :func:`tokensieve.planner.quality.answered`).
        flops: share of the language model's full prefill FLOPs, in (0, 1].
        method: ranks the tokens.
        first: the first layer that may lose some, at least 1; the method's own by default.
        trials: schedules tried.

    Raises:
        ImportError: optuna is not installed.
        ValueError: the budget is out of reach from layer ``first`` on.

    Deviation: the published parameters are not tied to the budget; the form above is this project's.
    """
    try:
        import optuna
    except ImportError as e:
        raise ImportError(f"psigmoid searches with optuna; {install('search')}") from e
    check(flops, "flops", whole=False, most=1.0)
    ranking, first = beginning(model, method, first)
    asked = answered(model, batches)
    tokens, spent = _tokens(model, asked, ranking, first), _affordable(model, asked, first, flops)
    constant = _bisect(lambda c: spent(lambda x: c), flops)
    best: tuple[float, Plan] | None = None
    with _quiet("optuna"):
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.GPSampler(seed=seed))
        for _ in range(trials):
            trial = study.ask()
            slope = trial.suggest_float("slope", *SLOPES, log=True)
            low = trial.suggest_float("low", 0.0, 1.0) * constant
            share = sigmoid(slope, low, spent, flops)
            plan = scheduled(ranking, counted(share, tokens, _depth(model), first))
            with sieve(model, plan):
                value = quality(model, asked).likelihood
            study.tell(trial, value)
            if best is None or value > best[0]:
                best = (value, plan)
    assert best is not None
    return best[1]


def linear(
    model: nn.Module,
    batches: Iterable[Inputs],
    flops: float,
    method: str | Method = "fastv",
    first: int | None = None,
) -> Plan:
    """The schedule to beat: the share kept falls by the same step from layer to layer, as steeply as ``flops`` asks for.

    Arguments and errors are those of :func:`psigmoid`.
    """
    check(flops, "flops", whole=False, most=1.0)
    ranking, first = beginning(model, method, first)
    asked = answered(model, batches)
    spent, depth = _affordable(model, asked, first, flops), _depth(model)

    def falling(slope: float) -> Share:
        return lambda x: max(0.0, 1 - slope * x)

    slope = -_bisect(lambda s: spent(falling(-s)), flops, -float(depth), 0.0)
    return scheduled(ranking, counted(falling(slope), _tokens(model, asked, ranking, first), depth, first))


Share = Callable[[float], float]
"""From depth in [0, 1] to the share of tokens kept there."""


def sigmoid(slope: float, low: float, spent: Callable[[Share], float], flops: float) -> Share:
    """The sigmoid of this slope and lower end that spends ``flops``."""

    def at(middle: float) -> Share:
        return lambda x: low + (1 - low) / (1 + math.exp(min(slope * (x - middle), 700.0)))

    # Beyond these ends the exponential is 1e-6 or less of its other terms, at any slope.
    middle = _bisect(lambda m: spent(at(m)), flops, -14.0 / slope, 1 + 14.0 / slope)
    return at(middle)


def counted(share: Share, tokens: int, depth: int, first: int) -> list[int]:
    """Tokens per layer: all in front of layer ``first``, then their share, at least 1."""
    return [tokens if i < first else max(1, round(share(i / depth) * tokens)) for i in range(depth)]


def scheduled(method: Method, counts: Sequence[int]) -> Plan:
    """A stage in front of every layer that keeps fewer tokens than the one before it."""
    falls = [i for i in range(1, len(counts)) if counts[i] < counts[i - 1]]
    return Plan([Stage(method, counts[i], site="prefill", layers=(i,)) for i in falls])


def beginning(model: nn.Module, method: str | Method, first: int | None) -> tuple[Method, int]:
    """The method, and the first layer in front of which it may take tokens away.

    Raises:
        ValueError: there is no such layer.
    """
    made = get_method(method) if isinstance(method, str) else method
    depth, layer = _depth(model), made.layer if first is None else first
    if not 1 <= layer < depth:
        raise ValueError(f"first={layer}; {type(model).__name__} can lose tokens in front of layers 1 to {depth - 1}")
    return made, layer


def _bisect(rising: Callable[[float], float], value: float, low: float = 0.0, high: float = 1.0) -> float:
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) <= value else (low, middle)
    return low


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """A library's log with nothing below warnings, for as long as it lasts."""
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        log.setLevel(before)


def _affordable(model: nn.Module, asked: Sequence[Inputs], first: int, flops: float) -> Callable[[Share], float]:
    """:func:`_spending`, of a budget that can be met.

    Raises:
        ValueError: it cannot.
    """
    spent = _spending(model, asked, first)
    if spent(lambda x: 0.0) > flops:
        least = spent(lambda x: 0.0)
        raise ValueError(f"flops={flops:g} cannot be met from layer {first} on; the least is {least:.3f}")
    return spent


def _spending(model: nn.Module, asked: Sequence[Inputs], first: int) -> Callable[[Share], float]:
    """What a schedule costs for the mean prompt, as a share of the prefill with all tokens."""
    anatomy = find(model)
    assert anatomy.language is not None
    config, depth = anatomy.language.config, len(anatomy.language.layers)
    visual = [(b["input_ids"] == anatomy.image_token_id).sum(1).float() for b in asked]
    real = [b.get("attention_mask", torch.ones_like(b["input_ids"])).sum(1).float() for b in asked]
    seen, whole = float(torch.cat(visual).mean()), float(torch.cat(real).mean())
    full = depth * cost.of_layer(config, whole)

    def spent(share: Share) -> float:
        kept = [1.0 if i < first else share(i / depth) for i in range(depth)]
        return sum(cost.of_layer(config, whole - seen + seen * k) for k in kept) / full

    return spent


def _depth(model: nn.Module) -> int:
    language = find(model).language
    if language is None:
        raise ValueError(f"{type(model).__name__} has no language model; schedules are for vision-language models")
    return len(language.layers)


def _tokens(model: nn.Module, asked: Sequence[Inputs], method: Method, layer: int) -> int:
    """Visual tokens of the largest image."""
    most = 0
    with sieve(model, Stage(method, 1.0, site="prefill", layers=(layer,))) as s, torch.no_grad():
        for batch in asked:
            model(**prompts(batch))
            most = max(most, 0 if s.last is None else s.last.stages[0].reduction.n)
    if most == 0:
        raise ValueError("batches hold no visual token; pass the inputs of prompts with images")
    return most
