"""Checks of tokenizers on text that a Python and a Debian installation carry: no model is trained."""

from __future__ import annotations

import random
import sysconfig
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.reference.turkish_units_61 import linguistic
from benchmarks.systems.bed import CheckContext, Outcome, check
from tokensieve.testbed.lm.corpus import CorpusDocument, guide, is_held_out, manuals, standard_library
from tokensieve.text.config import TokenizerConfig
from tokensieve.text.corpus import Corpus, Document, read_bytes
from tokensieve.text.encoding import Coder
from tokensieve.text.measure import Measured, measure
from tokensieve.text.parallel import names
from tokensieve.text.reach import reach
from tokensieve.text.train import Trained, train

MB = 1_000_000


@cache
def documents(kind: str, held: bool, most: int) -> tuple[Document, ...]:
    """Documents of a kind ("code", "manual", "both"), held out by name or not, of so many bytes, drawn at random."""
    sources = {"code": (standard_library, guide), "manual": (manuals,), "both": (standard_library, guide, manuals)}[
        kind
    ]
    found = [d for source in sources for d in source() if _held(d) == held]
    random.Random(0).shuffle(found)
    out, size = [], 0
    for d in found:
        if size > most:
            break
        out.append(Document(f"{d.kind}/{d.name}", d.text))
        size += len(d.text.encode())
    return tuple(out)


def _held(document: CorpusDocument) -> bool:
    """One document in twenty by its name, and those that the testbed's language model holds out."""
    return is_held_out(document) or sum(document.name.encode()) % 20 == 0


@cache
def trained(kind: str, most: int, config: TokenizerConfig) -> Trained:
    return train(Corpus(documents(kind, False, most), {}), config)


def on(made: Trained, kind: str, most: int = MB) -> Measured:
    return measure([Coder("tokenizer", made.tokenizer)], documents(kind, True, most))[0]


@check(238)
def superwords(_: CheckContext) -> Outcome:
    """Debian manuals and Python's library, 12 MB, 8,192 tokens: 45% learned across words against plain BPE on held-out text;
    every document comes back, and no token is unreachable."""
    plain, across = (trained("both", 12 * MB, TokenizerConfig(vocab=8192, superwords=s)) for s in (0.0, 0.45))
    a, b = on(plain, "both"), on(across, "both")
    n = {
        "tokens, BPE": a.tokens,
        "tokens, superwords": b.tokens,
        "fewer": round(1 - b.tokens / a.tokens, 4),
        "documents lost": len(b.lost),
        "unreachable": len(reach(across.tokenizer).unreachable),
    }
    return n["fewer"] >= 0.10 and not b.lost and n["unreachable"] == 0, n


LANGUAGES = {"en": 1.0, "de": 0.05, "ru": 0.02}
"""Languages of the manuals, and how much of each there is beside English."""


def pages(language: str) -> list[str]:
    root = Path("/usr/share/man") if language == "en" else Path("/usr/share/man") / language
    return [d.text for d in manuals(root)]


