"""Checks of what is done to a run of the packaged denoiser, by the pictures that it draws, without guidance."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tokensieve as ts
from benchmarks.reference import negtome_362
from benchmarks.systems.bed import CheckContext, Outcome, check
from tokensieve.bench.codec.distortion import kernel_distance
from tokensieve.testbed.diffusion import pipeline, shapes

EACH = 20
"""Pictures of a class, in one batch each: 240 an arm."""
STEPS = 20
ROUNDS = 2000


@cache
def _bed() -> tuple[Any, Any]:
    return pipeline.load(), pipeline.judge()


@torch.no_grad()
def drawn(around: Any = nullcontext, each: int = EACH) -> tuple[Tensor, Tensor]:
    """Pictures ``(n, 3, 32, 32)`` in [-1, 1], class by class, each from the same noise in every arm, and their classes."""
    pipe, _ = _bed()
    images, labels = [], []
    for label in range(len(shapes.CLASSES)):
        g = torch.Generator().manual_seed(label)
        with around():
            made = pipe([label] * each, num_inference_steps=STEPS, generator=g, output_type="pt").images
        images.append(2 * made - 1)
        labels += [label] * each
    return torch.cat(images), torch.tensor(labels)


@cache
def plain() -> tuple[Tensor, Tensor]:
    """The full run that all checks share."""
    return drawn()


@torch.no_grad()
def flops(around: Any) -> int:
    """Operations of a run that draws one picture."""
    pipe, _ = _bed()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), around():
        pipe([0], num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0), output_type="pt")
    return int(counter.get_total_flops())


def interval(values: Tensor) -> tuple[float, float, float]:
    """The mean of values ``(n,)`` and its 95% bootstrap interval."""
    draw = torch.randint(len(values), (ROUNDS, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = values.double()[draw].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(values.mean()), low, high


def said(numbers: tuple[float, float, float], digits: int = 4) -> str:
    mean, low, high = numbers
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


@check(308)
@torch.no_grad()
def cat_pruning(bed: CheckContext) -> Outcome:
    """240 pictures of the packaged denoiser in 20 steps, without guidance; from progress 0.3 on half of the tokens leave in front
    of the first block and come back with what they had: the mean squared error to the full run from the same noise is below that
    of tokens chosen at random in the same way, the interval of the difference by picture excluding 0, at operations within 2% of
    each other."""
    _, judge = _bed()
    full, labels = plain()
    how = {"keep": 0.5, "site": "diffusion", "form": "stream", "cached": True, "layers": 0, "steps": (0.3, 1.0)}
    whole, error, count = flops(nullcontext), {}, {}
    numbers: dict[str, Any] = {"pictures": len(full), "right, full run": round(_right(full, labels), 4)}
    for name in ("cat-pruning", "random"):

        def around(name: str = name) -> Any:
            return ts.sieve(_bed()[0], name, **how)

        images, _ = drawn(around)
        count[name] = flops(around) / whole
        error[name] = (images - full).square().flatten(1).mean(1)
        numbers[f"error, {name}"] = said(interval(error[name]))
        agree = judge(images).argmax(1) == judge(full).argmax(1)
        numbers[f"class agreement, {name}"] = round(float(agree.float().mean()), 4)
        numbers[f"kernel distance, {name}"] = said(kernel_distance(judge.features(full), judge.features(images)), 2)
        numbers[f"operations of the full run, {name}"] = round(count[name], 3)
    gap = interval(error["random"] - error["cat-pruning"])
    numbers["random - cat-pruning"] = said(gap)
    return gap[1] > 0 and abs(count["cat-pruning"] / count["random"] - 1) <= 0.02, numbers


@check(362)
@torch.no_grad()
def negtome(bed: CheckContext) -> Outcome:
    """240 pictures of the packaged denoiser in 20 steps, without guidance, 20 of a class in a batch whose first picture is the
    reference, alpha 0.9 and threshold 0.65 in the first tenth of the steps: the mean distance of pictures of a class is above
    that of plain sampling from the same noise, the interval over classes excluding 0, and the classifier recognises less than
    two points fewer."""
    _, judge = _bed()
    full, labels = plain()
    pushed, _ = drawn(lambda: negtome_362.pushed(_bed()[0]))
    gaps = {}
    numbers: dict[str, Any] = {"pictures": len(full)}
    for what, of in (("pixels", lambda x: x.flatten(1)), ("features", judge.features)):
        far = [torch.stack([torch.pdist(of(x)).mean() for x in images.split(EACH)]) for images in (full, pushed)]
        gaps[what] = interval(far[1] - far[0])
        numbers[f"distance, {what}, plain"] = round(float(far[0].mean()), 4)
        numbers[f"pushed - plain, {what}"] = said(gaps[what])
    right = _right(full, labels), _right(pushed, labels)
    numbers |= {"right, plain": round(right[0], 4), "right, pushed": round(right[1], 4)}
    return gaps["pixels"][1] > 0 and right[0] - right[1] < 0.02, numbers


def _right(images: Tensor, labels: Tensor) -> float:
    return float((_bed()[1](images).argmax(1) == labels).float().mean())
