"""Prompts cut inside a word that they hold before, on SmolLM2: is the word completed?

Four ways: greedy decoding of the prompt as it stands, transformers' `token_healing`, one token back (`align`), and byte by byte
(`generate` of the byte model). Beside it prompts that end behind a word: how many answers one token back changes. Prompts are
held-out Python; `python -m benchmarks.cut_prompts` goes on where it was interrupted, by `out/cut-prompts.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import tokensieve as ts
from benchmarks.systems.text_bytes import completes, cut_prompts
from tokensieve.bench.results import environment
from tokensieve.core.files import write_json
from tokensieve.testbed import real

PROMPTS, CONTEXT, BATCH, NEW = 200, 160, 20, 6
"""Prompts; characters before the word; prompts at once; tokens of an answer, those taken back not counted."""
FILE = Path("out/cut-prompts.json")
Answers = list[bytes | None]


class Ways:
    """The ways to go on with prompts, each giving what follows; None where a way came to nothing."""

    def __init__(self) -> None:
        self.model, self.tokenizer = real.load("smollm2")
        self.bytes = ts.byte_model(self.model, self.tokenizer)

    @torch.no_grad()
    def naive(self, prompts: Sequence[str], words: Sequence[int] = ()) -> Answers:
        rows = self.tokenizer(
            list(prompts), return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        )
        made = self.model.generate(**rows, max_new_tokens=NEW, do_sample=False)
        return [self._text(row) for row in made[:, rows.input_ids.shape[1] :].tolist()]

    @torch.no_grad()
    def align(self, prompts: Sequence[str], words: Sequence[int] = ()) -> Answers:
        given = self.bytes.align(list(prompts), back=1)
        made = self.model.generate(**given.inputs, max_new_tokens=NEW + 1, do_sample=False)
        return list(given.completions(made))

    @torch.no_grad()
    def token_healing(self, prompts: Sequence[str], words: Sequence[int] = ()) -> Answers:
        """One prompt at a time: it raises for some, and changes others."""
        out: Answers = []
        for prompt in prompts:
            rows = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
            try:
                made = self.model.generate(
                    **rows, max_new_tokens=NEW, do_sample=False, token_healing=True, tokenizer=self.tokenizer
                )
            except KeyError:
                out.append(None)
                continue
            text = self.tokenizer.decode(made[0], skip_special_tokens=True)
            begun = text.lstrip().startswith(prompt.strip())
            out.append(text.lstrip()[len(prompt.strip()) :].encode() if begun else None)
        return out

    def exact(self, prompts: Sequence[str], words: Sequence[int] = ()) -> Answers:
        """As many bytes as the word lacks, and one."""
        return [self.bytes.generate(p, max_bytes=n + 1) for p, n in zip(prompts, words, strict=True)]

    def _text(self, ids: Sequence[int]) -> bytes:
        return self.bytes.spelling.joined([i for i in ids if i not in self.bytes.spelling.special])


def kept(rows: dict[str, Any]) -> dict[str, Any]:
    FILE.parent.mkdir(parents=True, exist_ok=True)
    write_json(FILE, rows)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    data = json.loads(FILE.read_text()) if FILE.exists() else {"environment": environment(), "cut": {}, "uncut": {}}
    prompts = sorted(cut_prompts(PROMPTS, CONTEXT))  # those of one text stand beside each other
    whole = list(dict.fromkeys(b + w for b, w, _ in cut_prompts(12 * PROMPTS, CONTEXT)))[:PROMPTS]
    ways = Ways()
    ways.naive(whole[:1])
    each: dict[str, Callable[..., Answers]] = {
        "naive": ways.naive, "token_healing": ways.token_healing, "align": ways.align, "exact": ways.exact,
    }  # fmt: skip
    for at in track(range(0, PROMPTS, BATCH), "cut", console=Console(stderr=True)):
        part = prompts[at : at + BATCH]
        texts, rest = [b + g for b, _, g in part], [len(w) - len(g) for _, w, g in part]
        row = data["cut"].setdefault(str(at), {})
        for name, way in each.items():
            if name in row:
                continue
            began = process_time()
            said = way(texts, rest)
            row[name] = {"seconds": process_time() - began, "failed": sum(s is None for s in said)}
            row[name]["right"] = [completes(s or b"", w, g) for s, (_, w, g) in zip(said, part, strict=True)]
            kept(data)
    for at in track(range(0, PROMPTS, BATCH), "uncut", console=Console(stderr=True)):
        if str(at) in data["uncut"]:
            continue
        texts = whole[at : at + BATCH]
        both = zip(ways.naive(texts), ways.align(texts), strict=True)
        shortest = ((a or b"", b or b"") for a, b in both)
        data["uncut"][str(at)] = [a[: min(len(a), len(b))] != b[: min(len(a), len(b))] for a, b in shortest]
        kept(data)
    show(data, list(each))


def show(data: dict[str, Any], names: Sequence[str]) -> None:
    table = Table("way", "words completed", "of", "failed", "time / naive", title="cut inside a word")
    total = {n: sum(r[n]["seconds"] for r in data["cut"].values()) for n in names}
    for name in names:
        right = [x for row in data["cut"].values() for x in row[name]["right"]]
        failed = sum(row[name]["failed"] for row in data["cut"].values())
        table.add_row(name, str(sum(right)), str(len(right)), str(failed), f"{total[name] / total['naive']:.2f}")
    Console().print(table)
    changed = [x for row in data["uncut"].values() for x in row]
    Console().print(f"behind a whole word, one token back changes {sum(changed)} of {len(changed)} answers")


if __name__ == "__main__":
    main()