@check(225)
def parity(_: CheckContext) -> Outcome:
    """Debian manuals in English, a twentieth as much German, a fiftieth as much Russian, 4,096 tokens: Gini of the tokens that
    CLDR's names take, half of them for balance and half to judge, with parity against plain BPE."""
    size = 4 * MB
    texts: list[Document] = []
    for language, share in LANGUAGES.items():
        held = 0
        for i, text in enumerate(pages(language)):
            if held > size * share:
                break
            texts.append(Document(f"{language}/{i}.txt", text))
            held += len(text.encode())
    both = names(tuple(n for n in LANGUAGES if n != "en"))
    shared = set.intersection(*(set(own) for _, own in both.pairs.values()))
    order = sorted(shared)
    rows = {"en": order}
    for name, (theirs, own) in both.pairs.items():
        of = dict(zip(own, theirs, strict=True))
        rows[name] = [of[text] for text in order]
    dev = {name: tuple(r[::2]) for name, r in rows.items()}
    config = TokenizerConfig(vocab=4096)
    n: dict[str, Any] = {"names": len(order) // 2}
    for title, given in (("BPE", None), ("parity", dev)):
        tokenizer = train(Corpus(tuple(texts), {}), config, given).tokenizer
        cost = {name: sum(len(e) for e in tokenizer.encode_batch_fast(list(r[1::2]))) for name, r in rows.items()}
        n[f"Gini, {title}"] = round(gini(list(cost.values())), 4)
        n[f"tokens, {title}"] = sum(cost.values())
        n[f"vocabulary, {title}"] = tokenizer.get_vocab_size()
    within = n["tokens, parity"] <= 1.03 * n["tokens, BPE"]
    return n["Gini, parity"] < n["Gini, BPE"] / 2 and within, n


def gini(values: list[int]) -> float:
    values, count = sorted(values), len(values)
    return sum((2 * i - count + 1) * v for i, v in enumerate(values)) / (count * sum(values))


@check(93)
def domain(_: CheckContext) -> Outcome:
    """Python's library as the domain, 3 MB: BPE of 8,192 tokens trained on it against one trained on as much of the manuals,
    tokens for each byte of held-out code; and under 3% wrong characters, how often small-token (1,024) and large-token (8,192)
    boundaries of a clean word are kept."""
    own, general = (trained(kind, 3 * MB, TokenizerConfig(vocab=8192)) for kind in ("code", "manual"))
    small = trained("code", 3 * MB, TokenizerConfig(vocab=1024))
    a, b = on(own, "code"), on(general, "code")
    n = {"fewer than general": round(1 - a.tokens / b.tokens, 4)}
    rng = random.Random(0)
    text = " ".join(d.text for d in documents("code", True, MB))[:200_000]
    noisy = "".join(rng.choice("etaoinsr") if c.isalpha() and rng.random() < 0.03 else c for c in text)
    for title, made in (("small", small), ("large", own)):
        clean, dirty = ({s for s, _ in made.tokenizer.encode(t).offsets} for t in (text, noisy))
        n[f"boundaries kept, {title}"] = round(len(clean & dirty) / len(clean | dirty), 4)
    return n["fewer than general"] >= 0.05 and n["boundaries kept, small"] > n["boundaries kept, large"], n


@check(320)
def code(_: CheckContext) -> Outcome:
    """Python's library, 3 MB, 8,192 tokens: BPE across words and punctuation within a line, and Unigram, against BPE that
    punctuation splits; held-out files come back byte for byte."""
    split = TokenizerConfig(vocab=8192, barriers=("words", "newline", "punctuation"))
    n: dict[str, Any] = {}
    plain = on(trained("code", 3 * MB, split), "code")
    free = on(trained("code", 3 * MB, TokenizerConfig(vocab=8192, superwords=0.45)), "code")
    unigram = on(trained("code", 3 * MB, TokenizerConfig(vocab=8192, algorithm="unigram")), "code")
    n = {"tokens, punctuation splits": plain.tokens, "tokens, across": free.tokens, "tokens, Unigram": unigram.tokens}
    n |= {"fewer": round(1 - free.tokens / plain.tokens, 4), "files lost": len(free.lost) + len(unigram.lost)}
    return n["fewer"] >= 0.10 and not n["files lost"], n


@check(201)
def binaries(_: CheckContext) -> Outcome:
    """Python's own extension modules and shared libraries beside them, 3 MB at most of each: raw-byte BPE of 4,096 tokens trained
    on three quarters, against BPE trained on English text, bytes for each token of the others; they come back byte for byte."""
    root = Path(sysconfig.get_path("stdlib")) / "lib-dynload"
    files = sorted(
        f for f in (*root.glob("*.so"), *Path("/usr/bin").glob("[a-d]*")) if f.is_file() and not f.is_symlink()
    )
    files = [f for f in files if f.stat().st_size < 400_000 and f.read_bytes()[:4] == b"\x7fELF"]
    random.Random(0).shuffle(files)
    learned, held = files[: len(files) * 3 // 4], files[len(files) * 3 // 4 :][:12]
    config = TokenizerConfig(vocab=4096, raw=True, numbers="free", barriers=("none",), sample=3 * MB)
    made = train(read_bytes(learned), config)
    english = trained("manual", 3 * MB, TokenizerConfig(vocab=4096))
    size, own, other, lost = 0, 0, 0, 0
    for file in held:
        data = file.read_bytes()
        ids = made.tokenizer.encode(data.decode("latin-1")).ids
        lost += made.tokenizer.decode(ids).encode("latin-1") != data
        size, own = size + len(data), own + len(ids)
        # what text tokenizers are given: the bytes as characters, which decode to the same bytes
        other += len(english.tokenizer.encode(data.decode("latin-1")).ids)
    n = {
        "files": len(held),
        "bytes/token": round(size / own, 3),
        "bytes/token, English": round(size / other, 3),
        "lost": lost,
    }
    return own < other and not lost, n


@check(398)
def series(_: CheckContext) -> Outcome:
    """A sensor's 2,000 values of two decimals in a line: tokens for each value, and values of equal length that are cut otherwise
    than most, under BPE as text has digits and under single digits; separators compared. The embedding adapter for activities is
    not built."""
    rng, value, values = random.Random(0), 50.0, []
    for _i in range(2000):
        value = min(max(value + rng.gauss(0, 4), 10), 99)
        values.append(f"{value * 100:.0f}")
    n: dict[str, Any] = {}
    for title, numbers in (("BPE", "free"), ("digits", "single")):
        made = trained("both", 3 * MB, TokenizerConfig(vocab=8192, numbers=numbers))
        for name, mark in (("comma", ", "), ("space", " ")):
            (m,) = measure([Coder(title, made.tokenizer)], [Document("series", mark.join(values))])
            n[f"pieces/value, {title}, {name}"] = round(m.pieces_per_number, 3)
            n[f"odd, {title}, {name}"] = round(m.inconsistent, 4)
    return False, n | {"not built": "embedding adapter"}


STEMS = {
    "ev": "house", "kitap": "book", "okul": "school", "göz": "eye", "yol": "way", "deniz": "sea", "köy": "village", "gün": "day",
    "kuş": "bird", "ağaç": "tree",
}  # fmt: skip
SUFFIXES = ("ler", "lar", "de", "da", "den", "dan", "im", "ım", "in", "ın")


@check(61)
def turkish(_: CheckContext) -> Outcome:
    """Forty Turkish words of ten stems and suffixes: shares by hand, and purity of a tokenizer that splits them where morphemes
    meet above one that splits at random places."""
    words = [stem + suffix for stem, suffix in product(STEMS, SUFFIXES[:4])]
    units, known = {*STEMS, *SUFFIXES}, {*STEMS, *words}
    rng = random.Random(0)
    pure = [t for w in words for t in (w[:-2] if w[:-2] in STEMS else w[:-3], w[-2:] if w[:-2] in STEMS else w[-3:])]
    cut = [rng.randrange(1, len(w)) for w in words]
    loose = [t for w, i in zip(words, cut, strict=True) for t in (w[:i], w[i:])]
    hand = linguistic(["ev", "ler", "evler", "xq", " Ev", "!"], known, units)
    exact = (hand.tokens, hand.distinct, hand.valid, hand.pure) == (5, 4, 2 / 4, 2 / 4)
    a, b = linguistic(pure, known, units), linguistic(loose, known, units)
    n = {"as by hand": exact, "pure, morphemes": round(a.pure, 3), "pure, random": round(b.pure, 3)}
    return exact and a.pure > b.pure, n | {"valid, morphemes": round(a.valid, 3), "valid, random": round(b.valid, 3)}


@check(194)
def ablation(_: CheckContext) -> Outcome:
    """Held-out Python, bytes for each token by vocabulary, cut and training text; BPE trained on code against one trained on
    prose. The recovery of a model after a switch of vocabulary is measured in `extend --tune` and not shown here."""
    n: dict[str, Any] = {}
    for kind, size in (("code", 2048), ("code", 8192), ("manual", 8192)):
        made = trained(kind, 3 * MB, TokenizerConfig(vocab=size))
        n[f"bytes/token, {kind}, {size:,}"] = round(on(made, "code").bytes_per_token, 3)
    cut = trained("code", 3 * MB, TokenizerConfig(vocab=8192, barriers=("words", "newline", "punctuation")))
    n["bytes/token, code, 8,192, punctuation splits"] = round(on(cut, "code").bytes_per_token, 3)
    n["decode cost, 8,192 over 2,048"] = round(n["bytes/token, code, 2,048"] / n["bytes/token, code, 8,192"], 3)
    return False, n | {"not built": "recovery within a token count"}
