"""Side by side with LLMLingua: `python -m benchmarks.prompts_peer [QUESTIONS]`.

The peer has a folder of its own in `out/peers/`, and a process of its own; it reads texts by SmolLM2, as our `surprisal` does.
Its constructor fetches a vocabulary from the network, for statistics alone: that one call is replaced. What both leave
of the questions of `benchmarks.prompt_questions` is counted in SmolLM2's tokens and answered by it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, median
from time import process_time
from typing import Any

from benchmarks.prompt_questions import write
from tokensieve.bench.context.asking import PromptAsker
from tokensieve.bench.context.run import survived
from tokensieve.bench.metrics import METRICS
from tokensieve.bench.questions import read_questions
from tokensieve.bench.results import environment
from tokensieve.core.files import write_json
from tokensieve.prompt.compress import Compressor
from tokensieve.testbed import real

PACKAGE, FOLDER = "llmlingua==0.2.2", Path("out/peers/llmlingua")
DATA, OUT = Path("out/prompts/qa.jsonl"), Path("out/prompts/peer.json")
KEEP = 0.25
CHILD = """
import json, sys, time
import tiktoken
class Count:
    def encode(self, text, **_): return text.split()
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


def peer(lines: list[dict[str, Any]], model: Path) -> list[dict[str, Any]]:
    """What LLMLingua leaves of texts, in order."""
    if not (FOLDER / "llmlingua").is_dir():
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(FOLDER), PACKAGE], check=True
        )
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(FOLDER)!r})\n{CHILD}", str(model)],
        input="\n".join(map(json.dumps, lines)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    if len(found) != len(lines):
        raise RuntimeError(f"LLMLingua ended after {len(found)} of {len(lines)} texts: {ran.stderr[-500:]}")
    return found


def main(count: int = 104) -> dict[str, Any]:
    """Texts of so many questions, compressed by both and answered from."""
    if not DATA.exists():
        write(DATA)
    items = read_questions(DATA, count).items
    # Its prompts end in the question, which is asked of ours behind the text; so it is given none of its own to append.
    left = {
        "llmlingua": peer(
            [{"context": list(q.context), "question": "", "keep": KEEP} for q in items], real.get("smollm2")
        )
    }
    model, tokenizer = real.load("smollm2")
    compressor, asker = Compressor(tokenizer, lm=(model, tokenizer)), PromptAsker(model, tokenizer, 10, 0)
    for name in ("surprisal", "question"):
        left[name] = []
        for q in items:
            compressor.forget()
            began = process_time()
            text = compressor(q.context, q.question, KEEP, method=name).text
            left[name].append({"text": text, "seconds": process_time() - began})
    rows = {}
    for name, made in left.items():
        ran = [(q, m) for q, m in zip(items, made, strict=True) if "text" in m]
        whole = sum(compressor.count("\n\n".join(q.context)) for q, _ in ran)
        rows[name] = {
            "questions": len(ran), "failed": len(items) - len(ran),
            "problems": sorted({m["problem"] for m in made if "text" not in m}),
            "of the tokens": round(sum(compressor.count(m["text"]) for _, m in ran) / whole, 4) if ran else None,
            "survived": round(mean(survived(m["text"], q.answers) for q, m in ran), 4) if ran else None,
            "answered": round(
                mean(METRICS.get("contains")(asker.ask(m["text"], q.question, q.system).said, q.answers) for q, m in ran), 4
            ) if ran else None,
            "CPU seconds": round(median(m["seconds"] for _, m in ran), 3) if ran else None,
        }  # fmt: skip
        print(name, rows[name], flush=True)
    report = {"keep": KEEP, "package": PACKAGE, "rows": rows, "environment": environment()}
    write_json(OUT, report)
    return report


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 104)
