"""Modules: where the self-attention of a denoiser is, and the run of blocks through which its tokens flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tokensieve.sites.diffusion.latents import Latents
from tokensieve.sites.diffusion.reduced import Row

TEXT = ("encoder_hidden_states", "norm_encoder_hidden_states", "context")
"""What the stream of the text is called among the arguments of attention and of blocks."""
IMAGE_FIRST = (
    "ErnieImageTransformer2DModel",
    "HiDreamImageTransformer2DModel",
    "HunyuanImageTransformer2DModel",
    "HunyuanVideoTransformer3DModel",
    "HunyuanVideo15Transformer3DModel",
    "HunyuanVideoFramepackTransformer3DModel",
    "NucleusMoEImageTransformer2DModel",
    "ZImageTransformer2DModel",
)
"""Denoisers in whose joint rows the tokens of the latents stand in front of the text."""


def text_first(denoiser: nn.Module) -> bool:
    """Whether in rows of a text and the latents the text stands in front."""
    return type(denoiser).__name__ not in IMAGE_FIRST


def attending(denoiser: nn.Module) -> dict[str, nn.Module]:
    """By name, the attention modules that may see the latents alone, or those together with a text: all but cross-attention."""
    return {
        name: m
        for name, m in denoiser.named_modules()
        if callable(getattr(m, "processor", None)) and not getattr(m, "is_cross_attention", False)
    }


def blocks(denoiser: nn.Module) -> dict[str, nn.Module]:
    """By name, the blocks of the lists right under a denoiser that have attention right under them, in order."""
    attends = {id(m) for m in attending(denoiser).values()}
    found: dict[str, nn.Module] = {}
    for name, child in denoiser.named_children():
        if isinstance(child, nn.ModuleList) and all(any(id(part) in attends for part in m.children()) for m in child):
            found |= {f"{name}.{i}": m for i, m in enumerate(child)}
    return found


def chosen(names: Sequence[str], layers: Sequence[int | float] | None, what: str) -> list[str]:
    """Those of the names that ``layers`` asks for: numbers, from the end where negative, or shares of the depth; all for None.

    Raises:
        ValueError: there is none of that number.
    """
    if layers is None:
        return list(names)
    out = []
    for layer in layers:
        at = int(layer * len(names)) if isinstance(layer, float) else layer
        if not -len(names) <= at < len(names):
            raise ValueError(f"layers={tuple(layers)}; there are {len(names)} {what}, 0 to {len(names) - 1}")
        out.append(names[at])
    return out


def joint(module: nn.Module) -> bool:
    """Whether a stream of text beside the tokens attends with them, in one softmax, instead of being looked at."""
    crossing = getattr(module, "is_cross_attention", None)
    if crossing is not None:
        return not crossing
    # Those that say nothing of it have projections for the text where it joins in.
    return any(name.startswith(("add_", "txt_")) for name, part in module.named_children() if part is not None)


def row_of(module: nn.Module, first: str, given: Mapping[str, Any], latents: Latents, extra_first: bool) -> Row | None:
    """The tokens that a module is called with; None where they are not those of the latents.

    Args:
        first: the name of its first argument.
    """
    x = given[first]
    if not isinstance(x, Tensor) or x.dim() != 3 or len(x) not in (latents.batch, latents.batch * latents.frames):
        return None
    text = next((given[name] for name in TEXT if isinstance(given.get(name), Tensor)), None)
    beside = 0 if text is None or text is x else text.shape[1]
    ours, grid = latents.of(x.shape[1])
    if ours:
        return Row(x.shape[1], beside, extra_first, False, grid)
    if beside == 0 and 0 < latents.main < x.shape[1] and len(x) == latents.batch:
        return Row(latents.main, x.shape[1] - latents.main, extra_first, True, latents.of(latents.main)[1])
    return None
