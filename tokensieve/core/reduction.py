"""Reduction: N tokens become M."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokensieve.core.averaging import averaged
from tokensieve.core.expansion import Expansion
from tokensieve.core.files import write
from tokensieve.core.slots import as_dense, shares, slots, strongest

TENSORS = ("kept", "mask", "owner", "weight", "matrix", "near", "share")
"""What a file of a reduction may hold."""


class Reduction:
    """Maps ``(B, N, D)`` to ``(B, M, D)``.

    Two forms behind one type. *Hard*: every source token has one owner slot or is dropped. *Soft*: a ``(B, M, N)``
    matrix, dense or sparse COO, for many-to-many transforms. Build one with :meth:`keep`, :meth:`merge`, :meth:`soft` or
    :meth:`identity`; compose with :meth:`then`. A hard one may come back otherwise than by copies: :meth:`expanding`.

    Attributes:
        n: number of source tokens N.
        kept: ``(B, M)`` long; the source token whose place each slot takes, ascending. Padding slots (rows that keep fewer
            than M) stand at the end and repeat the row's last kept token.
        mask: ``(B, M)`` bool; False at padding slots.
        owner: ``(B, N)`` long; the slot that each source token went to, -1 where it was dropped. In the soft form, the slot
            that received most of it.
        weight: ``(B, N)`` float or None; the weight of each source token in its slot (hard merging only).
        matrix: ``(B, M, N)`` or None; the transform (soft form only).
        expansion: the slots that :meth:`restore` mixes for each token; None where it copies (hard form only).
    """

    def __init__(
        self, n: int, kept: Tensor, mask: Tensor, owner: Tensor, weight: Tensor | None, matrix: Tensor | None,
        expansion: Expansion | None = None,
    ):  # fmt: skip
        self.n, self.kept, self.mask, self.owner, self.weight, self.matrix = n, kept, mask, owner, weight, matrix
        self.expansion = expansion
        # Beside a row that keeps every token, another may keep fewer.
        self.is_identity = kept.shape[1] == n and weight is None and matrix is None and bool(mask.all())

    # ---- making one -------------------------------------------------------------------------------------------------

    @classmethod
    def identity(cls, batch: int, n: int, device: torch.device | str = "cpu") -> Reduction:
        """Keep everything: :meth:`apply` returns its argument itself."""
        every = torch.arange(n, device=device).expand(batch, n)
        return cls(n, every, torch.ones_like(every, dtype=torch.bool), every, None, None)

    @classmethod
    def keep(cls, chosen: Tensor) -> Reduction:
        """Drop every token outside ``chosen``, a ``(B, N)`` bool tensor."""
        kept, mask, slot = slots(chosen)
        return cls(chosen.shape[1], kept, mask, torch.where(chosen, slot, -1), None, None)

    @classmethod
    def merge(cls, chosen: Tensor, target: Tensor, weight: Tensor | None = None) -> Reduction:
        """Average tokens into the chosen ones.

        Args:
            chosen: ``(B, N)`` bool, the tokens that stay as slots.
            target: ``(B, N)`` long; the source index of the chosen token that each token joins, -1 to drop it. Chosen tokens
                join themselves whatever stands here.
            weight: ``(B, N)`` non-negative weight of each token within its slot, normalised per slot; None weighs all equally.
        """
        kept, mask, slot = slots(chosen)
        owner = torch.where(target >= 0, slot.gather(1, target.clamp(min=0)), -1)
        owner = torch.where(chosen, slot, owner)
        weight = torch.ones(chosen.shape, device=chosen.device) if weight is None else weight
        weight, at = torch.where(owner >= 0, weight, 0.0), owner.clamp(min=0)
        total = weight.new_zeros(kept.shape).scatter_add_(1, at, weight)
        return cls(chosen.shape[1], kept, mask, owner, weight / total.gather(1, at).clamp(min=1e-12), None)

    @classmethod
    def weighted(cls, chosen: Tensor, target: Tensor, weight: Tensor) -> Reduction:
        """As :meth:`merge`, with ``weight`` used as it is, not normalised (for recipes that add onto a token)."""
        made = cls.merge(chosen, target)
        return cls(made.n, made.kept, made.mask, made.owner, torch.where(made.owner >= 0, weight, 0.0), None)

    @classmethod
    def soft(cls, matrix: Tensor, chosen: Tensor) -> Reduction:
        """An explicit transform: ``matrix`` is ``(B, M, N)``, dense or sparse COO.

        ``chosen`` is a ``(B, N)`` bool tensor naming the token whose place (position, provenance) each slot takes; slot order is
        the ascending order of the chosen tokens.
        """
        kept, mask, _ = slots(chosen)
        if matrix.shape != (*kept.shape, chosen.shape[1]):
            raise ValueError(
                f"matrix has shape {tuple(matrix.shape)}; chosen asks for {(*kept.shape, chosen.shape[1])}"
            )
        return cls(chosen.shape[1], kept, mask, strongest(matrix), None, matrix)

    def expanding(self, near: Tensor, share: Tensor) -> Reduction:
        """The same, but :meth:`restore` mixes k slots for a token, ``near`` ``(B, N, k)`` long, instead of copying its own;
        ``share``: how much of each, with a sum of 1."""
        if near.shape != share.shape or near.shape[:2] != self.owner.shape or self.matrix is not None:
            raise ValueError(f"near and share must both be of shape ({self.batch}, {self.n}, k), of a hard reduction")
        expansion = Expansion(near, share.masked_fill((self.owner < 0)[..., None], 0.0))
        return Reduction(self.n, self.kept, self.mask, self.owner, self.weight, None, expansion)

    # ---- facts ------------------------------------------------------------------------------------------------------

    @property
    def batch(self) -> int:
        return self.kept.shape[0]

    @property
    def m(self) -> int:
        """The number of slots M (of the longest row)."""
        return self.kept.shape[1]

    @property
    def counts(self) -> Tensor:
        """``(B,)`` slots in use per row."""
        return self.mask.sum(1)

    @cached_property
    def even(self) -> bool:
        """Whether all rows keep equally many tokens, so that no slot is padding."""
        return bool(self.mask.all())

    @cached_property
    def loses(self) -> bool:
        """Whether some token is in no slot."""
        return bool((self.owner < 0).any())

    @property
    def drops(self) -> bool:
        """True when every slot is exactly its kept token, so nothing is mixed."""
        return self.weight is None and self.matrix is None

    def sizes(self) -> Tensor:
        """``(B, M)`` float: how many source tokens stand behind each slot (for proportional attention). At least 1."""
        if self.matrix is not None:
            return shares(self.matrix).sum(2).clamp(min=1.0)
        count = torch.zeros(self.kept.shape, device=self.kept.device)
        return count.scatter_add_(1, self.owner.clamp(min=0), (self.owner >= 0).float()).clamp(min=1.0)

    def dense(self) -> Tensor:
        """The ``(B, M, N)`` matrix of this reduction, whatever its form (memory B x M x N)."""
        if self.matrix is not None:
            return as_dense(self.matrix)
        value = (self.owner >= 0).float() if self.weight is None else self.weight
        out = torch.zeros(self.batch, self.m, self.n, device=self.kept.device, dtype=value.dtype)
        return out.scatter_(1, self.owner.clamp(min=0)[:, None], value[:, None]) * self.mask[..., None]

    # ---- using it ---------------------------------------------------------------------------------------------------

    def take(self, x: Tensor, dim: int = 1) -> Tensor:
        """The kept tokens of ``x`` as they are, without merging: for positions, masks and ids."""
        self._check(x, dim)
        if self.is_identity:
            return x
        # Whole vectors move several times as fast as single elements.
        if dim == 1 and x.dim() == 3 and x.is_contiguous():
            row = torch.arange(self.batch, device=x.device)[:, None] * self.n
            return x.flatten(0, 1).index_select(0, (self.kept + row).flatten()).view(self.batch, self.m, x.shape[2])
        shape, size = [1] * x.dim(), list(x.shape)
        shape[0], shape[dim], size[dim] = self.batch, self.m, self.m
        return x.gather(dim, self.kept.reshape(shape).expand(size))

    def apply(self, x: Tensor, dim: int = 1) -> Tensor:
        """Reduce ``x`` along its token dimension; dtype and device are kept. Integers and bools are taken, never averaged.

        Args:
            x: ``(B, N, ...)``, or any shape whose dimension ``dim`` is N; ``(N, D)`` where B is 1.
            dim: the token dimension.
        """
        if x.dim() == 2 and self.batch == 1 and dim == 1 and x.shape[0] == self.n and x.shape[0] != 1:
            return self.apply(x[None])[0]
        if self.drops or not (x.is_floating_point() or x.is_complex()):
            return self.take(x, dim)
        self._check(x, dim)
        flat = (moved := x.movedim(dim, 1)).reshape(self.batch, self.n, -1)
        out = self._mix(flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat)
        return out.to(x.dtype).reshape(self.batch, self.m, *moved.shape[2:]).movedim(1, dim)

    def _mix(self, flat: Tensor) -> Tensor:
        if self.matrix is not None:
            return torch.bmm(self.matrix.to(flat.dtype), flat)
        assert self.weight is not None
        return averaged(flat, self.kept, self.mask, self.owner, self.weight)

    def restore(self, y: Tensor, fill: float | Tensor = 0.0) -> Tensor:
        """From ``(B, M, D)`` back to ``(B, N, D)``: every source token takes the value of its slot, or of several.

        Args:
            fill: what dropped tokens get: a number, or a ``(B, N, D)`` tensor (their last state).
        """
        if self.is_identity:
            return y
        if self.matrix is not None:
            out = torch.bmm(shares(self.matrix).transpose(1, 2).to(y.dtype), y)
        elif self.expansion is not None:
            out = self.expansion.apply(y)
        else:
            out = y.gather(1, self.owner.clamp(min=0)[..., None].expand(-1, -1, y.shape[2]))
        if not self.loses:
            return out
        gone = (self.owner < 0)[..., None]
        return torch.where(gone, fill.to(y) if isinstance(fill, Tensor) else torch.full((), fill).to(y), out)

    def then(self, other: Reduction) -> Reduction:
        """This reduction followed by ``other``, as one; provenance still names the tokens of the first."""
        if other.n != self.m or other.batch != self.batch:
            raise ValueError(f"other maps {other.batch} x {other.n} tokens; this one yields {self.batch} x {self.m}")
        if self.is_identity or other.is_identity:
            return other if self.is_identity else self
        mask = other.mask & self.mask.gather(1, other.kept)
        kept = self.kept.gather(1, other.kept)
        if self.matrix is not None or other.matrix is not None:
            matrix = torch.bmm(other.dense(), self.dense().to(other.dense()))
            return Reduction(self.n, kept, mask, strongest(matrix), None, matrix)
        owner = torch.where(self.owner >= 0, other.owner.gather(1, self.owner.clamp(min=0)), -1)
        expansion = self._ways.then(other._ways) if self.expansion or other.expansion else None
        if self.drops and other.drops:
            return Reduction(self.n, kept, mask, owner, None, None, expansion)
        first = torch.ones(owner.shape, device=owner.device) if self.weight is None else self.weight
        second = torch.ones(other.owner.shape, device=owner.device) if other.weight is None else other.weight
        weight = first * second.gather(1, self.owner.clamp(min=0))
        return Reduction(self.n, kept, mask, owner, weight.where(owner >= 0, 0.0), None, expansion)

    def rows(self, index: Tensor | slice) -> Reduction:
        """Some rows of the batch."""
        return self._of(self.n, *(None if t is None else as_dense(t)[index] for t in self._tensors().values()))

    @classmethod
    def stack(cls, parts: Sequence[Reduction]) -> Reduction:
        """The rows of several reductions of the same N tokens as one batch."""
        m = max(part.m for part in parts)
        kept = [torch.cat([p.kept, p.kept[:, -1:].expand(-1, m - p.m)], 1) for p in parts]
        mask = [pad(p.mask, (0, m - p.m)) for p in parts]
        weight, matrix = None, None
        if any(p.matrix is not None for p in parts):
            matrix = torch.cat([pad(p.dense(), (0, 0, 0, m - p.m)) for p in parts])
        elif any(p.weight is not None for p in parts):
            weight = torch.cat([(p.owner >= 0).float() if p.weight is None else p.weight for p in parts])
        mixes = matrix is None and any(p.expansion for p in parts)
        expansion = Expansion.stack([p._ways for p in parts]) if mixes else None
        owner = torch.cat([p.owner for p in parts])
        return cls(parts[0].n, torch.cat(kept), torch.cat(mask), owner, weight, matrix, expansion)

    def to(self, device: torch.device | str) -> Reduction:
        return self._of(self.n, *(None if t is None else t.to(device) for t in self._tensors().values()))

    # ---- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file (whole or not at all)."""
        from safetensors.torch import save_file

        tensors = {k: as_dense(t).contiguous() for k, t in self._tensors().items() if t is not None}
        meta = {"format": "tokensieve.reduction.1", "n": str(self.n)}
        write(path, lambda part: save_file(tensors, part, metadata=meta))

    @classmethod
    def load(cls, path: str | Path) -> Reduction:
        """Read what :meth:`save` wrote."""
        from safetensors import safe_open

        with safe_open(path, "pt") as f:
            meta = f.metadata() or {}
            if meta.get("format") != "tokensieve.reduction.1":
                raise ValueError(f"{path} is not a saved Reduction (format {meta.get('format')!r})")
            t = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (a safetensors handle is no dict)
        return cls._of(int(meta["n"]), *(t.get(name) for name in TENSORS))

    def _tensors(self) -> dict[str, Tensor | None]:
        own = {k: getattr(self, k) for k in TENSORS[:5]}
        return own | {k: getattr(self.expansion, k, None) for k in TENSORS[5:]}

    @classmethod
    def _of(cls, n: int, *tensors: Tensor | None) -> Reduction:
        """From :data:`TENSORS`, in this order."""
        return cls(n, *tensors[:5], expansion=Expansion.of(*tensors[5:]))  # type: ignore[arg-type, misc]

    @property
    def _ways(self) -> Expansion:
        return self.expansion or Expansion.copying(self.owner)

    def _check(self, x: Tensor, dim: int) -> None:
        if x.shape[dim] != self.n or x.shape[0] != self.batch:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this reduction needs batch {self.batch} and {self.n} tokens in dimension {dim}"
            )

    def __repr__(self) -> str:
        form = (
            "identity" if self.is_identity else "soft" if self.matrix is not None else "drop" if self.drops else "merge"
        )
        return f"Reduction({form}, batch={self.batch}, {self.n} -> {self.m} tokens)"
