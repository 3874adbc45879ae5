"""Checks of segmenters, of vocabularies chosen otherwise than by merges, and of what vocabularies tell, on text that a Python and
a Debian installation carry."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn.functional import softplus

from benchmarks.systems.bed import CheckContext, Outcome, check
from tokensieve.testbed import lm
from tokensieve.testbed.lm.corpus import guide, manuals, standard_library
from tokensieve.text.config import TokenizerConfig
from tokensieve.text.corpus import Corpus, Document
from tokensieve.text.loading import open_tokenizer
from tokensieve.text.merges import merges_of
from tokensieve.text.parallel import names
from tokensieve.text.proper import Spelling, is_proper
from tokensieve.text.train import train
from tokensieve.text.words.chunkability import coverage, plausibility
from tokensieve.text.words.counts import word_counts
from tokensieve.text.words.homomorphism import balanced, balanced_tokens, decodes_apart
from tokensieve.text.words.korean import joined, spelled, two_way
from tokensieve.text.words.lib import learn
from tokensieve.text.words.mixture import mixture
from tokensieve.text.words.prune import pruned
from tokensieve.text.words.sage import neighbours, skip_gram, trimmed
from tokensieve.text.words.segment import SEGMENTERS, Pieces, by_merges, fewest, greedy_prefix, likeliest

SOURCES: dict[str, Callable[[], Iterator[Any]]] = {"code": standard_library, "guide": guide, "manuals": manuals}
PLAIN = ("prefix", "suffix", "longest", "likeliest", "fewest")


@cache
def pages(kind: str, held: bool, most: int, every: int = 5) -> tuple[str, ...]:
    """Texts of a kind, drawn at random, of so many characters; one in so many is held out."""
    found = sorted((d.name, d.text) for d in SOURCES[kind]())
    random.Random(0).shuffle(found)
    out, size = [], 0
    for i, (_, text) in enumerate(found):
        if (i % every == 0) == held and size < most:
            out.append(text[: most - size])
            size += len(out[-1])
    return tuple(out)


@cache
def both(held: bool, most: int) -> tuple[str, ...]:
    return (*pages("code", held, most // 2), *pages("guide", held, most // 2))


@cache
def bpe(vocab: int, most: int = 1_000_000) -> Tokenizer:
    documents = tuple(Document(str(i), t) for i, t in enumerate(both(False, most)))
    return train(Corpus(documents, {}), TokenizerConfig(vocab=vocab)).tokenizer


@check(212)
def shares(_: CheckContext) -> Outcome:
    """Three known mixtures of code, guide and manual pages, 500,000 characters, a BPE of 2,000 tokens each; shares by the first
    300 merges from other pages of each kind: mean absolute error under 0.05, beside that of equal shares."""
    errors, equal = [], []
    n: dict[str, Any] = {}
    for known in ((0.6, 0.3, 0.1), (0.1, 0.3, 0.6), (0.25, 0.5, 0.25)):
        parts = [pages(kind, False, int(500_000 * s), 2) for kind, s in zip(SOURCES, known, strict=True)]
        sizes = np.array([sum(len(t.encode()) for t in part) for part in parts])
        documents = tuple(Document(str(i), t) for i, t in enumerate(itertools.chain(*parts)))
        tokenizer = train(Corpus(documents, {}), TokenizerConfig(vocab=2_000)).tokenizer
        samples = {kind: word_counts(tokenizer, pages(kind, True, 300_000, 2)) for kind in SOURCES}
        found = mixture(merges_of(tokenizer)[:300], samples)
        truth = sizes / sizes.sum()
        n[str(known)] = {"shares": truth.round(3).tolist(), "found": [round(v, 3) for v in found.values()]}
        errors.append(np.abs(np.array(list(found.values())) - truth).mean())
        equal.append(np.abs(1 / 3 - truth).mean())
    n |= {"mean absolute error": float(np.mean(errors)), "of equal shares": float(np.mean(equal))}
    return n["mean absolute error"] < 0.05 < n["of equal shares"], n


@check(277)
def less_is_better(_: CheckContext) -> Outcome:
    """1 million characters read twice, 4,000 units: fewer tokens on held-out text than a BPE of as many, and units that cross
    spaces."""
    texts = [t[i : i + 1000] for t in both(False, 1_000_000) for i in range(0, len(t), 1000)]
    lexicon = learn(texts, life=200, rounds=2).best(4_000)
    held = both(True, 200_000)
    units = sum(len(lexicon.segment(t)) for t in held)
    pieces = sum(len(e) for e in bpe(4_000).encode_batch(list(held)))
    crossing = sum(" " in u.strip() for u in lexicon.units)
    n = {"tokens": units, "tokens of BPE": pieces, "units": len(lexicon.units), "units across spaces": crossing}
    return units < pieces and crossing > 0, n


@cache
def three(vocab: int) -> dict[str, Pieces]:
    """Vocabularies of equal size on the same words of letters."""
    lines = [" ".join(re.findall(r"[a-z]{2,}", t)) for t in both(False, 1_000_000)]
    out = {}
    made: dict[str, tuple[Any, Any]] = {
        "BPE": (models.BPE(), trainers.BpeTrainer(vocab_size=vocab, show_progress=False)),
        "WordPiece": (
            models.WordPiece(unk_token="[UNK]"),
            trainers.WordPieceTrainer(vocab_size=vocab + 1, special_tokens=["[UNK]"], show_progress=False),
        ),
        "Unigram": (
            models.Unigram(),
            trainers.UnigramTrainer(
                vocab_size=vocab + 1, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
            ),
        ),
    }
    for name, (model, trainer) in made.items():
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.train_from_iterator(lines, trainer)
        out[name] = Pieces.of(tokenizer)
    return out


def own(name: str) -> Callable[[str, Pieces], list[str]]:
    """How a vocabulary's own tokenizer cuts."""
    return {"BPE": by_merges, "WordPiece": greedy_prefix, "Unigram": likeliest}[name]


