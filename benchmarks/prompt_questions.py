"""Questions over Python's help whose answers can be checked, for `tokensieve bench-prompts`: kinds in turn.

number, name, sentence: a made-up fact stands among sentences of the help. function: the help of a few functions that MiniLM finds
for the summary of one of them is the text, and that one's name the answer.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokensieve.core.files import write_text
from tokensieve.retrieval.encoders.loading import load_encoder
from tokensieve.sites.prompt.cutting import cut

MODULES = (
    "argparse", "asyncio", "bisect", "calendar", "collections", "copy", "csv", "difflib", "fnmatch", "functools", "glob",
    "hashlib", "heapq", "html", "inspect", "json", "locale", "logging", "mimetypes", "os.path", "pickle", "platform", "random",
    "shlex",
    "shutil", "statistics", "string", "struct", "subprocess", "tempfile", "textwrap", "tokenize", "traceback", "unicodedata",
    "urllib.parse", "uuid", "warnings", "zipfile",
)  # fmt: skip
PLACES = (
    "vault",
    "archive",
    "greenhouse",
    "laboratory",
    "boathouse",
    "cellar",
    "lighthouse",
    "bakery",
    "observatory",
    "mill",
)
THINGS = ("ledger", "telescope", "spare key", "piano", "kiln", "printing press", "globe", "anchor", "loom", "bell")
FIRST = ("Mara", "Tobias", "Ines", "Henrik", "Leila", "Oskar", "Priya", "Bruno", "Yuki", "Selma")
LAST = ("Okafor", "Lindqvist", "Baptiste", "Novak", "Haddad", "Moreau", "Castillo", "Ekwueme", "Tanaka", "Brandt")
SIGNS = (
    "the red lamp blinks",
    "the whistle blows twice",
    "the gauge passes nine",
    "the water turns cloudy",
    "the door jams",
)
DEEDS = (
    "turn the brass wheel to the left", "call the harbour office", "open the second valve", "ring the copper bell",
    "leave by the north stairs", "cover the lens with a cloth", "pour sand on the floor", "lower the blue flag",
)  # fmt: skip
LINES, PASSAGES, LONGEST = 12, 4, 500
"""Sentences around a fact; passages found for a function, and characters of each."""
SYSTEM = "Answer from the text, in a few words."


def docs() -> dict[str, str]:
    """The help of functions, by name; each begins with its signature."""
    out = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for key, thing in sorted(vars(module).items()):
            text = inspect.getdoc(thing) if inspect.isfunction(thing) and not key.startswith("_") else None
            if text and len(text) > 80 and thing.__module__.partition(".")[0] == module.__name__.partition(".")[0]:
                out.setdefault(f"{name}.{key}", f"{key}{_signature(thing)}\n\n{text}")
    return out


def _signature(thing: Any) -> str:
    return "(" + ", ".join(inspect.signature(thing).parameters) + ")"


def questions(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """``count`` lines, the kinds in turn."""
    helps, rng = docs(), np.random.default_rng(seed)
    lines = [" ".join(s.split()) for text in helps.values() for s in _sentences(text.partition("\n\n")[2])]
    lines = [s for s in dict.fromkeys(lines) if 40 < len(s) < 200 and s[0].isupper() and s[-1] == "."]
    found = _functions(helps, rng)
    for number in range(count):
        kind = ("number", "name", "sentence", "function")[number % 4]
        if kind == "function":
            yield {"id": f"q{number}", "kind": kind, "system": SYSTEM, **next(found)}
            continue
        fact, question, answer = _fact(kind, rng)
        around = [lines[i] for i in rng.choice(len(lines), LINES, replace=False)]
        around.insert(int(rng.integers(LINES + 1)), fact)
        context = [" ".join(around[:5]), " ".join(around[5:9]), " ".join(around[9:])]
        yield {
            "id": f"q{number}",
            "kind": kind,
            "system": SYSTEM,
            "question": question,
            "answer": answer,
            "context": context,
        }


def _fact(kind: str, rng: np.random.Generator) -> tuple[str, str, str]:
    def some(of: tuple[str, ...]) -> str:
        return of[int(rng.integers(len(of)))]

    if kind == "number":
        place, code = some(PLACES), str(int(rng.integers(10_000, 100_000)))
        return f"The access code of the {place} is {code}.", f"What is the access code of the {place}?", code
    if kind == "name":
        thing, person = some(THINGS), f"{some(FIRST)} {some(LAST)}"
        return f"The {thing} belongs to {person}.", f"Who does the {thing} belong to?", person
    sign, deed = some(SIGNS), some(DEEDS)
    return f"When {sign}, everybody has to {deed}.", f"What does everybody have to do when {sign}?", deed


def _functions(helps: dict[str, str], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Functions asked for by the first sentence of their help, among those that MiniLM finds for it."""
    encoder = load_encoder()
    names = list(helps)
    vectors = encoder.documents([helps[n][:LONGEST] for n in names]).single
    assert vectors is not None
    for i in rng.permutation(len(names)):
        name = names[int(i)]
        summary = " ".join(next(iter(_sentences(helps[name].partition("\n\n")[2]))).split())
        plain = name.rpartition(".")[2]
        if not 30 < len(summary) < 160 or plain.lower() in summary.lower() or len(plain) < 4:
            continue
        query = encoder.queries([summary]).single
        near = torch.topk((vectors @ query.T)[:, 0], PASSAGES).indices.tolist()
        if int(i) not in near:
            continue
        context = [helps[names[j]][:LONGEST] for j in sorted(near, key=lambda j: (j * 7919) % 101)]
        yield {"question": f"Which function does this: {summary}", "answer": plain, "context": context}


def _sentences(text: str) -> list[str]:
    return cut(text, [0], "sentence").units() if text.strip() else [""]


def write(file: Path, count: int = 104, seed: int = 0) -> Path:
    """Write the questions, one a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in questions(count, seed)))
    return file


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "out/prompts/qa.jsonl"))
