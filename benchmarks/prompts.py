"""What compressing prompts costs, in CPU seconds of one thread, each as a ratio to something else of the same run.

SmolLM2 answers and foresees; MiniLM reads sentences. `python -m benchmarks.prompts [TOKENS [PART ...]]`: TOKENS of the long text,
8192 if not given; parts are question, tcra, surprisal, whole, many and crag.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch

import tokensieve as ts
from benchmarks.prompt_questions import FIRST, LAST, THINGS, docs
from benchmarks.systems.prompts import reviews
from tokensieve.bench.context.asking import PromptAsker
from tokensieve.bench.results import environment
from tokensieve.core.files import write_json
from tokensieve.prompt.compress import Compressor
from tokensieve.sites.prompt import vectors
from tokensieve.sites.prompt.cutting import cut
from tokensieve.testbed import real

LIMITS = {
    "question over prefill": 0.08, "question, cached, over prefill": 0.005, "tcra over one pass": 1.1,
    "surprisal over one pass": 1.1, "compress and answer over the whole": 0.4, "crag: tokens, 75 over 4": 1.2,
    "many: seconds a passage, 10,000 over 2,500": 1.2,
}  # fmt: skip
QUESTION = "Which function removes a directory tree?"
SHORT, ROUNDS = 2000, 3
"""Tokens of the text that is answered from, and of the text that tcra reads; rounds in turns."""
MANY = (2500, 10_000)
"""Passages of a large search."""


def seconds(work: Callable[[], Any], rounds: int = 1) -> float:
    """CPU seconds of a call, the median of some."""
    taken = []
    for _ in range(rounds):
        began = process_time()
        work()
        taken.append(process_time() - began)
    return median(taken)


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any]) -> float:
    """CPU seconds of one call over those of another: the median of rounds in turns, behind one round that is not counted."""
    seconds(ours), seconds(theirs)
    return median(seconds(ours) / seconds(theirs) for _ in range(ROUNDS))


def _held() -> float:
    """The most megabytes that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def passages(compressor: Compressor, tokens: int) -> list[str]:
    """The help of functions, as many as make up so many tokens."""
    out, held = list[str](), 0
    for text in docs().values():
        if held >= tokens:
            break
        out.append(text[:1500])
        held += compressor.count(out[-1]) + 1
    return out