SUFFIXES = ("able", "ful", "ing", "ion", "ist", "ity", "less", "ment", "ness", "ly", "un", "re", "dis", "pre", "over")


@check(292)
def readers(_: CheckContext) -> Outcome:
    """Words of held-out text, times planted to fall with their chunkability under each vocabulary, and noise: the correlation is
    negative and far from chance, that of shuffled tables near zero; BPE, WordPiece and Unigram of 2,000 pieces, side by side."""
    words = sorted({w for t in both(True, 200_000) for w in re.findall(r"[a-z]{3,14}", t)})
    generator = np.random.default_rng(0)
    n: dict[str, Any] = {"words": len(words)}
    shown = True
    for name, pieces in three(2_000).items():
        cut = {w: own(name)(w, pieces) for w in words}
        times = {w: 700 - 150 * (1 - len(p) / len(w)) + generator.normal(0, 60) for w, p in cut.items()}
        found = plausibility(cut.__getitem__, times)
        values = generator.permutation(list(times.values()))
        chance = plausibility(cut.__getitem__, dict(zip(times, values, strict=True)))
        n[name] = {"planted": found.correlation, "p": found.pvalue, "shuffled": chance.correlation}
        n[name]["affixes that are pieces"] = coverage({*pieces.first, *pieces.inner}, SUFFIXES)
        shown = shown and found.correlation < 0 and found.pvalue < 0.01 and abs(chance.correlation) < 0.05
    return shown, n


@check(294)
def shortest(_: CheckContext) -> Outcome:
    """Held-out text, BPE of 4,000 tokens and its words: never more tokens by the shortest path than by merges or the longest
    match, equal to brute force on short words; a vocabulary pruned to 2,000 beside a BPE of 2,000, both by shortest paths."""
    tokenizer = bpe(4_000)
    pieces = Pieces.of(tokenizer)
    words = word_counts(tokenizer, both(True, 200_000))
    counts = {w: {m: len(SEGMENTERS[m](w, pieces)) for m in ("fewest", "merges", "prefix")} for w in words}
    never = all(c["fewest"] <= min(c.values()) for c in counts.values())
    short = [w for w in words if len(w) <= 8][:500]
    brute = all(counts[w]["fewest"] == _fewest(w, pieces) for w in short)
    n: dict[str, Any] = {m: sum(words[w] * c[m] for w, c in counts.items()) for m in ("fewest", "merges", "prefix")}
    learned = word_counts(tokenizer, both(False, 400_000))
    left = dict.fromkeys(pruned(learned, pieces.inner, 2_000, share=0.25), 0.0)
    smaller = Pieces.of(bpe(2_000))
    for name, chosen in (("pruned to 2,000", Pieces(left, left)), ("BPE of 2,000", smaller)):
        n[f"{name}, fewest"] = sum(k * len(fewest(w, chosen)) for w, k in words.items())
    return never and brute, n


