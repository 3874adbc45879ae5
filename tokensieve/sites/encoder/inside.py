"""Inside: what encoders compute of their tokens' places in the midst of their blocks, brought to the tokens that are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from tokensieve.sites.encoder import arguments
from tokensieve.sites.encoder.state import EncoderReduction
from tokensieve.sites.model import calls
from tokensieve.sites.model.calls import Detach


class HasPass(Protocol):
    now: EncoderReduction | None


def biases(attention: nn.Module, site: HasPass) -> list[Detach]:
    """Have the relative position bias that an attention module computes be that of the places where its tokens stood."""
    out = (
        [calls.around(attention, "_rel_shift", lambda plain: _shifted(plain, site))]
        if hasattr(attention, "_rel_shift")
        else []
    )
    if not hasattr(attention, "compute_bias"):
        return out

    def wrap(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def bias(query_length: int, key_length: int, *args: Any, **kwargs: Any) -> Tensor:
            now = site.now
            if now is None or now.shape is None or query_length != now.current.length:
                return plain(query_length, key_length, *args, **kwargs)
            length = now.layout.length
            return arguments.pairs(plain(length, length, *args, **kwargs), now.index, 1)

        return bias

    return [*out, calls.around(attention, "compute_bias", wrap)]


def _shifted(plain: Callable[[Tensor], Tensor], site: HasPass) -> Callable[[Tensor], Tensor]:
    """Scores of queries with relative positions, ``(B, H, m, 2 L - 1)`` from the farthest ahead to the farthest behind, as scores
    with keys (arXiv 1901.02860, appendix B): of tokens that are all there by a shift, of others by their places."""

    def shift(scores: Tensor) -> Tensor:
        now = site.now
        if now is None or now.shape is None:
            return plain(scores)
        place = now.shape.place.clamp(min=0)
        at = (scores.shape[-1] - 1) // 2 - place[:, :, None] + place[:, None]
        return scores.gather(3, at[:, None].expand(-1, scores.shape[1], -1, -1))

    return shift


def relative(layer: nn.Module, site: HasPass, heads: int) -> list[Detach]:
    """Have the relative position bias that a block's own table gives (BEiT) be that of the tokens that are there."""

    def narrow(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        now = site.now
        return None if now is None or now.shape is None else arguments.pairs(output, now.index, heads)

    tables = [m for name, m in layer.named_modules() if name.rsplit(".", 1)[-1] == "relative_position_bias"]
    return [table.register_forward_hook(narrow).remove for table in tables]


class _Places:
    """Position embeddings ``(blocks, 1, L, D)`` that are added behind each block: those of the tokens that are there by then."""

    def __init__(self, whole: Tensor, site: HasPass):
        self.whole, self.site = whole, site

    def __getitem__(self, block: int) -> Tensor:
        now, one = self.site.now, self.whole[block]
        return one if now is None or now.shape is None else now.averaged(one)


def places(root: nn.Module, site: HasPass) -> list[Detach]:
    """Have position embeddings that are added between blocks (YOLOS) be those of the tokens that are there."""
    between = [m for m in root.modules() if "MidPosition" in type(m).__name__]
    return [m.register_forward_hook(lambda module, args, output: _Places(output, site)).remove for m in between]
