"""The next byte behind 500 bytes on SmolLM2, beside genlm-bytes 0.2 (K=5, prune_threshold=0), in one process.

`make byte-peer` puts that package and what it imports into out/byte-peer, which nothing else sees. Both begin with nothing read.
Theirs sums over a beam of five partial tokens, and reads the prefix byte by byte, as its documentation does.
`python -m benchmarks.byte_peer 120 500` asks behind as many bytes, and keeps what was measured in out/byte-peer.json.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
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

FOLDER = Path("out/byte-peer")
FILE = Path("out/byte-peer.json")
LENGTHS, TURNS = (500,), 1


def theirs(model: Any, tokenizer: Any) -> Any:
    """A function of a prefix that gives (258,) log-probabilities: of bytes, of a token's end, of the text's."""
    sys.path.append(str(FOLDER))
    from genlm.backend.llm.hf import AsyncTransformer  # type: ignore[import-not-found]
    from genlm.bytes import BeamParams, ByteBeamState  # type: ignore[import-not-found]

    llm = AsyncTransformer(model, tokenizer, timeout=0.0)
    params = BeamParams(K=5, prune_threshold=0.0, eos_byte_strings=[tokenizer.eos_token.encode()])
    loop = asyncio.new_event_loop()
    first = loop.run_until_complete(ByteBeamState.initial(llm, params))

    async def asked(prefix: bytes) -> Any:
        llm.clear_cache()
        state = await first.prefill(prefix)
        return (await state.prune().logp_next()).ps

    return lambda prefix: np.asarray(loop.run_until_complete(asked(prefix)))


def timed(work: Any) -> tuple[float, Any]:
    began = process_time()
    out = work()
    return process_time() - began, out


def main(lengths: Sequence[int] = LENGTHS) -> None:
    torch.set_num_threads(1)
    data = json.loads(FILE.read_text()) if FILE.exists() else {"environment": environment(), "rows": []}
    model, tokenizer = real.load("smollm2")
    peer = theirs(model, tokenizer)
    ts.byte_model(model, tokenizer).next("one")
    for length in lengths:
        for before, word, given in cut_prompts(TURNS, 700)[:TURNS]:
            prefix = (before + given).encode()[-length:].decode(errors="ignore")
            b = ts.byte_model(model, tokenizer)
            own, found = timed(lambda b=b, prefix=prefix: b.next(prefix))
            other, logs = timed(lambda prefix=prefix: peer(prefix.encode()))
            p, q = found.log_probs.exp().numpy(), np.exp(np.r_[logs[:256], logs[257]])
            row = {
                "bytes": len(prefix.encode()),
                "word": word,
                "seconds": own,
                "theirs": other,
                "outside": found.outside,
            }
            row |= {"ratio": own / other, "total variation": float(np.abs(p - q / q.sum()).sum() / 2)}
            data["rows"].append(row)
            FILE.parent.mkdir(parents=True, exist_ok=True)
            write_json(FILE, data)
    table = Table("bytes", "ours, s", "theirs, s", "ratio", "total variation", "outside")
    for row in data["rows"]:
        table.add_row(
            str(row["bytes"]), f"{row['seconds']:.2f}", f"{row['theirs']:.1f}", f"{row['ratio']:.4f}",
            f"{row['total variation']:.2g}", f"{row['outside']:.2g}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main([int(n) for n in sys.argv[1:]] or LENGTHS)
