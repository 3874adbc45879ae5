"""What everyone who calls a quantizer relies on."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from tokensieve.codec.codes import Codes
from tokensieve.codec.quantizer import Quantizer
from tokensieve.codec.registry import load_quantizer, quantizer, save_quantizer
from tokensieve.testing.memory import Largest
from tokensieve.testing.quantizer_values import CHECKS as VALUES
from tokensieve.testing.quantizer_values import TIE, B, N, draw, places
from tokensieve.testing.trial import expect

MANY, ELEMENTS = 4096, 1 << 23


def check_quantizer(made: Quantizer) -> None:
    """Check a quantizer, built in or your own; it is left as it is.

    Fresh and after a training step: shapes, dtypes and ranges; an index gives its value and that value its index; rows alone
    give the codes of the batch; masked tokens touch nothing; bfloat16 and autocast give float32's codes; evaluation changes no
    state; a saved one is the same; a seed repeats training; no tensor of tokens x codes is alive; no list of all codes is made;
    bad input is refused and changes nothing; empty batches are none. The code is the nearest one, what is fitted to data tells of
    it, each residual stage comes nearer, and training leaves codes no further off.

    Raises:
        AssertionError: naming what does not hold.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # batches here are small: fewer vectors than codes are as they should be
        trained = deepcopy(made).train()
        trained(draw(trained, 9), generator=torch.Generator().manual_seed(0))
        for what, check in quantizer_checks():
            for when, one in (("fresh", made), ("trained", trained)):
                try:
                    check(deepcopy(one).eval())
                except AssertionError as problem:
                    raise AssertionError(f"{type(made).__name__}, {when}, {what}: {problem}") from problem


def quantizer_checks() -> Iterator[tuple[str, Callable[[Quantizer], None]]]:
    """Each check by its name."""
    for check in CHECKS:
        yield check.__name__.removeprefix("check_").replace("_", " "), check


def check_shapes(q: Quantizer) -> None:
    z = draw(q, 0)
    for training in (False, True):
        q.train(training)
        codes = q(z)
        shape = (B, _codes(q), len(q.levels))
        expect(codes.indices.dtype == torch.int64, f"int64 indices; got {codes.indices.dtype}")
        expect(codes.indices.shape == shape, f"indices of {shape}; got {tuple(codes.indices.shape)}")
        expect(codes.values.shape == z.shape, f"values of {tuple(z.shape)}; got {tuple(codes.values.shape)}")
        expect(codes.values.dtype == z.dtype and bool(codes.values.isfinite().all()), "finite values of z's dtype")
        expect(codes.mask.shape == shape[:2] and bool(codes.mask.all()), f"a mask of {shape[:2]}, all True")
        bound = torch.tensor(q.levels)
        expect(bool(((codes.indices >= 0) & (codes.indices < bound)).all()), f"indices within levels={q.levels}")
        names = set(q.loss_names) if training else set()
        expect(set(codes.losses) == names, f"losses {sorted(names)}; got {sorted(codes.losses)}")
        expect(all(v.dim() == 0 and bool(v.isfinite()) for v in codes.losses.values()), "losses to be finite scalars")
    bits = sum(math.log2(n) for n in q.levels)
    expect(abs(q.bits - bits) < 1e-9, f"bits={bits}; got {q.bits}")
    expect(codes.usage.tokens == B * shape[1] and 1 <= codes.usage.distinct <= B * shape[1], "usage of all tokens")


def check_index_to_value_to_index(q: Quantizer) -> None:
    codes = q(draw(q, 1))
    expect(
        bool(torch.isclose(q.lookup(codes.indices), codes.values, atol=1e-5).all()), "lookup to give what values say"
    )
    if math.prod(q.levels) <= 2**63:
        flat = q.pack(codes.indices)
        expect(torch.equal(q.unpack(flat), codes.indices), "unpack to undo pack")
    rows = codes.indices.flatten(0, 1)
    other = q.neighbours(rows, torch.Generator().manual_seed(0))
    expect(bool((other != rows).any(1).all()), "neighbours to be other codes")
    q.lookup(other.view_as(codes.indices))
    if q.reencodes:
        for held in (rows, other):
            value = q.table(held)
            again = q.nearest(value)
            gap = (q.table(again) - value).double().square().sum(1)
            same = (again == held).all(1) | (gap <= TIE * value.double().square().sum(1))
            expect(bool(same.all()), f"a value to be nearest to itself; index {held[~same][:1].tolist()} is not")


