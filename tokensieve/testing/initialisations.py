"""What moving a model to another vocabulary relies on in a way to make up rows."""

from __future__ import annotations

import torch

from tokensieve.testing.trial import expect
from tokensieve.text.rows import INITS, Gap


def check_initialisation(name: str) -> None:
    """Check a registered row initialisation.

    It gives one finite float32 row for each missing token, the same every time under the same seed, bears tokens without
    parts and none at all, and changes nothing of what it is given.

    Raises:
        AssertionError: naming what does not hold.
    """
    init = INITS.get(name)
    generator = torch.Generator().manual_seed(0)
    rows, donor = torch.randn(40, 12, generator=generator), torch.randn(50, 8, generator=generator)
    shared = torch.arange(30)
    parts = (*(((1, 2, 3)[: i % 4]) for i in range(20)),)
    given = Gap(rows, shared, shared, torch.arange(30, 50), parts, donor)
    before = [t.clone() for t in (rows, donor, shared)]
    made = init(given)
    expect(made.shape == (20, 12), f"{name} to give (20, 12) rows for 20 missing tokens; got {tuple(made.shape)}")
    expect(made.dtype == torch.float32, f"{name} to give float32; got {made.dtype}")
    expect(bool(made.isfinite().all()), f"{name} to give finite rows")
    expect(torch.equal(init(given), made), f"{name} to give the same rows every time")
    for what, old, now in zip(("rows", "donor", "ids"), before, (rows, donor, shared), strict=True):
        expect(torch.equal(old, now), f"{name} to leave the {what} that it is given as they are")
    none = init(Gap(rows, shared, shared, torch.zeros(0, dtype=torch.long), (), donor))
    expect(none.shape == (0, 12), f"{name} to give (0, 12) rows where none is missing; got {tuple(none.shape)}")
