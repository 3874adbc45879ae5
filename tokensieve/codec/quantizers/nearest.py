"""VQ: the nearest entry of a learnt codebook."""

from __future__ import annotations

import warnings

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tokensieve.codec import search
from tokensieve.codec.quantizer import Quantizer, number, whole
from tokensieve.codec.registry import register_quantizer

UPDATES = ("ema", "gradient")
SAME = 1e-6
"""Squared distance to its code, as a share of a token's own square, up to which they are the same."""


@register_quantizer("vq", kind="VQ")
class VQ(Quantizer):
    """Vector quantization: the nearest of ``codes`` learnt vectors (arXiv 1711.00937).

    Codes start from k-means of the first training batch; one that is used far less than its share takes a token of the batch, so
    that few stay dead. ``kmeans=False, revive=0`` is the quantizer as it was published.

    Args:
        codes: K, at least 2.
        dim: D.
        update: "ema": codes are moving averages of their tokens; "gradient": they are parameters, and a loss pulls them there.
        decay: of the moving averages; those of use are kept either way.
        commitment: weight of the loss that draws tokens to their codes.
        kmeans: whether the first training batch gives the codes. One of fewer vectors than codes gives fewer, with a warning; the
            rest join as they are revived.
        revive: a code whose moving average of uses is below this share of what codes have on average (tokens / K, whatever the
            batch's size) takes a token of the batch; 0 revives none.
        cosine: whether tokens and codes are compared, and kept, at length 1.

    Processes of distributed training each see their own batch: DistributedDataParallel hands the codes of the first to all.
    """

    loss_names: tuple[str, ...] = ("commitment",)
    codebook: Tensor
    total: Tensor
    size: Tensor
    active: Tensor
    started: Tensor

    def __init__(
        self, *, codes: int, dim: int, update: str = "ema", decay: float = 0.99, commitment: float = 0.25,
        kmeans: bool = True, revive: float = 0.1, cosine: bool = False,
    ):  # fmt: skip
        if update not in UPDATES:
            raise ValueError(f"update={update!r}; it must be one of {', '.join(UPDATES)}")
        self.codes = whole("codes", codes, 2)
        super().__init__((codes,), whole("dim", dim))
        self.update, self.cosine, self.kmeans = update, cosine, kmeans
        self.decay, self.revive = number("decay", decay, 0, 1), number("revive", revive, 0, 1)
        self.commitment = number("commitment", commitment)
        table = torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes)
        table = F.normalize(torch.randn(codes, dim), dim=1) if cosine else table
        if update == "ema":
            self.register_buffer("codebook", table)
            self.register_buffer("total", table.clone())
        else:
            self.codebook = nn.Parameter(table)
            self.loss_names = ("commitment", "codebook")
        self.register_buffer("size", torch.ones(codes))
        self.register_buffer("active", torch.ones(codes, dtype=torch.bool))
        self.register_buffer("started", torch.tensor(not kmeans))

    def points(self) -> Tensor:
        """``(K, D)`` float32: the codes as they are looked up."""
        table = self.codebook.float()
        return F.normalize(table, dim=1) if self.cosine else table

    def squash(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) if self.cosine else x

    def nearest(self, u: Tensor) -> Tensor:
        return search.nearest(u, self.points().detach(), self.active)[:, None]

    def table(self, indices: Tensor) -> Tensor:
        rows = self.codebook[indices[:, 0]].float()
        return F.normalize(rows, dim=1) if self.cosine else rows

    def losses(self, u: Tensor, values: Tensor) -> dict[str, Tensor]:
        out = {"commitment": self.commitment * F.mse_loss(u, values.detach())}
        if self.update == "gradient":
            out["codebook"] = F.mse_loss(values, u.detach())
        return out

    def start(self, u: Tensor, generator: Generator | None) -> None:
        if not self.started:
            self.set_from(u, generator)

    def set_from(self, u: Tensor, generator: Generator | None) -> None:
        """K-means of points ``(T, D)``; each centre counts as used its share."""
        centres = search.kmeans(u, self.codes, generator, sphere=self.cosine)
        found = len(centres)
        if found < self.codes:
            warnings.warn(
                f"{len(u)} vectors, {found} of them different, start {found} of codes={self.codes}; "
                + ("the others join as they are revived" if self.revive else "the others are never used (revive=0)"),
                RuntimeWarning,
                stacklevel=2,
            )
        self.active[:] = torch.arange(self.codes, device=u.device) < found
        self.size[:] = self.active * (len(u) / self.codes)
        self.codebook.data[:found] = centres.to(self.codebook.dtype)
        if self.update == "ema":
            self.total[:found] = (self.size[:found, None] * centres).to(self.total.dtype)
        self.started.fill_(True)

    def learn(self, u: Tensor, indices: Tensor, values: Tensor, generator: Generator | None) -> None:
        labels = indices[:, 0]
        used, total = search.sums(u, labels, self.codes)
        self.size.lerp_(used.to(self.size.dtype), 1 - self.decay)
        if self.update == "ema":
            self.total.lerp_(total.to(self.total.dtype), 1 - self.decay)
            # A code without tokens stays where it is: its sum and its size shrink alike.
            moved = self.total / self.size.clamp(min=torch.finfo(self.size.dtype).tiny)[:, None]
            self.codebook.copy_(torch.where(used[:, None] > 0, moved, self.codebook))
            if self.cosine:
                self.codebook.copy_(F.normalize(self.codebook, dim=1))
        if self.revive:
            self._revive(u, values, generator)

    def _revive(self, u: Tensor, values: Tensor, generator: Generator | None) -> None:
        share = len(u) / self.codes
        dead = (self.size < self.revive * share).nonzero()[:, 0]
        if not len(dead):
            return
        # A second code where one stands already would be as dead as before.
        far = (u - values).square().sum(1) > SAME * u.square().sum(1)
        taken = search.drawn(u[far], len(dead), generator)
        dead = dead[: len(taken)]
        self.codebook.data[dead] = taken.to(self.codebook.dtype)
        self.size[dead] = share
        self.active[dead] = True
        if self.update == "ema":
            self.total[dead] = (share * taken).to(self.total.dtype)

    def neighbours(self, indices: Tensor, generator: Generator | None = None) -> Tensor:
        """For each token of ``(T, 1)`` the code nearest to its own."""
        points = self.points().detach()
        return search.nearest(points[indices[:, 0]], points, self.active, skip=indices[:, 0])[:, None]