def check_rows_alone(q: Quantizer) -> None:
    z = draw(q, 2)
    whole = q(z)
    for i in range(B):
        alone = q(z[i : i + 1])
        moved = (alone.indices[0] != whole.indices[i]).any(1)
        if not bool(moved.any()):
            near = torch.allclose(alone.values[0], whole.values[i], atol=1e-5)
            expect(near, f"row {i} to have the values of the batch alone")
        for n in moved.nonzero()[:, 0].tolist() if q.aligned else []:
            expect(
                _tie(q, z[i, n], alone.indices[0, n], whole.indices[i, n]), f"row {i} alone to give the batch's codes"
            )
        expect(q.aligned or not bool(moved.any()), f"row {i} alone to give the batch's codes")


def check_masks(q: Quantizer) -> None:
    z, mask = draw(q, 3), _mask(q)
    dirty, other = z.clone(), z.clone()
    dirty[~mask], other[~mask] = torch.nan, 7.0
    for training in (False, True):
        one, two = deepcopy(q).train(training), deepcopy(q).train(training)
        dirty.requires_grad_(training)
        a = one(dirty, mask, torch.Generator().manual_seed(1))
        b = two(other, mask, torch.Generator().manual_seed(1))
        there = mask if q.aligned else mask.any(1)[:, None].expand(-1, _codes(q))
        expect(torch.equal(a.mask, there), "the mask that was given")
        expect(bool((a.indices[~there] == -1).all()), "-1 where there is no token")
        expect(bool((a.values[~mask] == 0).all()), "values of 0 where there is no token")
        lone = [deepcopy(q).fit(x.detach(), mask, torch.Generator().manual_seed(2)) for x in (dirty, other)]
        expect(_equal(*lone), "what stands at masked places to be no part of what is fitted to")
        same = torch.equal(a.indices, b.indices) and torch.equal(a.values.detach(), b.values.detach())
        expect(same and _equal(one, two), "what stands at masked places to touch nothing")
        expect(all(torch.equal(a.losses[k].detach(), b.losses[k].detach()) for k in a.losses), "nor losses")
        if training:
            expect(a.values.requires_grad, "a gradient that goes straight through")
            (a.values.square().sum() + a.loss).backward()
            assert dirty.grad is not None
            expect(bool((dirty.grad[~mask] == 0).all()), "no gradient at masked places")
            expect(bool(dirty.grad[mask].isfinite().all()), "finite gradients")
            expect(bool((dirty.grad[mask] != 0).any()), "a gradient that goes straight through")
            dirty = dirty.detach()
    back = q.lookup(a.indices)
    expect(bool((back[~mask] == 0).all()), "lookup to give 0 where there is no token")


def check_precision(q: Quantizer) -> None:
    z = draw(q, 4).bfloat16()
    plain = q(z.float())
    with torch.autocast("cpu", torch.bfloat16):
        cast = q(z)
    for what, codes in (("bfloat16", q(z)), ("bfloat16 under autocast", cast)):
        expect(torch.equal(codes.indices, plain.indices), f"{what} to give float32's codes")
        expect(codes.values.dtype == torch.bfloat16, f"{what} to give bfloat16 values; got {codes.values.dtype}")
    expect(q.lookup(plain.indices).dtype == torch.float32, "lookup to give float32")


def check_evaluation(q: Quantizer) -> None:
    before = deepcopy(q)
    q(draw(q, 5))
    q.lookup(q(draw(q, 6)).indices)
    expect(_equal(before, q), "evaluation to change no state")


def check_saving(q: Quantizer) -> None:
    z = draw(q, 7)
    expect(bool(q.config), "it to be made by tokensieve.quantizer, so that it can be saved")
    with tempfile.TemporaryDirectory() as folder:
        again = load_quantizer(save_quantizer(q, folder))
    expect(_equal(q, again), "a saved quantizer to have the same state")
    a, b = q(z), again(z)
    expect(
        torch.equal(a.indices, b.indices) and torch.equal(a.values, b.values),
        "a saved quantizer to give the same codes",
    )


def check_seeds(q: Quantizer) -> None:
    runs = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        one = deepcopy(q).train()
        generator = torch.Generator().manual_seed(3)
        codes = [one(draw(q, 8 + i), generator=generator) for i in range(3)]
        runs.append((one, codes))
    (one, a), (two, b) = runs
    expect(all(torch.equal(x.indices, y.indices) for x, y in zip(a, b, strict=True)), "a seed to repeat its codes")
    expect(_equal(one, two), "a seed to repeat what is learnt")


