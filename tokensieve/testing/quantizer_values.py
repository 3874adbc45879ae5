"""What codes are to say of their vectors: the nearest code, values near to what they stand for, and learning that helps."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from tokensieve.codec.quantizer import Quantizer
from tokensieve.codec.quantizers.product import Several
from tokensieve.codec.quantizers.residual import Residual
from tokensieve.testing.trial import expect

B, N = 3, 24
TIE = 1e-6
"""Relative difference of squared distances in float64 within which two codes are equally near."""
POOL, STEPS = 16, 25
WORSE = 1.001
"""How much further off training may leave codes: rounding."""


def places(q: Quantizer) -> int:
    """N of what it takes."""
    return N if q.aligned else q.places  # type: ignore[return-value]


def draw(q: Quantizer, seed: int, rows: int = B) -> Tensor:
    """Normal vectors ``(rows, N, D)``."""
    return torch.randn(rows, places(q), q.dim, generator=torch.Generator().manual_seed(seed))


def check_nearest(q: Quantizer) -> None:
    if not q.aligned or not q.reencodes or q.posthoc:
        return  # sums and bins of equal probability: another code may come nearer
    with torch.no_grad():
        u = q.squash(q.project_in(draw(q, 16).flatten(0, 1)))
        found = q.nearest(u)
        near = _far(q, u, found)
        for other in (found.roll(1, 0), found.roll(7, 0), q.neighbours(found, torch.Generator().manual_seed(0))):
            worse = near > _far(q, u, other) + TIE * u.double().square().sum(1)
            expect(not bool(worse.any()), "the nearest code; another was nearer")


def check_the_way_back(q: Quantizer) -> None:
    if type(q).restore is Quantizer.restore or isinstance(q, Several) or not q.aligned:
        return
    x = q.project_in(draw(q, 17).flatten(0, 1))
    expect(torch.allclose(q.restore(q.squash(x)), x, atol=1e-5), "restore to undo squash")


def check_fitting(q: Quantizer) -> None:
    for middle, spread in ((10.0, 2.0), (0.0, 0.01)):
        z = middle + spread * draw(q, 18, POOL)
        one = deepcopy(q).fit(z, generator=torch.Generator().manual_seed(0))
        if _same(q, one):
            for part in (m for m in q.modules() if isinstance(m, Quantizer) and m is not q):
                expect(
                    _same(part, deepcopy(part).fit(draw(part, 18, POOL))),
                    "fit to reach the quantizers that it is made of",
                )
            return
        if not q.aligned:
            expect(
                float((one(z).values - z).square().mean()) < spread**2,
                "what is fitted to tell more than one code for all",
            )
            continue
        u = one.squash(one.project_in(z.flatten(0, 1)))
        error = float(_far(one, u, one.nearest(u)).mean())
        expect(error < float(u.double().var(0).sum()), "what is fitted to tell more than one code for all")


def check_stages(q: Quantizer) -> None:
    parts = q.stages() if isinstance(q, Several) and not isinstance(q, Residual) else [q]
    for part in (p for p in parts if isinstance(p, Residual)):
        z = draw(part, 19, POOL)
        one = part.fit(z, generator=torch.Generator().manual_seed(0))
        indices, ends = one(z).indices, torch.tensor(one.counts).cumsum(0).tolist()
        errors = [float((one.lookup(indices[..., :end]) - z).square().mean()) for end in ends]
        expect(errors == sorted(errors, reverse=True), f"each stage to come nearer; got {errors}")


def check_learning(q: Quantizer) -> None:
    """On batches of one distribution."""
    z, one = 2 + draw(q, 20, POOL), deepcopy(q).train()
    generator = torch.Generator().manual_seed(0)
    learnt = [p for name, p in one.named_parameters() if not name.startswith("project_")]
    optimizer = torch.optim.Adam(learnt, 1e-2) if learnt else None
    errors, before = [], one
    for step in range(STEPS + 1):
        if step in (1, STEPS):
            errors.append(_error(one, z))
        if step == 1:
            before = deepcopy(one)
        codes = one(z[torch.randperm(POOL, generator=generator)[:B]], generator=generator)
        if optimizer is not None:
            optimizer.zero_grad()
            codes.loss.backward()
            optimizer.step()
    expect(
        errors[1] <= WORSE * errors[0], f"training to leave codes no further off; {errors[0]:.4g}, then {errors[1]:.4g}"
    )
    moved = any(not torch.equal(a, b) for a, b in zip(before.buffers(), one.buffers(), strict=True))
    expect(
        not moved or bool(learnt) or errors[1] != errors[0], "training that changes its state to change what codes say"
    )


def _error(q: Quantizer, z: Tensor) -> float:
    """Of values, of z as it lies in the space of codes."""
    was, error = q.training, 0.0
    q.eval()
    with torch.no_grad():
        if q.aligned:
            u = q.squash(q.project_in(z.flatten(0, 1)))
            error = float(_far(q, u, q.nearest(u)).mean())
        else:
            error = float((q(z).values - z).square().mean())
    q.train(was)
    return error


def _far(q: Quantizer, u: Tensor, indices: Tensor) -> Tensor:
    """``(T,)`` float64: squared distances of points to the values of codes."""
    with torch.no_grad():
        return (u.double() - q.table(indices).double()).square().sum(1)


def _same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


CHECKS = (check_nearest, check_the_way_back, check_fitting, check_stages, check_learning)
