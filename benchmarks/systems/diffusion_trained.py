"""Checks of small diffusion transformers, trained on digits of 8 x 8 by steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from sklearn.neural_network import MLPClassifier
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reference import diffmoe_219, dit, flexdit_38, pt_dit_35
from benchmarks.systems.bed import CheckContext, Outcome, check
from benchmarks.systems.diffusion_drawn import interval, said
from tokensieve.bench.codec.distortion import kernel_distance

STEPS, SEEDS = 400, (0, 1)
DRAWN = 1000
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
MADE: dict[str, Callable[[], dit.DiT]] = {
    "dense": dit.DiT,
    "proxies": lambda: dit.DiT(mixers=pt_dit_35.Proxies),
    "windows": lambda: dit.DiT(mixers=pt_dit_35.Windows),
    "flexdit": flexdit_38.flexdit,
    "pooled experts": lambda: dit.DiT(feed=diffmoe_219.PooledExperts),
    "routed experts": lambda: dit.DiT(feed=diffmoe_219.RoutedExperts),
    **{f"side {side}": lambda side=side: flexdit_38.uniform(side) for side in (4, 5, 6, 7)},  # type: ignore[misc]
}


@cache
@torch.enable_grad()
def trained(name: str, seed: int) -> dit.DiT:
    torch.manual_seed(seed)
    return dit.fit(MADE[name](), STEPS, seed)


@cache
def losses(name: str) -> Tensor:
    """``(297,)`` of held-out digits, the mean over seeds."""
    return torch.stack([dit.held_out(trained(name, seed)) for seed in SEEDS]).mean(0)


@torch.no_grad()
def operations(name: str) -> tuple[int, int]:
    """Of a run of 20 steps that draws one digit: all, and those of attention's products."""
    model = MADE[name]().eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        dit.sample(model, torch.zeros(1, dtype=torch.long))
    found = counter.get_flop_counts()["Global"]
    return sum(found.values()), sum(n for op, n in found.items() if "bmm" in str(op))


@check(35)
def proxy_tokens(bed: CheckContext) -> Outcome:
    """Diffusion transformers on digits (64 tokens, width 48, 4 layers), 400 steps, two seeds, 297 held-out digits: with one proxy
    token for each window of 2 x 2 the products of attention are under half of full attention's, the loss is within 5% of full
    attention's and below that of windows alone, the interval of the difference by digit excluding 0. All operations are counted
    too: proxies have three more attentions' projections."""
    full, proxy, near = (operations(name) for name in ("dense", "proxies", "windows"))
    gap = interval(losses("windows") - losses("proxies"))
    loss = {name: float(losses(name).mean()) for name in ("dense", "proxies", "windows")}
    numbers: dict[str, Any] = {f"loss, {name}": round(value, 4) for name, value in loss.items()}
    numbers |= {
        "windows - proxies": said(gap), "attention's products": round(proxy[1] / full[1], 3),
        "all operations": round(proxy[0] / full[0], 3), "of windows": round(near[0] / full[0], 3),
    }  # fmt: skip
    return proxy[1] < full[1] / 2 and loss["proxies"] <= 1.05 * loss["dense"] and gap[1] > 0, numbers


@check(38)
@torch.no_grad()
def density(bed: CheckContext) -> Outcome:
    """Diffusion transformers on digits (64 tokens, width 48, 4 layers), 400 steps, seed 0, 1,000 samples an arm of 20 steps: a
    pooling bottom, a middle of 16 to 36 tokens, more the nearer the picture, and a dense top need at most 60% of the dense
    model's operations; the kernel distance of samples to digits is within 10% of the dense model's, or their intervals overlap;
    and it is below that of a model with equally few tokens everywhere and always, on the grid whose operations are nearest, the
    intervals apart. Density 1 is the dense model within 1e-5."""
    x, y, *_ = dit.data()
    real, labels = x[:DRAWN], y[:DRAWN]
    features = _features(x, y)
    dense, flex = operations("dense")[0], operations("flexdit")[0]
    side = min((4, 5, 6, 7), key=lambda s: abs(operations(f"side {s}")[0] - flex))
    numbers: dict[str, Any] = {"operations": round(flex / dense, 3), "evenly sparse": f"{side} x {side}"}
    numbers["its operations"] = round(operations(f"side {side}")[0] / dense, 3)
    far = {}
    for name in ("dense", "flexdit", f"side {side}"):
        made = dit.sample(trained(name, SEEDS[0]), labels)
        far[name] = kernel_distance(features(real), features(made))
        numbers[f"kernel distance, {name}"] = said(far[name], 2)
    model = trained("dense", SEEDS[0])
    args = (real[:32], torch.linspace(0, 1, 32), labels[:32])
    expected = model(*args)
    model.density = dit.Density(1, 3, lambda time: torch.full((len(time),), model.shape.side))
    apart = float((model(*args) - expected).abs().max())
    model.density = None
    numbers["density 1 within"] = f"{apart:.1e}"
    near = far["flexdit"][0] <= 1.1 * far["dense"][0] or far["flexdit"][1] <= far["dense"][2]
    below = far["flexdit"][2] < far[f"side {side}"][1]
    return flex <= 0.6 * dense and near and below and apart < 1e-5, numbers


@check(219)
@torch.no_grad()
def pooled_experts(bed: CheckContext) -> Outcome:
    """Diffusion transformers on digits (64 tokens, width 48, 4 layers, 4 experts), 400 steps, two seeds, 297 held-out digits:
    where experts choose from a batch's tokens, by a prediction of it on held-out digits, one expert a token on average (at most
    1.05), the loss is below that of one expert for each token, the interval of the difference by digit excluding 0; and the
    predicted number of experts differs by at least 10% between levels of noise."""
    gap = interval(losses("routed experts") - losses("pooled experts"))
    numbers: dict[str, Any] = {"loss, pooled": round(float(losses("pooled experts").mean()), 4)}
    numbers |= {"loss, routed": round(float(losses("routed experts").mean()), 4), "routed - pooled": said(gap)}
    *_, x, y = dit.data()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    used = []
    for level in LEVELS:
        of = []
        for model in (trained("pooled experts", seed) for seed in SEEDS):
            model((1 - level) * x + level * noise, torch.full((len(x),), level), y)
            of += [layer.feed.capacity.mean() for layer in model.layers]  # type: ignore[union-attr]
        used.append(float(torch.stack(of).mean()))
    numbers |= {f"experts a token, noise {level}": round(n, 3) for level, n in zip(LEVELS, used, strict=True)}
    numbers["experts a token"] = round(sum(used) / len(used), 3)
    return gap[1] > 0 and max(used) >= 1.1 * min(used) and sum(used) / len(used) <= 1.05, numbers


def _features(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """``(n, 64)`` of digits: the hidden layer of a small classifier of them."""
    judge = MLPClassifier((64,), max_iter=200, random_state=0).fit(x.flatten(1).numpy(), y.numpy())
    weight, bias = torch.tensor(judge.coefs_[0]), torch.tensor(judge.intercepts_[0])
    return lambda pixels: (pixels.flatten(1).to(weight) @ weight + bias).relu()
