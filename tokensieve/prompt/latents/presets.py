"""Presets: the published ways from text to latents, and what opens their files again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from tokensieve.core.errors import near
from tokensieve.prompt.latents.module import TextToLatents, fill, recipe_in
from tokensieve.prompt.latents.pages import PageStyle
from tokensieve.prompt.latents.sight import PageReader
from tokensieve.sites.prompt.readers import PooledReader, SlotReader


def arc(model: Any, ratio: int = 4, *, encoder: Any = None, depth: int | None = None) -> TextToLatents:
    """One latent for every few tokens: a bidirectional copy of a language model, queries pooled in its last layer, two linear
    maps.

    Source: Pilchen, Grave and Pérez, ARC-Encoder: learning compressed text representations for large language models (arXiv
    2510.20535). Deviations: see :class:`~tokensieve.sites.prompt.readers.PooledReader`; one module serves one language model.

    Args:
        model: the frozen language model that reads the latents.
        ratio: tokens for a latent; the paper's are 4 and 8.
        encoder: a causal language model of the Llama family whose layers read; the model itself by default. Copied.
        depth: its first layers alone.
    """
    reader = PooledReader(_encoder(model, encoder), ratio, depth)
    width, scale = _target(model)
    # Without an activation, as in the paper; the norm stands for the one that the reader's copy left out.
    project = nn.Sequential(
        nn.RMSNorm(reader.width, eps=1e-6),
        nn.Linear(reader.width, width, bias=False),
        nn.Linear(width, width, bias=False),
    )
    return _made(reader, project, model, "arc", scale, ratio=ratio, depth=depth, encoder=encoder is not None)


def c3(model: Any, slots: int = 32, *, encoder: Any = None, depth: int | None = None) -> TextToLatents:
    """A fixed number of latents for any text: learned queries behind it in a small causal language model, one linear map.

    Source: Liu and Qiu, Context Cascade Compression: Exploring the Upper Limits of Text Compression (arXiv 2511.15244).
    Deviation: the large language model is frozen, where the paper's is trained along; a learned embedding asks it to repeat the
    text, where the paper's prompt says so in words.

    Args:
        model: the frozen language model that reads the latents.
        slots: latents; the paper's are 32 and 64.
        encoder: a causal language model of the Llama family whose layers read; the model itself by default. Copied.
        depth: its first layers alone.
    """
    reader = SlotReader(_encoder(model, encoder), slots, depth)
    width, scale = _target(model)
    project = nn.Sequential(nn.RMSNorm(reader.width, eps=1e-6), nn.Linear(reader.width, width))
    return _made(reader, project, model, "c3", scale, slots=slots, depth=depth, encoder=encoder is not None)


def vist(
    model: Any, tokenizer: Any, slots: int = 64, *, style: PageStyle | None = None, vision: Any = None, width: int = 128
) -> TextToLatents:
    """So many latents for a page of rendered text: a small vision encoder, a resampler, an MLP.

    The distant part of a text is read so; its end stays tokens, behind the latents (:meth:`TextLatents.before`). Train with
    :func:`~tokensieve.prompt.latents.rarity.enhancement` beside the loss of the continuation.

    Source: Xing et al., Vision-centric Token Compression in Large Language Model (arXiv 2502.00791). Deviations: latents stand in
    front of the tokens, where the paper adds cross-attention to the language model, which stays as it is here; characters stand
    in a grid, and lines run on; the vision encoder is small and trained along where none is given.

    Args:
        model: the frozen language model that reads the latents.
        tokenizer: its tokenizer; what it decodes is rendered.
        slots: latents for a page; with the default page of 968 characters, 64 are about 4 tokens for a latent in English.
        style: of the pages.
        vision: pages ``(P, 1, H, W)`` to states ``(P, n, width)``; stays frozen.
        width: of the vision encoder's states.
    """
    style = style or PageStyle()
    reader = PageReader(tokenizer, slots, style, vision, width)
    wide, scale = _target(model)
    project = nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, wide))
    page = {name: getattr(style, name) for name in ("lines", "columns", "height", "width", "font")}
    return _made(reader, project, model, "vist", scale, slots=slots, style=page, width=width, vision=vision is not None)


PRESETS: dict[str, Callable[..., TextToLatents]] = {"arc": arc, "c3": c3, "vist": vist}


def load(
    path: str | Path, model: Any, *, encoder: Any = None, tokenizer: Any = None, vision: Any = None
) -> TextToLatents:
    """The module that :meth:`TextToLatents.save` wrote, in evaluation mode.

    Args:
        path: the file.
        model: the language model that it was trained for.
        encoder, tokenizer, vision: what the preset was given of them; an encoder or vision of the same shape is enough, for its
            weights are in the file.

    Raises:
        ValueError: no such file, something that the preset was given is missing, or weights of other shapes.
    """
    recipe = recipe_in(path)
    name = recipe.pop("preset")
    if name not in PRESETS:
        raise ValueError(f"{path} is of the preset {name!r}; this version has {near(name, PRESETS)}")
    for what, given in (("encoder", encoder), ("vision", vision)):
        if recipe.pop(what, False) != (given is not None):
            raise ValueError(f"{path} was made {'without' if given is not None else 'with'} {what}=; load it likewise")
        if given is not None:
            recipe[what] = given
    if name == "vist":
        if tokenizer is None:
            raise ValueError(f"{path} reads rendered text; give the language model's tokenizer as tokenizer=")
        recipe |= {"tokenizer": tokenizer, "style": PageStyle(**recipe["style"])}
    return fill(PRESETS[name](model, **recipe), path)


def _encoder(model: Any, encoder: Any) -> Any:
    return model if encoder is None else encoder


def _target(model: Any) -> tuple[int, float]:
    """The width of a language model's embeddings, and their standard deviation."""
    table = model.get_input_embeddings().weight
    return int(table.shape[1]), float(table.detach().float().std())


def _made(
    reader: nn.Module, project: nn.Sequential, model: Any, preset: str, scale: float, **options: Any
) -> TextToLatents:
    """A module whose latents begin as large as embeddings of tokens, where the language model is and in its precision."""
    linear = [m for m in project if isinstance(m, nn.Linear)]
    for m in linear:
        nn.init.normal_(m.weight, std=(scale if m is linear[-1] else 1) * m.in_features**-0.5)
        if m.bias is not None:
            nn.init.zeros_(m.bias)
    recipe = {"preset": preset, **options}
    table = model.get_input_embeddings().weight
    return TextToLatents(reader, project, table.shape[1], recipe, scale).to(table.device, table.dtype)
