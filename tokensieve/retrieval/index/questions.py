"""Questions: short sentences of stored passages, which stand for queries where the depth of a search is measured."""

from __future__ import annotations

import re

from tokensieve.retrieval.index.index import Index

COUNT, TRIED = 48, 4
"""Questions, and how many passages are looked at for each."""
WORDS = 4, 12
SENTENCE = re.compile(r"[.!?。！？\n]+")
WORD = re.compile(r"\w+(?:['’.-]\w+)*")


def sampled(index: Index) -> tuple[list[str], list[str]]:
    """Ids of passages at equal steps, and a sentence out of the middle of each, without signs and no two alike."""
    every = sorted(index.ids())
    ids, texts = [], []
    seen: set[str] = set()
    for id in every[:: max(len(every) // (COUNT * TRIED), 1)]:
        held = (index.metadata([id])[0] or {}).get("text", "")
        said = [WORD.findall(part) for part in SENTENCE.split(held)] if isinstance(held, str) else []
        fit = [" ".join(words[: WORDS[1]]) for words in said if len(words) >= WORDS[0]]
        text = fit[len(fit) // 2] if fit else ""
        if text and text.casefold() not in seen:
            seen.add(text.casefold())
            ids.append(id)
            texts.append(text)
    step = max(len(ids) // COUNT, 1)
    return ids[::step][:COUNT], texts[::step][:COUNT]
