"""People's own texts: the files of a folder, cut into what is remembered and what comes next."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tokensieve.bench.data import Found
from tokensieve.testbed.lm.tasks import Speech, TaskSample, facts

NEXT = 128
"""Tokens that are to be foreseen behind the context, at most; of a short text a quarter."""
LEAST = 64
"""Tokens of a text that is worth reading."""
FACTS = 4
"""Facts planted in a text, at most: one for every ``ROOM`` tokens."""
ROOM = 128


@dataclass(frozen=True)
class Text:
    """A text as a model reads it.

    Attributes:
        name: its file, relative to the folder.
        ids: its tokens, ``ids[:context]`` being what is remembered; None in ``planted`` where no facts can be told.
        planted: as many tokens of it with facts among them, and questions for these behind it.
        size: bytes of what comes behind the first token after the context: the first is told with every entry.
    """

    name: str
    ids: np.ndarray
    context: int
    planted: TaskSample | None
    size: int

    def to_json(self) -> dict[str, Any]:
        """What tells it from others."""
        return {"name": self.name, "tokens": len(self.ids), "mark": sha256(self.ids.tobytes()).hexdigest()[:16]}


def read_texts(folder: Path, tokenizer: Any, say: Speech | None, window: int, limit: int | None, seed: int) -> Found:
    """The texts of a folder and of those in it, in the order of their names; hidden files are passed over.

    A text shorter than the window is read whole.

    Args:
        say: what facts are told in; None plants none.
        window: tokens of each text that are read, from its beginning.
        limit: at most so many texts.

    Raises:
        FileNotFoundError: no such folder. ValueError: not one file in it can be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--texts {folder}: no such folder")
    files = sorted(
        p for p in folder.rglob("*") if p.is_file() and not any(x.startswith(".") for x in p.relative_to(folder).parts)
    )
    texts: list[Text] = []
    skipped: list[str] = []
    for file in files:
        if limit is not None and len(texts) == limit:
            break
        name = str(file.relative_to(folder))
        try:
            texts.append(_text(name, _ids(file, tokenizer, window), tokenizer, say, (seed, len(texts))))
        except ValueError as error:
            skipped.append(f"{name}: {error}")
    if not texts:
        raise ValueError(
            f"--texts {folder}: none of its {len(files)} files can be read: {'; '.join(skipped[:3]) or 'it is empty'}"
        )
    short = [t for t in texts if len(t.ids) < window]
    notes = (
        [f"{len(short)} of {len(texts)} texts are shorter than the window of {window} tokens and are read whole"]
        if short
        else []
    )
    return Found(texts, skipped, notes)


def _ids(file: Path, tokenizer: Any, window: int) -> np.ndarray:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"no text in UTF-8 (byte {error.start})") from error
    # More characters than any tokenizer makes so many tokens of, so that a long file is not read to its end.
    begun = text[: window * 64].replace("\r\n", "\n")
    ids = np.asarray(tokenizer(begun, verbose=False)["input_ids"][:window], dtype=np.int64)
    if len(ids) < LEAST:
        raise ValueError(f"{len(ids)} tokens; it takes {LEAST}")
    return ids


def _text(name: str, ids: np.ndarray, tokenizer: Any, say: Speech | None, seed: tuple[int, int]) -> Text:
    context = len(ids) - min(NEXT, len(ids) // 4)
    size = len(tokenizer.decode(ids[context + 1 :].tolist()).encode())
    planted = None
    if say is not None:
        count = min(FACTS, max(1, len(ids) // ROOM))
        planted = facts(np.random.default_rng(seed), say, ids, len(ids), count)
    return Text(name, ids, context, planted, max(1, size))