def check_memory(q: Quantizer) -> None:
    codes = math.prod(q.levels)
    rows = max(1, MANY // places(q))
    if rows * places(q) * codes < ELEMENTS:
        return
    z = draw(q, 11, rows)
    most = max(z.numel() * len(q.levels), ELEMENTS // 2, 2 * sum(q.levels) * q.width)
    for training in (False, True):
        one = deepcopy(q).train(training)
        with Largest() as seen:
            one(z)
        expect(
            seen.elements <= max(most, codes if training and codes < ELEMENTS else 0),
            f"no tensor of tokens x codes; one holds {seen.elements:,} elements",
        )


def check_code_lists(q: Quantizer) -> None:
    codes = math.prod(q.levels)
    held = max(sum(q.levels), 64) * q.width * 4
    if not q.config or codes <= held:
        return
    with Largest() as seen:
        made = quantizer(q.config["name"], **{k: v for k, v in q.config.items() if k != "name"}).eval()
        made(draw(q, 12))
    expect(
        seen.elements <= max(held, B * N * q.width * 8), f"no list of all codes; {seen.elements:,} elements are held"
    )


def check_bad_input(q: Quantizer) -> None:
    for training in (False, True):
        one = deepcopy(q).train(training)
        for bad in (torch.nan, torch.inf):
            z = draw(q, 13)
            z[1, 2, 0] = bad
            _refused(lambda: one(z), "a value that is not finite")  # noqa: B023
            _refused(lambda: one.fit(z), "a value that is not finite, to be fitted to")  # noqa: B023
        _refused(lambda: one(draw(q, 13)[0]), "z without a batch")  # noqa: B023
        _refused(lambda: one(draw(q, 13)[..., :-1]), "z of fewer channels")  # noqa: B023
        _refused(lambda: one(draw(q, 13), torch.ones(B, places(q))), "a mask that is not bool")  # noqa: B023
        expect(_equal(q, one), "what is refused to change nothing")
    held = q(draw(q, 14)).indices
    for wrong in (max(q.levels), -2):
        bad_indices = held.clone()
        bad_indices[0, 0, 0] = wrong
        _refused(lambda: q.lookup(bad_indices), f"index {wrong}")  # noqa: B023
    _refused(lambda: q.lookup(held.int()), "indices of int32")
    if math.prod(q.levels) > 2**63:
        _refused(lambda: q.pack(held), "to pack more than 63 bits")
        return
    for packed in (math.prod(q.levels), -2):
        if packed < 2**63:
            _refused(lambda: q.unpack(torch.tensor([packed])), f"packed index {packed}")  # noqa: B023
    _refused(lambda: q.unpack(q.pack(held).int()), "packed indices of int32")


def check_empty(q: Quantizer) -> None:
    for training in (False, True):
        q.train(training)
        before = deepcopy(q)
        z = draw(q, 15)
        for x, mask in ((z, torch.zeros(z.shape[:2], dtype=torch.bool)), (z[:0], None)):
            codes: Codes = q(x, mask)
            expect(bool((codes.indices == -1).all()) and bool((codes.values == 0).all()), "-1 and 0 for no tokens")
            expect(float(codes.loss) == 0, f"losses of 0 for no tokens; got {float(codes.loss)}")
            expect(codes.usage.tokens == 0, "no usage for no tokens")
        expect(_equal(before, q), "no tokens to change nothing")


CHECKS = (
    check_shapes, check_index_to_value_to_index, check_rows_alone, check_masks, check_precision, check_evaluation,
    check_saving, check_seeds, check_memory, check_code_lists, check_bad_input, check_empty, *VALUES,
)  # fmt: skip


def _codes(q: Quantizer) -> int:
    return N if q.aligned else q.count  # type: ignore[return-value]


def _mask(q: Quantizer) -> Tensor:
    mask = torch.ones(B, places(q), dtype=torch.bool)
    mask[1] = False
    if q.aligned:
        mask[0, 5:], mask[2, ::3] = False, False
    return mask


def _equal(a: Quantizer, b: Quantizer) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def _tie(q: Quantizer, x: Tensor, one: Tensor, two: Tensor) -> bool:
    """Whether two codes of a token are equally near, but for rounding."""
    with torch.no_grad():
        u = q.squash(q.project_in(x[None])).double()
        far = [float((u - q.table(i[None]).double()).square().sum()) for i in (one, two)]
    return abs(far[0] - far[1]) <= TIE * max(far)


def _refused(call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"{what} to be refused by a ValueError")