def _fewest(word: str, pieces: Pieces) -> int:
    """By trying every way."""
    places = range(1, len(word))
    for k in range(len(word)):
        for cuts in itertools.combinations(places, k):
            ends = (0, *cuts, len(word))
            if all(pieces.weight(word, a, b) is not None for a, b in itertools.pairwise(ends)):
                return k + 1
    raise AssertionError(f"no way through {word!r}")


@check(337)
def inference(_: CheckContext) -> Outcome:
    """Words of held-out text, BPE, WordPiece and Unigram of 2,000 pieces, all segmenters: the shortest path has the fewest
    pieces, the longest match from the left at most 2% more. Boundaries: those of identifiers whose underscores were taken out."""
    words = Counter(w for t in both(True, 200_000) for w in re.findall(r"[a-z]{2,}", t))
    glued = {w.replace("_", ""): w for t in both(True, 400_000) for w in re.findall(r"\b[a-z]{3,}_[a-z]{3,}\b", t)}
    n: dict[str, Any] = {"words": len(words), "identifiers": len(glued)}
    shown = True
    for name, pieces in three(2_000).items():
        rows: dict[str, Any] = {}
        for method in (*PLAIN, *(("merges", "dropout") if pieces.merges else ())):
            cut = {w: SEGMENTERS[method](w, pieces) for w in words}
            used = Counter({p: 0 for c in cut.values() for p in c})
            for w, c in cut.items():
                for p in c:
                    used[p] += words[w]
            q = np.array(list(used.values())) / used.total()
            renyi = np.log((q**2.5).sum()) / (1 - 2.5) / np.log(len(q))
            rows[method] = {"pieces": used.total(), "renyi": round(float(renyi), 4), "f1": _f1(glued, method, pieces)}
        n[name] = rows
        least = rows["fewest"]["pieces"]
        shown = shown and all(r["pieces"] >= least for r in rows.values()) and rows["prefix"]["pieces"] <= 1.02 * least
    return shown, n


def _f1(glued: dict[str, str], method: str, pieces: Pieces) -> float:
    """F1 of boundaries between pieces against the one of each identifier."""
    right = given = 0
    for word, identifier in glued.items():
        ends = set(np.cumsum([len(p) for p in SEGMENTERS[method](word, pieces)])[:-1].tolist())
        right += identifier.index("_") in ends
        given += len(ends)
    return round(2 * right / (given + len(glued)), 4)


