"""GSQ: groups of channels, each looked up by cosine on the unit sphere."""

from __future__ import annotations

from tokensieve.codec.quantizers.product import Product
from tokensieve.codec.registry import register_quantizer


@register_quantizer("gsq", kind="PQ", systems=(209,))
class GSQ(Product):
    """Grouped spherical quantization: groups of channels, each with a codebook that starts and stays on the unit sphere.

    Source: arXiv 2412.02632. Bits grow with the groups: ``groups * log2(codes)`` a token. Codes are parameters, as in the paper;
    they start uniformly on the sphere, not from data, and none is revived.

    Args:
        codes: of each group.
        groups: they divide ``dim`` evenly.
        dim: D.
        commitment: weight of the loss that draws tokens to their codes.
    """

    def __init__(self, *, codes: int, dim: int, groups: int = 1, commitment: float = 0.25):
        super().__init__(
            of="vq", groups=groups, dim=dim, codes=codes, commitment=commitment, cosine=True, update="gradient",
            kmeans=False, revive=0.0,
        )  # fmt: skip
