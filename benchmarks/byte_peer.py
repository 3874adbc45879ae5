"""The next byte behind 500 bytes on SmolLM2, beside genlm-bytes 0.2 (K=5, prune_threshold=0), in one process.

`make byte-peer` puts that package and what it imports into out/byte-peer, which nothing else sees. Both begin with nothing read.
Theirs sums over a beam of five rows of tokens, and reads the prefix byte by byte, as its documentation does. The beam also holds
rows that the tokenizer would never write, which ours leaves out: beside the whole beam stands what its proper rows alone say, and
the share of the beam's weight that the others have.
`python -m benchmarks.byte_peer 120 500` asks behind as many bytes, and keeps what was measured in out/byte-peer.json.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import tokensieve as ts
from benchmarks.systems.text_bytes import cut_prompts
from tokensieve.bench.results import environment
from tokensieve.core.files import write_json
from tokensieve.testbed import real
from tokensieve.text.proper import Spelling, is_proper

FOLDER = Path("out/byte-peer")
FILE = Path("out/byte-peer.json")
LENGTHS, TURNS = (500,), 1


def theirs(model: Any, tokenizer: Any, spelling: Spelling) -> Callable[[bytes], tuple[Any, Any, float, float]]:
    """A function of a prefix that gives (258,) log-probabilities of bytes, of a token's end, and of the text's; those of the
    beam's proper rows alone, None where it holds none; the weight of the others; and seconds, of the first."""
    sys.path.append(str(FOLDER))
    from genlm.backend.llm.hf import AsyncTransformer  # type: ignore[import-not-found]
    from genlm.bytes import BeamParams, ByteBeamState  # type: ignore[import-not-found]

    llm = AsyncTransformer(model, tokenizer, timeout=0.0)
    params = BeamParams(K=5, prune_threshold=0.0, eos_byte_strings=[tokenizer.eos_token.encode()])
    loop = asyncio.new_event_loop()
    first = loop.run_until_complete(ByteBeamState.initial(llm, params))

    async def asked(prefix: bytes) -> tuple[Any, Any, float, float]:
        llm.clear_cache()
        began = process_time()
        beam = (await first.prefill(prefix)).prune()
        logs = (await beam.logp_next()).ps
        seconds = process_time() - began
        proper = [s for s in beam.states if is_proper(spelling, s.lm_state.context[1:])]
        share = sum(math.exp(s.weight - beam.logZ) for s in proper)
        return logs, (await ByteBeamState(proper, params).logp_next()).ps if proper else None, 1 - share, seconds

    return lambda prefix: loop.run_until_complete(asked(prefix))


def variation(p: np.ndarray, logs: Any) -> float:
    q = np.exp(np.r_[logs[:256], logs[257]])
    return float(np.abs(p - q / q.sum()).sum() / 2)


def main(lengths: Sequence[int] = LENGTHS) -> None:
    torch.set_num_threads(1)
    data = json.loads(FILE.read_text()) if FILE.exists() else {"environment": environment(), "rows": []}
    model, tokenizer = real.load("smollm2")
    b = ts.byte_model(model, tokenizer)
    peer = theirs(model, tokenizer, b.spelling)
    b.next("one")
    for length in lengths:
        for before, word, given in cut_prompts(TURNS, 700)[:TURNS]:
            prefix = (before + given).encode()[-length:].decode(errors="ignore")
            b = ts.byte_model(model, tokenizer)
            began = process_time()
            found = b.next(prefix)
            own = process_time() - began
            logs, proper, improper, other = peer(prefix.encode())
            p = found.log_probs.exp().numpy()
            row = {"bytes": len(prefix.encode()), "word": word, "seconds": own, "theirs": other, "ratio": own / other}
            row |= {"outside": found.outside, "improper rows of the beam": improper}
            near = None if proper is None else variation(p, proper)
            row |= {"total variation": variation(p, logs), "to its proper rows": near}
            data["rows"].append(row)
            FILE.parent.mkdir(parents=True, exist_ok=True)
            write_json(FILE, data)
    table = Table(
        "bytes", "ours, s", "theirs, s", "ratio", "improper", "total variation", "to its proper rows", "outside"
    )
    for row in data["rows"]:
        proper = row["to its proper rows"]
        near = "it holds none" if proper is None else f"{proper:.2g}"
        table.add_row(
            str(row["bytes"]), f"{row['seconds']:.2f}", f"{row['theirs']:.1f}", f"{row['ratio']:.4f}",
            f"{row['improper rows of the beam']:.2g}", f"{row['total variation']:.2g}", near,
            f"{row['outside']:.2g}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main([int(n) for n in sys.argv[1:]] or LENGTHS)
