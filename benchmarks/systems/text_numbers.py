"""A check of how digits are cut, and one of words as Huffman codes: small language models from the ground up."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

from benchmarks.systems import small
from benchmarks.systems.bed import CheckContext, Outcome, check
from benchmarks.systems.text_answers import END, Pair, answers, llama, teach
from benchmarks.systems.tokenizers import MB, documents, trained
from tokensieve.text.config import TokenizerConfig
from tokensieve.text.cutting import untrained
from tokensieve.text.words.huffman import HuffmanWords

SCHEMES = ("r2l", "l2r", "single", "comma")
BASE = 4
LENGTHS = range(4, 8)
ADDED, ASKED = 700, 150
"""Steps of 64 additions; additions asked of each kind."""


def written(value: int) -> str:
    """A number in digits 0 to 3."""
    out = ""
    while value:
        value, digit = divmod(value, BASE)
        out = str(digit) + out
    return out or "0"


def addition(rng: random.Random) -> tuple[str, str]:
    """Two numbers of as many digits, and their sum."""
    n = rng.choice(LENGTHS)
    a, b = (rng.randrange(BASE ** (n - 1), BASE**n) for _ in range(2))
    return f"{written(a)}+{written(b)}=", written(a + b)


class Cutter:
    """Additions as rows of ids, digits cut by one scheme of the recipes."""

    def __init__(self, numbers: str):
        self._tokenizer: Tokenizer = untrained(TokenizerConfig(numbers=numbers))
        digits = [f"{v:0{n}d}" for n in (1, 2, 3) for v in range(10**n) if set(f"{v:0{n}d}") <= set("0123")]
        self.tokens = ["", "+", "=", ",", *digits]
        self._ids = {t: i for i, t in enumerate(self.tokens)}

    def __call__(self, text: str) -> list[int]:
        normal = self._tokenizer.normalizer
        text = text if normal is None else normal.normalize_str(text)
        return [self._ids[p] for p, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text)]

    def text(self, ids: Sequence[int]) -> str:
        return "".join(self.tokens[i] for i in ids).replace(",", "")


@check(120)
def direction(_: CheckContext) -> Outcome:
    """Additions of two numbers of 4 to 7 digits in base 4, digits in triples from the right, from the left, single, and in
    triples with commas: a language model of two layers for each, in equal steps. Right answers where the sum is longer than its
    operands and where it is not; the digits, from the left, that are wrong in sums of 8."""
    asked = random.Random(1)
    pool = list(dict.fromkeys(addition(asked) for _ in range(20 * ASKED)))
    longer = [p for p in pool if len(p[1]) > (len(p[0]) - 2) / 2][:ASKED]
    equal = [p for p in pool if len(p[1]) == (len(p[0]) - 2) / 2][:ASKED]
    held = {given for given, _ in (*longer, *equal)}
    n: dict[str, Any] = {"asked of each": ASKED}
    for scheme in SCHEMES:
        cutter = Cutter(scheme)
        model = llama(len(cutter.tokens), 64)

        def make(i: int, cutter: Cutter = cutter) -> Pair:
            rng = random.Random(i)
            given, total = next(p for p in iter(lambda: addition(rng), None) if p[0] not in held)
            return cutter(given), cutter(total)

        teach(f"sums, {scheme}", model, make, ADDED, 64, 4e-3)
        for kind, pairs in (("longer", longer), ("as long", equal)):
            said = [cutter.text(a) for a in answers(model, [cutter(g) for g, _ in pairs], 14)]
            n[f"right, {scheme}, {kind}"] = round(
                sum(a == t for a, (_, t) in zip(said, pairs, strict=True)) / len(pairs), 4
            )
            if kind == "longer":
                most = max(LENGTHS) + 1
                rows = [(a.ljust(most), t) for a, (_, t) in zip(said, pairs, strict=True) if len(t) == most]
                n[f"wrong by digit, {scheme}"] = [
                    round(sum(a[i] != t[i] for a, t in rows) / len(rows), 3) for i in range(most)
                ]
    return n["right, r2l, longer"] > n["right, l2r, longer"], n


SYMBOLS, LEARNED = 1024, 300
"""Symbols of Huffman codes and tokens of the BPE; steps of 8 windows of 128 symbols."""


def bits_per_character(name: str, encode: Callable[[str], list[int]], size: int) -> float:
    """A language model of two layers trained on what is written so, and judged on held-out text."""
    learned = np.concatenate([np.array([END, *encode(t)]) for t in texts(False)])
    model = llama(size, 128)
    windows = small.windows(torch.from_numpy(learned), 129)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return small.next_token(model(input_ids=rows).logits, rows)

    small.train(name, model, loss, windows, LEARNED, 2e-3, 8)
    nats, characters = 0.0, 0
    with torch.no_grad():
        for text in texts(True):
            ids = encode(text)
            for at in range(0, len(ids), 256):
                row = torch.tensor([[END, *ids[at : at + 256]]])
                logits = model(input_ids=row[:, :-1]).logits[0]
                nats += float(cross_entropy(logits.float(), row[0, 1:], reduction="sum"))
            characters += len(text)
    return float(nats / np.log(2) / characters)


@cache
def texts(held: bool) -> tuple[str, ...]:
    """2 MB of code to learn from; 60 kB of other files, the beginning of each, to judge by."""
    if not held:
        return tuple(d.text for d in documents("code", False, 2 * MB))
    return tuple(d.text[:4000] for d in documents("code", True, MB))[:15]


@check(281)
def frequency(_: CheckContext) -> Outcome:
    """Python's library, 2 MB, as bytes, as words in Huffman codes over 1,023 symbols, and as a BPE of 1,024 tokens: a language
    model of two layers for each, in equal steps of as many symbols. Bits for each character of held-out text; the share of what
    BPE gains over bytes; and all texts come back."""
    coder = HuffmanWords.train(texts(False), SYMBOLS - 1)
    bpe = trained("code", 2 * MB, TokenizerConfig(vocab=SYMBOLS)).tokenizer
    ways: dict[str, tuple[Callable[[str], list[int]], int]] = {
        "bytes": (lambda t: [b + 1 for b in t.encode()], 257),
        "Huffman": (lambda t: [s + 1 for s in coder.encode(t)], SYMBOLS),
        "BPE": (lambda t: bpe.encode(t).ids, SYMBOLS),
    }
    lost = sum(coder.decode(coder.encode(t)) != t for t in texts(True))
    n: dict[str, Any] = {"texts lost": lost}
    for name, (encode, size) in ways.items():
        n[f"characters/symbol, {name}"] = round(
            sum(map(len, texts(True))) / sum(len(encode(t)) for t in texts(True)), 3
        )
        n[f"bits/character, {name}"] = round(bits_per_character(name, encode, size), 4)
    least, most = n["bits/character, BPE"], n["bits/character, bytes"]
    n["share of the gain"] = round((most - n["bits/character, Huffman"]) / (most - least), 3)
    return not lost and least < n["bits/character, Huffman"] < most, n
