"""Quantizers beside vector-quantize-pytorch: `python -m benchmarks.quantizers`.

Both take turns in one process, on one thread; a number is the ratio of their medians. Indices are compared on the same codebook.
Writes the table of docs/measured/quantizers.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from vector_quantize_pytorch import FSQ, LFQ, VectorQuantize

import tokensieve as ts
from benchmarks.pages import fill, table
from tokensieve.codec import sign_entropy
from tokensieve.testing.memory import Live

PAGE = Path("docs/measured/quantizers.md")
CODES, TOKENS, ROUNDS = 16384, 2048, 9


def ratio(theirs: Callable[[], Any], ours: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """How many times longer theirs takes: medians of calls in turns, behind one of each that warms up."""
    spent: list[list[float]] = [[], []]
    for i in range(rounds + 1):
        for call, times in zip((theirs, ours), spent, strict=True):
            start = time.perf_counter()
            call()
            if i:
                times.append(time.perf_counter() - start)
    return median(spent[0]) / median(spent[1])


def nearest() -> list[list[str]]:
    """Lookup and training forward of VQ."""
    rows = []
    for dim in (8, 32, 256):
        theirs = VectorQuantize(dim=dim, codebook_size=CODES).eval()
        ours = ts.quantizer("vq", codes=CODES, dim=dim, kmeans=False).eval()
        codes, z = torch.randn(CODES, dim), torch.randn(1, TOKENS, dim)
        theirs._codebook.embed.data.copy_(codes[None])
        ours.codebook.copy_(codes)
        with torch.no_grad():
            one, two = theirs(z)[1][0], ours(z).indices[0, :, 0]
            lookup = ratio(lambda: theirs(z), lambda: ours(z))  # noqa: B023
        far = [(z[0] - codes[i]).double().square().sum(1) for i in (one, two)]
        same = int(((one == two) | ((far[0] - far[1]).abs() <= 1e-6 * far[0])).sum())
        theirs.train(), ours.train()
        forward = ratio(lambda: theirs(z), lambda: ours(z))  # noqa: B023
        rows.append([f"VQ lookup, D = {dim}", f"{lookup:.1f}", "3", f"{same} of {TOKENS} indices the same, or as near"])
        rows.append(
            [
                f"VQ training forward, D = {dim}",
                f"{forward:.1f}",
                "3",
                "moving averages and revival, theirs without revival",
            ]
        )
    return rows


def lookups() -> list[list[str]]:
    """Lookup of codes without a codebook."""
    out = []
    for name, theirs, ours, dim in (
        ("FSQ lookup, 15,360 codes", FSQ([8, 8, 8, 6, 5]), ts.quantizer("fsq", levels=(8, 8, 8, 6, 5)), 5),
        ("LFQ lookup, 14 bits", LFQ(dim=14), ts.quantizer("lfq", bits=14), 14),
    ):
        z = torch.randn(1, 2 * TOKENS, dim)
        theirs.eval(), ours.eval()
        with torch.no_grad():
            out.append([name, f"{ratio(lambda: theirs(z), lambda: ours(z), 101):.2f}", "1", ""])  # noqa: B023
    return out


def entropies() -> list[list[str]]:
    """Forward and backward of the entropy of sign codes, and what it holds."""
    out = []
    for bits, goal in ((12, "20"), (14, "60")):
        theirs, ours = LFQ(dim=bits).train(), ts.quantizer("lfq", bits=bits).train()
        z = (0.01 * torch.randn(1, 1024, bits)).requires_grad_()
        calls = (lambda: theirs(z)[2].backward(), lambda: ours(z).loss.backward())  # noqa: B023
        out.append(
            [f"LFQ entropy, forward and backward, {bits} bits, 1,024 tokens", f"{ratio(*calls, 5):.0f}", goal, ""]
        )
    peaks = []
    z = (0.01 * torch.randn(1, 4096, 14)).requires_grad_()
    for made in (lambda: LFQ(dim=14).train()(z)[2], lambda: ts.quantizer("lfq", bits=14).train()(z).loss):
        with Live() as seen:
            made().backward()
        peaks.append(seen.peak / 1e6)
    told = f"{peaks[0]:.0f} MB against {peaks[1]:.1f} MB of tensors alive at once"
    out.append(["the same, memory, 14 bits, 4,096 tokens", f"{peaks[0] / peaks[1]:.0f}", "50", told])
    z = (0.01 * torch.randn(4096, 18)).requires_grad_()
    with Live() as seen:
        each, batch = sign_entropy(z)
        (each - batch).backward()
    held = f"{seen.peak / 1e6:.0f} MB; {float(batch.detach()):.2f} of at most {18 * math.log(2):.2f} nats"
    out.append(["18 bits, 4,096 tokens", "", "256 MB", held])
    return out


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [*nearest(), *lookups(), *entropies()]
    made = table(["work", "theirs / ours", "asked for", ""], rows)
    versions = f"torch {version('torch')}, vector-quantize-pytorch {version('vector-quantize-pytorch')}"
    fill(PAGE, "speed", f"{versions}, one thread.\n\n{made}")


if __name__ == "__main__":
    main()
