"""Precision: any floating type and any memory layout will do, and inputs stay as they were."""

from __future__ import annotations

import torch

from tokensieve.testing.trial import Trial, expect, same


def check_precisions(trial: Trial) -> None:
    """Half, bfloat16, single and double precision, in and out."""
    x, given = trial.draw()
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}
        r = trial.run(x.to(dtype), 9, cast)
        out = r.apply(x.to(dtype))
        expect(r.m <= 9 and out.dtype == dtype, f"at most 9 tokens in {dtype}; got {r.m} in {out.dtype}")
        expect(out.isfinite().all(), f"finite tokens in {dtype}")


def check_strides(trial: Trial) -> None:
    """Inputs need not be contiguous."""
    x, given = trial.draw()
    strided = {k: v.transpose(0, -1).contiguous().transpose(0, -1) for k, v in given.items()}
    flipped = x.transpose(0, 2).contiguous().transpose(0, 2)
    same(trial.run(flipped, 9, strided), trial.run(x, 9, given), "the same for inputs that are not contiguous")


def check_inputs_are_left_as_they_were(trial: Trial) -> None:
    x, given = trial.draw()
    before = {"features": x.clone(), **{k: v.clone() for k, v in given.items()}}
    trial.run(x, 9, given)
    for name, value in {"features": x, **given}.items():
        expect(torch.equal(before[name], value), f"{name} to be left as it was")
