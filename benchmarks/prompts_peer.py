"""Side by side with LLMLingua: `python -m benchmarks.prompts_peer [QUESTIONS]`.

The peer has a folder of its own in `out/peers/`, and a process of its own; it reads texts by SmolLM2, as our `surprisal` does.
Its constructor fetches a vocabulary from the network, for statistics alone: what that makes of it as it comes is recorded, and
for the comparison that one call is replaced. What both leave of the questions of `benchmarks.prompt_questions` is counted in
SmolLM2's tokens and answered by it. A text of 1,000 tokens is tried besides.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from time import process_time
from typing import Any

from benchmarks.prompt_questions import write
from benchmarks.prompts import passages
from tokensieve.bench.context.asking import PromptAsker
from tokensieve.bench.context.run import survived
from tokensieve.bench.metrics import METRICS
from tokensieve.bench.questions import Question, read_questions
from tokensieve.bench.results import environment
from tokensieve.core.files import write_json
from tokensieve.prompt.compress import Compressor
from tokensieve.testbed import real

PACKAGE, FOLDER = "llmlingua==0.2.2", Path("out/peers/llmlingua")
DATA, OUT = Path("out/prompts/qa.jsonl"), Path("out/prompts/peer.json")
KEEP, LONG, NEW, BATCH = 0.25, 1000, 20, 8
"""The share that is to stay; tokens of the long text, and of an answer at most; questions answered at once."""
CHILD = """
import json, sys, time
import tiktoken
class Count:
    def encode(self, text, **_): return text.split()
try:
    tiktoken.encoding_for_model("gpt-3.5-turbo")
    told = "works"
except Exception as problem:
    told = f"{type(problem).__name__}: {problem}"
print(json.dumps({"told": told}), flush=True)
tiktoken.encoding_for_model = lambda name: Count()
from llmlingua import PromptCompressor
made = PromptCompressor(sys.argv[1], device_map="cpu")
for line in sys.stdin:
    asked = json.loads(line)
    began = time.process_time()
    try:
        text = made.compress_prompt(asked["context"], question=asked["question"], rate=asked["keep"])["compressed_prompt"]
        print(json.dumps({"text": text, "seconds": time.process_time() - began}), flush=True)
    except Exception as problem:
        print(json.dumps({"problem": f"{type(problem).__name__}: {problem}"}), flush=True)
"""


def peer(lines: list[dict[str, Any]], model: Path) -> tuple[str, list[dict[str, Any]]]:
    """What LLMLingua's constructor makes of this machine as it comes, and what it leaves of texts, in order."""
    if not (FOLDER / "llmlingua").is_dir():
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(FOLDER), PACKAGE], check=True
        )
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(FOLDER)!r})\n{CHILD}", str(model)],
        input="\n".join(map(json.dumps, lines)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    told, *found = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")] or [{"told": ""}]
    if len(found) != len(lines):
        raise RuntimeError(f"LLMLingua ended after {len(found)} of {len(lines)} texts: {ran.stderr[-500:]}")
    return told["told"], found


def main(count: int = 104) -> dict[str, Any]:
    """Texts of so many questions, compressed by all and answered from."""
    if not DATA.exists():
        write(DATA)
    items = read_questions(DATA, count).items
    model, tokenizer = real.load("smollm2")
    compressor, asker = Compressor(tokenizer, lm=(model, tokenizer)), PromptAsker(model, tokenizer, NEW, 0)
    long = {"context": passages(compressor, LONG), "question": "", "keep": KEEP}
    # Its prompts end in the question, which is asked of ours behind the text; so it is given none of its own to append.
    asked = [{"context": list(q.context), "question": "", "keep": KEEP} for q in items]
    told, (*theirs, last) = peer([*asked, long], real.get("smollm2"))
    left = {"llmlingua": theirs}
    for name in ("surprisal", "question"):
        left[name] = []
        for q in items:
            compressor.forget()
            began = process_time()
            text = compressor(q.context, q.question, KEEP, method=name).text
            left[name].append({"text": text, "seconds": process_time() - began})
    rows = {name: row(items, made, compressor, asker) for name, made in left.items()}
    for name, found in rows.items():
        print(name, found, flush=True)
    over = last.get("problem") or f"{compressor.count(last['text'])} tokens"
    print(f"the constructor's call of the network: {told}\na text of about {LONG} tokens: {over}")
    report = {
        "keep": KEEP, "package": PACKAGE, "rows": rows, "constructor": told, f"{LONG} tokens": over, "environment": environment(),
    }  # fmt: skip
    write_json(OUT, report)
    return report


def row(
    items: Sequence[Question], made: Sequence[dict[str, Any]], compressor: Compressor, asker: PromptAsker
) -> dict[str, Any]:
    """What one left of the texts comes to, over those that it did not fail on."""
    ran = [(q, m) for q, m in zip(items, made, strict=True) if "text" in m]
    out = {
        "questions": len(ran), "failed": len(items) - len(ran),
        "problems": sorted({m["problem"] for m in made if "text" not in m}),
    }  # fmt: skip
    if not ran:
        return out
    said = [
        reply.said
        for some in (ran[i : i + BATCH] for i in range(0, len(ran), BATCH))
        for reply in asker.together([(m["text"], q.question, q.system) for q, m in some])
    ]
    right = [METRICS.get("contains")(s, q.answers) for s, (q, _) in zip(said, ran, strict=True)]
    whole = sum(compressor.count("\n\n".join(q.context)) for q, _ in ran)
    return out | {
        "of the tokens": round(sum(compressor.count(m["text"]) for _, m in ran) / whole, 4),
        "survived": round(mean(survived(m["text"], q.answers) for q, m in ran), 4),
        "answered": round(mean(right), 4),
        "CPU seconds": round(median(m["seconds"] for _, m in ran), 3),
    }


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 104)