class Speed:
    """The models, and what was measured."""

    def __init__(self, tokens: int):
        self.model, self.tokenizer = real.load("smollm2")
        self.encoder: Any = ts.load_encoder()
        self.compressor = Compressor(self.tokenizer, encoder=self.encoder, lm=(self.model, self.tokenizer))
        self.tokens, self.long = tokens, passages(self.compressor, tokens)
        self.found: dict[str, float] = {}

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> None:
        """A forward pass over a text, with the logits of the last token alone, as a prefill has them."""
        ids = self.tokenizer("\n\n".join(texts), return_tensors="pt", verbose=False)["input_ids"][:, : self.tokens]
        self.model(ids, use_cache=True, logits_to_keep=1)

    def question(self) -> None:
        """Compressing with nothing read before, and with everything, against the prefill of the whole text."""
        prefill = seconds(lambda: self.forward(self.long))
        run = lambda: self.compressor(self.long, QUESTION, 0.25)  # noqa: E731
        self.compressor.forget()
        cold, warm = seconds(run), seconds(run, ROUNDS)
        self.found |= {
            "prefill s": prefill,
            "question over prefill": cold / prefill,
            "question, cached, over prefill": warm / prefill,
        }

    def tcra(self) -> None:
        """Leaving words out, against one pass of MiniLM over as many tokens in full batches of one length."""
        text, read = "\n\n".join(passages(self.compressor, min(SHORT, self.tokens) // 4)), list[str]()
        words, sentences = cut(text, [0], "word"), cut(text, [0], "sentence")

        def embed(texts: Sequence[str]) -> Any:
            read.extend(texts)
            return self.encoder.documents(texts).single

        vectors.shifts(words, sentences, embed)
        count = sum(len(self.encoder.tokenizer(t)["input_ids"]) for t in read)
        ids = torch.randint(1000, 20000, (4096 // max(8, round(count / len(read))), max(8, round(count / len(read)))))
        batches = max(1, round(count / ids.numel()))
        found = ratio(
            lambda: vectors.shifts(words, sentences, lambda texts: self.encoder.documents(texts).single),
            lambda: self.embedded(ids, batches),
        )
        found *= batches * ids.numel() / count
        self.found |= {"tcra: words": len(words.spans), "tcra: tokens read": count, "tcra over one pass": found}

    @torch.no_grad()
    def embedded(self, ids: torch.Tensor, batches: int) -> None:
        """Passes of MiniLM."""
        for _ in range(batches):
            self.encoder.model(input_ids=ids)

    def surprisal(self) -> None:
        """Choosing words by surprisal, against one forward pass over the same text."""
        some = ["\n\n".join(passages(self.compressor, min(SHORT, self.tokens)))]
        self.found["surprisal over one pass"] = ratio(
            lambda: self.compressor(some, keep=0.5, method="surprisal"), lambda: self.scored(some)
        )

    @torch.no_grad()
    def scored(self, texts: Sequence[str]) -> None:
        """A forward pass with the loss of every token."""
        ids = self.tokenizer("\n\n".join(texts), return_tensors="pt", verbose=False)["input_ids"]
        self.model(ids, labels=ids, use_cache=False)

    def whole(self) -> None:
        """Compressing to a quarter and answering, against answering from all of it."""
        some = passages(self.compressor, min(SHORT, self.tokens))
        asker = PromptAsker(self.model, self.tokenizer, 8, 0)

        def ours() -> None:
            self.compressor.forget()
            asker.ask(self.compressor(some, QUESTION, 0.25).text, QUESTION, "")

        self.found["compress and answer over the whole"] = ratio(
            ours, lambda: asker.ask("\n\n".join(some), QUESTION, "")
        )

    def many(self) -> None:
        """Very many passages of one sentence: seconds and memory (above what was held before) a passage."""
        each: dict[int, tuple[float, float]] = {}
        for count in MANY:
            texts = [
                f"The {THINGS[n % 10]} number {n} belongs to {FIRST[n // 10 % 10]} {LAST[n // 100 % 10]}."
                for n in range(count)
            ]
            made, before = Compressor(self.tokenizer, encoder=self.encoder), _held()
            taken = seconds(lambda made=made, texts=texts: made(texts, "Who owns the piano number 2303?", 0.25))
            each[count] = (taken / count, (_held() - before) / count)
            self.found[f"many: ms a passage, {count}"] = 1000 * each[count][0]
            self.found[f"many: MB a thousand passages, {count}"] = 1000 * each[count][1]
        few, most = MANY
        self.found["many: seconds a passage, 10,000 over 2,500"] = each[most][0] / each[few][0]

    def crag(self) -> None:
        """Digests of 4 to 75 reviews: tokens, and time a review."""
        made = {}
        for count in (4, 20, 75):
            texts = reviews(count, 0)
            self.compressor.forget()
            taken = seconds(
                lambda texts=texts: made.update({len(texts): self.compressor(texts, keep=0.999, method="crag").after})
            )
            self.found[f"crag: ms a review, {count}"] = 1000 * taken / count
        self.found |= {"crag: tokens, 75 over 4": made[75] / made[4]}


def main(
    tokens: int = 8192, parts: Sequence[str] = (), out: Path = Path("out/benchmarks/prompts.json")
) -> dict[str, Any]:
    """Some parts, or all; what an earlier run found of others stays in the file."""
    speed = Speed(tokens)
    known = json.loads(out.read_text()) if out.exists() else {"found": {}}
    for part in parts or ("question", "tcra", "surprisal", "whole", "crag", "many"):
        speed.found = {}
        getattr(speed, part)()
        known["found"] |= {k: round(v, 4) for k, v in speed.found.items()}
        known |= {"tokens": tokens, "limits": LIMITS, "environment": environment()}
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, known)
        for key, value in speed.found.items():
            print(f"{key}: {value:.4g}" + (f" (at most {LIMITS[key]})" if key in LIMITS else ""), flush=True)
    return known


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8192, sys.argv[2:])
