"""A model under another vocabulary: extended or transplanted, with what it saves beside what it loses."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tokensieve.text import models
from tokensieve.text.corpus import Document
from tokensieve.text.extend import Extended
from tokensieve.text.rows import INITS, Gap
from tokensieve.text.transplant import gap, transplanted
from tokensieve.text.tuning import Tuning, facts_of

EXCERPT = 2048
"""Bytes of an excerpt that bits are counted on, at least where a text has them."""
KEPT = 20
"""Steps after which a run is put down."""
Step = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Bits:
    """A vocabulary on held-out texts.

    Attributes:
        name: which; tokens: that the texts take; bits: per byte that the model needs for them.
    """

    name: str
    tokens: int
    bits: float


def split(documents: Sequence[Document], most: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts to learn from, and held-out ones to judge by.

    A twentieth of the documents is held out, drawn at random; of a single one its last tenth. Of what is held out excerpts of
    about ``most`` bytes are used.
    """
    if len(documents) == 1:
        text = documents[0].text
        at = max(len(text) - max(len(text) // 10, 1), 1)
        learned, held = [text[:at]], [text[at:] or text]
    else:
        order = list(range(len(documents)))
        random.Random(seed).shuffle(order)
        out = set(order[: max(len(order) // 20, 1)])
        learned = [d.text for i, d in enumerate(documents) if i not in out]
        held = [d.text for i, d in enumerate(documents) if i in out]
    return learned, shortened(held, most)


def shortened(texts: Sequence[str], most: int, seed: int = 0) -> list[str]:
    """Excerpts of texts, of about ``most`` bytes together: at least 2,048 bytes each where a text has them, from a line drawn at
    random, since beginnings of documents are more alike than the rest."""
    each, rng = max(most // max(len(texts), 1), EXCERPT), random.Random(seed)
    out, size = [], 0
    for text in texts:
        if size >= most:
            break
        data = text.encode()
        at = rng.randrange(max(len(data) - each, 0) + 1)
        at = data.find(b"\n", at) + 1 if at else 0
        part = data[at : at + min(each, most - size)].decode(errors="ignore")
        out.append(part)
        size += len(part.encode())
    return [t for t in out if t]


def count(tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    """Tokens of texts, without special ones."""
    return sum(len(e) for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False))


def extended(model: Any, grown: Extended, init: str = "mean") -> Any:
    """The model with rows for new tokens, in place: each the mean of its parts' by default. Old rows stay bit for bit, and a
    matrix that is larger than the vocabulary never shrinks."""
    rows, head = models.embeddings(model)
    size = max(len(rows), max(grown.added) + 1)
    return models.with_rows(
        model, _longer(rows, grown, size, init), None if head is None else _longer(head, grown, size, init)
    )


def _longer(rows: Tensor, grown: Extended, size: int, init: str) -> Tensor:
    old = grown.added[0]
    own = torch.arange(old)
    given = Gap(rows[:old].float(), own, own, torch.tensor(grown.added), grown.parts)
    made = torch.zeros(size, rows.shape[1], dtype=rows.dtype)
    made[: len(rows)] = rows
    made[list(grown.added)] = INITS.get(init)(given).to(rows.dtype)
    return made


def moved(model: Any, gaps: Sequence[Gap], init: str, size: int) -> Any:
    """The model with the rows of another vocabulary, in place; ``gaps`` are those of input and, where apart, output."""
    made = [transplanted(g, init, size) for g in gaps]
    return models.with_rows(model, made[0], made[1] if len(made) > 1 else None)


def gaps_of(
    model: Any,
    old: Tokenizer,
    new: Tokenizer,
    donor: Tensor | None = None,
    seed: int = 0,
    same: Mapping[int, int] | None = None,
) -> list[Gap]:
    """What of a new vocabulary the model has rows for, and what not: of its input, and of its output where that is apart."""
    rows, head = models.embeddings(model)
    return [gap(r.clone(), old, new, donor, seed, same) for r in (rows, head) if r is not None]


def compared(
    model: Any,
    gaps: Sequence[Gap],
    new: Tokenizer,
    size: int,
    texts: Sequence[str],
    step: Step = lambda what, done, of: None,
) -> Iterator[Bits]:
    """Every initialisation that can be made of what is given, judged on the same texts; the model is left with the last."""
    names = [n for n in INITS if gaps[0].donor is not None or not INITS.entry(n).facts.get("donor")]
    tokens = count(new, texts)
    for i, name in enumerate(names):
        moved(model, gaps, name, size)
        yield Bits(name, tokens, models.bits_per_byte(model, new, texts))
        step("initialisations", i + 1, len(names))


@dataclass(frozen=True)
class Point:
    """A point of a recovery: tokens trained on, and bits per byte then."""

    trained: int
    bits: float


def recovery(
    model: Any,
    tokenizer: Tokenizer,
    learned: Sequence[str],
    held: Sequence[str],
    steps: int,
    fresh: Sequence[int] | None,
    points: int = 6,
    step: Step = lambda what, done, of: None,
    most: int = 2_000_000,
    kept: Path | None = None,
) -> list[Point]:
    """Tune a model in place and measure it on held-out texts on the way; the first point is before.

    Args:
        learned: texts to tune on, at most ``most`` characters of them; fresh: rows to train alone; all weights if None.
        points: measurements, the first and the last among them.
        kept: a file in which the run is put down every 20 steps and at each point, and from which it is taken up where it
            stands there already; who asks deletes it. None keeps nothing.

    Raises:
        ValueError: the file is of another run.
    """
    ids: list[int] = []
    for text in learned:
        if most > 0:
            ids += tokenizer.encode(text[:most], add_special_tokens=False).ids
            most -= len(text)
    marks = {round(steps * (i + 1) / (points - 1)) for i in range(points - 1)}
    rate = 1e-3 if fresh is not None else 1e-4
    with Tuning(model, ids, fresh, rate, min(256, len(ids) - 1)) as tuning:
        run = "" if kept is None else f"{tuning.digest()} {steps} {points} {_digest(held)}"
        if kept is not None and kept.exists():
            facts = facts_of(kept)
            if facts["run"] != run:
                raise ValueError(
                    f"{kept} is what an interrupted run of another model, other texts or other options left; delete it, or give "
                    "what that run was given"
                )
            tuning.take_up(kept)
            out = [Point(**p) for p in facts["points"]]
        else:
            out = [Point(0, models.bits_per_byte(model, tokenizer, held))]
        while tuning.done < steps:
            tuning.step()
            step("tuning", tuning.done, steps)
            if tuning.done in marks:
                model.eval()
                trained = tuning.done * tuning.length * tuning.batch
                out.append(Point(trained, models.bits_per_byte(model, tokenizer, held)))
            if kept is not None and (tuning.done in marks or tuning.done % KEPT == 0):
                tuning.put_down(kept, {"run": run, "points": [asdict(p) for p in out]})
    return out


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
