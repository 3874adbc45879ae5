"""A check of infilling formats: the packaged language model, tuned on spans of code in each."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer

from benchmarks.systems import small
from benchmarks.systems.bed import CheckContext, Outcome, check
from benchmarks.systems.text_answers import Pair, answers, teach
from tokensieve.testbed import lm
from tokensieve.text import models
from tokensieve.text.infill import FillFormat
from tokensieve.text.proper import Spelling

WHOLE = FillFormat("<PRE>", "<SUF>", "<MID>")
LINES = FillFormat("<PRE>", "<SUF>", "<MID>", "<START>", "<END>")
NAMES = ("<PRE>", "<SUF>", "<MID>", "<START>", "<END>")
BEFORE, AFTER, SPAN = 240, 120, (3, 16)
"""Characters before and after a span, and of it."""
TUNED, ASKED = 80, 60


@cache
def tokenizer() -> Tokenizer:
    """The packaged one, with the tokens of infilling behind its own."""
    made: Tokenizer = lm.load()[1].backend_tokenizer
    made.add_special_tokens([AddedToken(n, special=True) for n in NAMES])
    return made


def spans(held: bool, count: int) -> list[tuple[str, str, str]]:
    """Spans of code at random characters, with what stands before and after each."""
    code = [d.text for d in small.documents() if d.kind == "code"] if not held else [
        d.text for d in lm.held_out() if d.kind == "code"
    ]  # fmt: skip
    rng, out = random.Random(int(held)), []
    while len(out) < count:
        text = rng.choice(code)
        size = rng.randint(*SPAN)
        if len(text) > BEFORE + AFTER + size and text.isascii():
            at = rng.randrange(BEFORE, len(text) - size - AFTER)
            out.append((text[at - BEFORE : at], text[at : at + size], text[at + size : at + size + AFTER]))
    return out


def in_tokens(prefix: str, middle: str, suffix: str) -> Pair:
    """As is done with whole tokens: the text is cut into tokens once, the span grows to theirs, and its parts keep them."""
    found = tokenizer().encode(prefix + middle + suffix, add_special_tokens=False)
    ends = np.array([end for _, end in found.offsets])
    first = int((ends <= len(prefix)).sum())
    last = int((ends < len(prefix + middle)).sum()) + 1
    ids, mark = found.ids, {n: tokenizer().token_to_id(n) for n in NAMES}
    return [mark["<PRE>"], *ids[:first], mark["<SUF>"], *ids[last:], mark["<MID>"]], ids[first:last]


def in_lines(prefix: str, middle: str, suffix: str) -> Pair:
    """What is read and what is to be answered: the cut line whole, from its beginning to its end."""
    sample = LINES.sample(prefix, middle, suffix)
    assert LINES.assembled(sample) == (prefix, middle, suffix)
    given, answer = sample.split("<MID>")
    return _ids(given + "<MID>"), _ids(answer)


def _ids(text: str) -> list[int]:
    return tokenizer().encode(text, add_special_tokens=False).ids


@check(299)
def infilling(_: CheckContext) -> Outcome:
    """The packaged model, tuned in equal steps on spans of 3 to 16 characters of code: with the span grown to whole tokens, and
    with the cut lines named (FIM-SE); 60 held-out spans at random characters, right where the answer is the text. All samples
    come apart again as they were."""
    learned, held = spans(False, TUNED * 8), spans(True, ASKED)
    ways: dict[str, Any] = {"whole tokens": in_tokens, "FIM-SE": in_lines}
    n: dict[str, Any] = {"spans": ASKED}
    spelling = Spelling(tokenizer())
    for name, pair in ways.items():
        model, _tokenizer = lm.load()
        grown(model)
        rows = [pair(*s) for s in learned]
        teach(name, model, lambda i, rows=rows: rows[i % len(rows)], TUNED, 8, 3e-4)
        if name == "FIM-SE":
            given, wanted = zip(*(in_lines(*s) for s in held), strict=True)
            wanted = [spelling.joined(w) for w in wanted]
        else:
            # What a person has is text cut anywhere: each part is cut into tokens by itself.
            given = [_ids(f"<PRE>{before}<SUF>{after}<MID>") for before, _, after in held]
            wanted = [middle.encode() for _, middle, _ in held]
        said = [spelling.joined(a) for a in answers(model, list(given), 64)]
        n[f"right, {name}"] = sum(a == w for a, w in zip(said, wanted, strict=True))
    # Of six answers that are right in one way alone, all six are by chance in one case of 64.
    return n["right, FIM-SE"] >= n["right, whole tokens"] + 6, n


def grown(model: Any) -> None:
    """Rows for the tokens of infilling, near the mean of all others, in place."""
    rows, head = models.embeddings(model)
    assert head is not None
    more = torch.randn(2, len(NAMES), rows.shape[1], generator=torch.Generator().manual_seed(0))
    new = [torch.cat([r, r.mean(0) + r.std(0) * m]) for r, m in zip((rows, head), more, strict=True)]
    models.with_rows(model, *new)
