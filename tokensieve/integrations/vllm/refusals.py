"""What vLLM cannot run of a plan, each with the reason; nothing here needs vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tokensieve.core import budget
from tokensieve.core.method import Method
from tokensieve.core.method_registry import get_method, list_methods
from tokensieve.core.needs import Need
from tokensieve.core.plan import Plan
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.sites.encoder.watch import ENCODER_SIGNALS

OF_TEXT = ("text", "paired")
"""What a sieve knows of a prompt's text in front of the language model."""
GIVEN = ("features", "entropy", "crop", "frame", "spot")
"""What the worker can always tell, or a method goes without."""
TABLES = (
    "all layers of a KV-cache group share one block table and one length of the request, so that no layer can hold fewer tokens "
    "than another"
)
SITES = {
    "patch": "vLLM runs its own encoder, whole, and fixes the number of its tokens before",
    "encoder": "vLLM runs its own encoder, whole, and fixes the number of its tokens before",
    "prefill": f"stages inside the language model: {TABLES}",
    "focus": "vLLM's attention kernels take no mask of their own for a layer",
    "cross": "tokens that a model attends to by cross-attention do not stand in the prompt",
    "cache": f"stages at the cache: {TABLES}",
    "vectors": "it is for stored vectors",
    "prompt": "it takes text away before a prompt is sent; use tokensieve.compress",
}
WAY_OUT = "`tokensieve advise MODEL ... --runtime vllm` gives a plan that can be served"


class Unserved(ValueError):
    """A plan that vLLM cannot run."""


@dataclass(frozen=True)
class Tower:
    """What is known of a model's encoder before it is loaded.

    Attributes:
        depth: its blocks; built: those that vLLM builds, which leaves out what stands behind the features.
        cls: whether it has a CLS token.
        blind: why its attention cannot be read; "" where it can.
    """

    depth: int
    built: int
    cls: bool
    blind: str = ""


ANY = Tower(24, 24, True)
"""An encoder that can tell all that one can, for what is said of no model."""


def why_not(plan: Plan, tower: Tower | None = None) -> str | None:
    """Why a plan cannot be served, and the way out; None where it can.

    Args:
        tower: the encoder of the model it is for; None for what can be said of any.
    """
    told = refused_stage(plan, tower or ANY)
    return None if told is None else f"{told}; {WAY_OUT}"


def served_methods(tower: Tower | None = None) -> list[str]:
    """The methods that can be served, by name, with their defaults and as one stage at the handoff."""
    names = list_methods(site="handoff")
    return [name for name in names if refused_stage(Plan(Stage(get_method(name), 16, "handoff")), tower or ANY) is None]


def refused_stage(plan: Plan, tower: Tower) -> str | None:
    """As :func:`why_not`, without the way out."""
    others = [stage for stage in plan.stages if stage.site != "handoff"]
    if others:
        alone = any(s.site == "handoff" for s in plan.stages)
        more = ' (its first stage can, as {"site": "handoff"})' if alone and len(plan.stages) > 1 else ""
        stage = others[0]
        return f"vLLM cannot run {stage.method.name} at site={stage.site!r}: {SITES[stage.site]}{more}"
    if len(plan.stages) != 1:
        return f"a plan of {len(plan.stages)} stages at the handoff; vLLM runs one"
    stage = plan.stages[0]
    return _uncounted(stage) or _unread(stage.method, tower) or _rehearsed(stage, tower)


def _uncounted(stage: Stage) -> str | None:
    """Whether the number of tokens that stay is known before the encoder runs."""
    keep = stage.keep
    ahead = "vLLM fixes the number of a picture's tokens before the encoder runs"
    if stage.method.adaptive:
        return f"{stage.method.name} chooses how many tokens stay by what the encoder made of the picture; {ahead}"
    if isinstance(keep, budget.Keep):
        if keep.per == "prompt":
            return f"{keep} shares a budget among the pictures of a prompt; vLLM shares their tokens among prompts"
        if keep.flops is not None or keep.steps > 1:
            return f"{keep} depends on the text of a prompt or on further stages; {ahead}: give tokens or a share"
    return None


def read_for(need: Need, tower: Tower) -> str | None:
    """The signal that is read for a need, as a sieve on a transformers model would; None where that is the text, or nothing."""
    for name in (need.name, *need.instead):
        if name in OF_TEXT:
            return None
        if name in GIVEN or (name in ENCODER_SIGNALS and (tower.cls or not name.startswith("cls_"))):
            return name
    return None


def reads_encoder(method: Method, tower: Tower) -> bool:
    """Whether a method reads what the encoder's attention says."""
    return any(read_for(need, tower) in ENCODER_SIGNALS for need in method.needs)


def _unread(method: Method, tower: Tower) -> str | None:
    for need in method.needs:
        found = read_for(need, tower)
        if found is None and set(OF_TEXT) & {need.name, *need.instead}:
            return (
                f"{method.name} reads the text ({need.name}); the encoder's output is shared by all prompts about a picture, and "
                "is not told of any"
            )
        if found is None:
            return f"{method.name} reads {need.name}, which nothing in front of vLLM's language model can tell"
        if found not in ENCODER_SIGNALS:
            continue
        if tower.blind:
            return f"{method.name} reads {found}: {tower.blind}"
        for asked in need.layers:
            layer = need.scaled(asked, tower.depth)
            if not -tower.depth <= layer < tower.depth:
                return f"{method.name} reads {found} at layer {asked} of an encoder of {tower.depth}"
            if layer % tower.depth >= tower.built:
                return (
                    f"{method.name} reads {found} at layer {asked}, which vLLM does not build: features leave the encoder "
                    f"behind layer {tower.built - tower.depth - 1}"
                )
    return None


def _rehearsed(stage: Stage, tower: Tower, tokens: int = 36) -> str | None:
    """What a method says to a small picture with the signals that it would get; None where it keeps what it should."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, tokens, 16, generator=g)
    given: dict[str, Any] = {}
    for need in stage.method.needs:
        name = read_for(need, tower)
        if name is None or name not in ENCODER_SIGNALS:
            continue
        made = torch.rand(1, 2, tokens, generator=g).softmax(-1)
        of_layer = torch.randn(1, tokens, 16, generator=g) if name in ("keys", "values") else made
        given[name] = given.get(name, {}) | dict.fromkeys(need.layers or (-1,), of_layer)
    try:
        made_of = stage.method(Signals(x, grid=_square(tokens), **given), torch.tensor([9]))
    except (ValueError, RuntimeError, ArithmeticError, LookupError, TypeError, AssertionError) as error:
        return f"{stage.method.name} does not run on a picture alone: {error}"
    kept = int(made_of.mask.sum())
    return None if kept == 9 else f"{stage.method.name} kept {kept} tokens of a picture where 9 were asked for"


def _square(tokens: int) -> tuple[int, int]:
    side = int(tokens**0.5)
    return (side, side)


def refused_model(config: Any, kinds: Sequence[str]) -> str | None:
    """Why no plan can be served with a model, as far as its config tells; None where one may be.

    Args:
        kinds: model types of its parts.
    """
    if "pixtral" in kinds:
        return (
            "the tokens of its pictures stand in rows between line breaks, and which breaks stay would depend on which tokens "
            "do; the number of tokens is fixed before that is known"
        )
    if getattr(config, "is_encoder_decoder", False):
        return "it has an encoder and a decoder"
    return None
