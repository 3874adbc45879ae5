"""LFQ and BSQ: a token is the signs of its dimensions."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tokensieve.codec.entropy import sign_entropy
from tokensieve.codec.quantizer import Quantizer, number, whole
from tokensieve.codec.registry import register_quantizer

MOST = 24
"""Bits of a group at most: their distribution is a table of so many bits, 64 MB."""


@register_quantizer("lfq", kind="LFQ", systems=(208, 72, 95))
class LFQ(Quantizer):
    """Lookup-free quantization: each dimension becomes -1 or 1 (MAGVIT-v2, arXiv 2310.05737).

    A penalty has each token decide for a code (low entropy of a sample) and all codes be used alike (high entropy over the
    batch). Both are computed exactly (:func:`tokensieve.codec.sign_entropy`), at 18 bits too; ``groups`` are for WeTok's
    objective (arXiv 2508.05599), which takes the entropies of groups of bits by themselves, and for more than 24 bits.

    Args:
        bits: of a token.
        dim: D, where it is not ``bits``; adds linear maps in and out.
        entropy: weight of the entropies.
        diversity: weight of the batch's entropy among them.
        commitment: weight of the loss that draws dimensions to -1 and 1.
        inv_temperature: beta: the softmax over codes c is of ``2 beta z . c``.
        groups: of equally many bits, whose entropies are added.
    """

    loss_names = ("commitment", "entropy_sample", "entropy_batch")

    def __init__(
        self, *, bits: int, dim: int | None = None, entropy: float = 0.1, diversity: float = 1.0, commitment: float = 0.25,
        inv_temperature: float = 100.0, groups: int = 1,
    ):  # fmt: skip
        if whole("bits", bits) % whole("groups", groups):
            raise ValueError(f"groups={groups} do not divide bits={bits} evenly")
        if entropy and bits // groups > MOST:
            raise ValueError(
                f"bits={bits} in groups={groups}: the entropy of a group is over 2^{bits // groups} codes; give more groups, "
                f"of at most {MOST} bits each, or entropy=0"
            )
        super().__init__((2,) * bits, bits, dim)
        self.entropy, self.diversity = number("entropy", entropy), number("diversity", diversity)
        self.commitment = number("commitment", commitment)
        self.inv_temperature, self.groups = number("inv_temperature", inv_temperature), groups
        self.length = 1.0
        """What a bit's value is: its sign times this."""

    def nearest(self, u: Tensor) -> Tensor:
        return (u > 0).long()

    def table(self, indices: Tensor) -> Tensor:
        return indices.float().mul_(2 * self.length).sub_(self.length)

    def losses(self, u: Tensor, values: Tensor) -> dict[str, Tensor]:
        logits = 4 * self.inv_temperature * self.length * u
        each = [sign_entropy(part) for part in logits.chunk(self.groups, 1)] if self.entropy else []
        zero = u.new_zeros(())
        return {
            "commitment": self.commitment * F.mse_loss(u, values),
            "entropy_sample": self.entropy * sum((one for one, _ in each), start=zero),
            "entropy_batch": -self.entropy * self.diversity * sum((mean for _, mean in each), start=zero),
        }


@register_quantizer("bsq", kind="BSQ")
class BSQ(LFQ):
    """Binary spherical quantization: signs of a token on the unit sphere (arXiv 2406.07548).

    As ``lfq``, but tokens are brought to length 1, and so are codes: a bit's value is its sign over the root of ``bits``.
    """

    def __init__(
        self, *, bits: int, dim: int | None = None, entropy: float = 0.1, diversity: float = 1.0, commitment: float = 0.25,
        inv_temperature: float = 100.0, groups: int = 1,
    ):  # fmt: skip
        super().__init__(
            bits=bits, dim=dim, entropy=entropy, diversity=diversity, commitment=commitment,
            inv_temperature=inv_temperature, groups=groups,
        )  # fmt: skip
        self.length = bits**-0.5

    def squash(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)
