"""What a real model's cache is asked about: six tasks on texts that any Debian and Python carry.

A text is a function of its task, its length, its number and what the machine has; nothing is drawn but by these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from tokensieve.testbed import lm
from tokensieve.testbed.lm import corpus

NEXT, FACTS, ASKED, WORDS = 64, 8, 4, 32
TASKS = {
    "perplexity": f"of the {NEXT} tokens that follow the beginning of a manual page",
    "facts before": f"one of {FACTS} facts put into Python's reference, its question read with the prompt",
    "facts after": f"{ASKED} of {FACTS} facts put into Python's reference, asked once the cache is compressed",
    "lists": f"a list of {WORDS} words put into Python's reference, begun again once the cache is compressed",
    "code": f"the {NEXT} tokens that follow the beginning of a module of Python's library",
    "summaries": "the line in which a manual page says what it is about, asked once the cache is compressed",
}
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
READ = f"{SYSTEM}<|im_start|>user\nHere is a manual page.\n\n"
ASK = "\n\nIn one line, what is this page about?<|im_end|>\n<|im_start|>assistant\n"
_PAGE = re.compile(r"^NAME\s+[^\n]*? - (?P<line>[^\n]+)\n+(?P<rest>.*)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Text:
    """A prompt and what is asked behind it.

    Attributes:
        ids: all tokens; context: how many of them are the prompt.
        answers: ``(start, end)`` of the tokens that count, behind the prompt.
    """

    ids: np.ndarray
    context: int
    answers: tuple[tuple[int, int], ...]

    @property
    def digest(self) -> str:
        return sha256(self.ids.astype("<i8").tobytes()).hexdigest()[:16]


class Texts:
    """The texts of this machine, as a tokenizer cuts them."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.say = tokenizer, lm.speech(tokenizer)
        self._read: dict[tuple[str, int], tuple[list[Any], Iterator[Any]]] = {}

    def get(self, task: str, length: int, number: int) -> Text:
        """The ``number``-th text of a task: prompt, questions and answers take ``length`` tokens in all.

        Raises:
            ValueError: the machine has fewer such texts.
        """
        rng = np.random.default_rng((11, list(TASKS).index(task), length, number))
        if task in ("perplexity", "code"):
            ids = self._nth("manual" if task == "perplexity" else "code", length, number, self._beginning)
            return Text(ids, length - NEXT, ((length - NEXT, length),))
        if task == "summaries":
            return self._nth("manual", -length, number, self._summary)
        start = int(rng.integers(len(self.reference) - length))
        some = self.reference[start : start + length]
        if task == "lists":
            made = lm.copy(rng, self.say, some, length, WORDS)
            return Text(made.ids, made.context, tuple((i, i + 1) for i in range(*made.answers[0])))
        each = len(self.say.fact((0, 0), (0, 0)))
        asked = ASKED if task == "facts after" else 1
        made = lm.facts(rng, self.say, some, length + (FACTS - asked) * each, FACTS)
        if task == "facts after":
            return Text(made.ids[:length], made.context, made.answers[:ASKED])
        start, end = made.answers[0]
        return Text(made.ids[:end], start, ((start, end),))

    @cached_property
    def _documents(self) -> dict[str, list[str]]:
        sources = {"code": corpus.standard_library, "manual": corpus.manuals}
        # In an order that has nothing to do with names: neighbours are about the same.
        return {
            kind: [d.text for d in sorted(source(), key=lambda d: sha256(d.name.encode()).digest())]
            for kind, source in sources.items()
        }

    @cached_property
    def reference(self) -> np.ndarray:
        """The tokens of Python's reference, one topic after the other."""
        return np.array([i for d in corpus.guide() for i in self._ids(d.text)])

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _nth(self, kind: str, length: int, number: int, make: Callable[[str, int], Any]) -> Any:
        """The ``number``-th that is made of documents of a kind; those that ``make`` gives None for are passed over."""
        found, rest = self._read.setdefault(
            (kind, length), ([], (x for text in self._documents[kind] if (x := make(text, abs(length))) is not None))
        )
        while len(found) <= number:
            one = next(rest, None)
            if one is None:
                raise ValueError(
                    f"this machine has {len(found)} texts of kind {kind!r} of {abs(length)} tokens, not {number + 1}"
                )
            found.append(one)
        return found[number]

    def _beginning(self, text: str, length: int) -> np.ndarray | None:
        ids = self._ids(text) if len(text) > 2 * length else []
        return np.array(ids[:length]) if len(ids) >= length else None

    def _summary(self, text: str, length: int) -> Text | None:
        page = _PAGE.search(text)
        if page is None or len(page["rest"]) < 2 * length:
            return None
        read, ask, answer = self._ids(READ), self._ids(ASK), self._ids(page["line"].strip())
        room = length - len(read) - len(ask) - len(answer)
        body = self._ids(page["rest"])
        if len(body) < room:
            return None
        ids = np.array(read + body[:room] + ask + answer)
        return Text(ids, len(read) + room, ((length - len(answer), length),))