@check(347)
def context(_: CheckContext) -> Outcome:
    """A BPE of 4,000 trimmed to 1,500 on 600,000 characters, beside a BPE of 1,500, both by the longest match: the skip-gram loss
    of held-out neighbours below the BPE's, tokens at most 10% more."""
    large, small = bpe(4_000), Pieces.of(bpe(1_500))
    lines = [_words(large, t) for t in both(False, 600_000)]
    kept = trimmed(lines, list(Pieces.of(large).inner), 1_500, rounds=3, window=3)
    chosen = {"trimmed": kept, "BPE": list(small.inner)}
    held = [_words(large, t) for t in both(True, 200_000)]
    n: dict[str, Any] = {}
    for name, vocabulary in chosen.items():
        ids = {t: i for i, t in enumerate(vocabulary)}
        pieces = Pieces(dict.fromkeys(vocabulary, 0.0), dict.fromkeys(vocabulary, 0.0))
        rows = [[ids[p] for w in line for p in greedy_prefix(w, pieces)] for line in lines]
        own_, other = skip_gram(neighbours(rows, 3), len(ids))
        test = [[ids[p] for w in line for p in greedy_prefix(w, pieces)] for line in held]
        token, near, count = neighbours(test, 3)
        losses = softplus(-(own_[token] * other[near]).sum(-1))
        far = torch.from_numpy(np.random.default_rng(0).permutation(near.numpy()))
        losses = losses + softplus((own_[token] * other[far]).sum(-1))
        n[name] = {
            "loss": float((losses * count).sum() / count.sum()),
            "tokens": sum(map(len, test)),
            "vocabulary": len(ids),
        }
    less = n["trimmed"]["loss"] < n["BPE"]["loss"]
    return less and n["trimmed"]["tokens"] < 1.1 * n["BPE"]["tokens"], n


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    return [w for w, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@check(363)
def korean(_: CheckContext) -> Outcome:
    """Korean names of CLDR, a WordPiece vocabulary of 1,200 for syllables and one for letters: all words come back; of names of
    languages that end in "eo" (language), held out, at least as many are cut before it from both ends as from the left alone."""
    found = [w for name in names(["ko"]).pairs["ko"][0] for w in re.findall(r"[가-힣]{2,}", name)]
    random.Random(0).shuffle(found)
    held, learned = found[: len(found) // 4], found[len(found) // 4 :]
    n: dict[str, Any] = {"words": len(found)}
    shown = True
    for unit in ("syllable", "jamo"):
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        alphabet = {c for w in found for c in spelled(w, unit)}
        trainer = trainers.WordPieceTrainer(
            vocab_size=1_200, special_tokens=["[UNK]"], initial_alphabet=sorted(alphabet), show_progress=False
        )
        tokenizer.train_from_iterator([spelled(w, unit) for w in learned], trainer)
        pieces = Pieces.of(tokenizer)
        often = Counter(t for w in learned for t in tokenizer.encode(spelled(w, unit)).tokens)
        singles = dict.fromkeys(alphabet, 0) | {"##" + c: 0 for c in alphabet}
        frequencies = singles | {p: often[p] for p in pieces.first} | {"##" + p: often["##" + p] for p in pieces.inner}
        back = all(joined(two_way(w, frequencies, unit)) == w for w in found)
        gold = [w for w in held if w.endswith("어") and len(w) > 2]
        last = "##" + spelled("어", unit)
        ways = [two_way(w, frequencies, unit)[-1] == last for w in gold]
        full = Pieces(
            {p: 0.0 for p in frequencies if p[:2] != "##"}, {p[2:]: 0.0 for p in frequencies if p[:2] == "##"}
        )
        left = ["##" + greedy_prefix(spelled(w, unit), full)[-1] == last for w in gold]
        n[unit] = {
            "names": len(gold),
            "right from both ends": sum(ways),
            "right from the left": sum(left),
            "all back": back,
        }
        shown = shown and back and sum(ways) >= sum(left)
    return shown, n


@check(374)
def homomorphism(_: CheckContext) -> Outcome:
    """10,000 random rows of tokens of a BPE trained here and of the packaged model's: decoding two rows together gives what both
    give alone; rows that encoding their text does not give back, and only those, are improper; brackets are told from tokens."""
    n: dict[str, Any] = {}
    shown = True
    brackets = "()[]{}x"
    for name, tokenizer in (("BPE of 4,000", bpe(4_000)), ("packaged", open_tokenizer(lm.load()[1]))):
        spelling, generator = Spelling(tokenizer), random.Random(0)
        plain = list(spelling.vocabulary.plain())
        rows = [[generator.choice(plain) for _ in range(generator.randrange(1, 8))] for _ in range(10_000)]
        apart = decodes_apart(tokenizer, rows)
        texts = [spelling.joined(r).decode(errors="replace") for r in rows]
        whole = [(r, t) for r, t in zip(rows, texts, strict=True) if "\ufffd" not in t]
        flagged = [is_proper(spelling, r) for r, _ in whole]
        again = [e.ids == r for e, (r, _) in zip(tokenizer.encode_batch([t for _, t in whole]), whole, strict=True)]
        told = []
        for _ in range(10_000):
            text = "".join(generator.choice(brackets) for _ in range(generator.randrange(8)))
            text = text if generator.random() < 0.5 else text + "".join(map(str, text[::-1])).translate(CLOSING)
            tokens = [spelling.joined([i]).decode() for i in tokenizer.encode(text).ids]
            told.append(balanced_tokens(tokens) == balanced(text))
        n[name] = {
            "rows decoded apart": sum(apart), "of": len(apart), "whole rows": len(whole), "proper": sum(flagged),
            "flags that agree": sum(a == b for a, b in zip(flagged, again, strict=True)), "brackets agree": sum(told),
        }  # fmt: skip
        shown = shown and all(apart) and flagged == again and all(told)
    return shown, n


CLOSING = str.maketrans("([{", ")]}")
