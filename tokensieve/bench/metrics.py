"""Metrics: how right an answer is, by name, between 0 and 1; of several known answers the best counts."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from tokensieve.core.registry import Registry
from tokensieve.extras import Lazy

Metric = Callable[[str, Sequence[str]], float]
METRICS: Registry[Metric] = Registry("metric")
_fuzz = Lazy("rapidfuzz.distance", "bench")

_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = dict(
    zip(
        ["none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
        ["0", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"],
        strict=True,
    )
)
_MARKS = ';/[]"{}()=+\\_-><@`,?!'


def register_metric(name: str) -> Callable[[Metric], Metric]:
    """Decorator: a function of what was said and the known answers becomes a metric of the bench.

    Example:
        >>> @register_metric("starts with")  # doctest: +SKIP
        ... def starts_with(said, answers): return float(said.startswith(tuple(answers)))
    """
    return METRICS.register(name)


def plain(text: str) -> str:
    """In lower case, with single blanks, without quotes around it or a stop at its end."""
    return " ".join(text.casefold().split()).strip("\"'").rstrip(".!?").strip()


@register_metric("exact")
def exact(said: str, answers: Sequence[str]) -> float:
    """The same words, whatever their case, blanks, quotes around them or stop behind them."""
    return float(plain(said) in {plain(a) for a in answers})


@register_metric("contains")
def contains(said: str, answers: Sequence[str]) -> float:
    """Whether an answer's words stand somewhere in what was said, one behind the other."""
    text = f" {' '.join(_words(said))} "
    return float(any(_words(a) and f" {' '.join(_words(a))} " in text for a in answers))


@register_metric("relaxed")
def relaxed(said: str, answers: Sequence[str]) -> float:
    """Relaxed accuracy (ChartQA, arXiv 2203.10244): a number at most 5% off, anything else to the letter.

    Deviation from the public code: commas between digits and signs of currency are passed over.
    """
    ours = _number(said)
    for answer in answers:
        theirs = _number(answer)
        if ours is not None and theirs:
            if abs(ours - theirs) <= 0.05 * abs(theirs):
                return 1.0
        elif plain(said) == plain(answer):
            return 1.0
    return 0.0


@register_metric("anls")
def anls(said: str, answers: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity (ST-VQA, arXiv 1905.13648): 0 below one half."""
    ours = " ".join(said.lower().split())
    far = min(_fuzz.Levenshtein.normalized_distance(ours, " ".join(a.lower().split())) for a in answers)
    return 1.0 - far if far < 0.5 else 0.0


@register_metric("vqa")
def vqa(said: str, answers: Sequence[str]) -> float:
    """VQA accuracy (arXiv 1505.00468): three of the other people's answers make it right, a mean over each left out.

    With fewer than four answers, all the others; with one, that one. Deviations from the public code: answers are made plain
    also where all agree, and apostrophes are left out in place of a list of contractions.
    """
    ours, known = _vqa(said), [_vqa(a) for a in answers]
    if len(known) == 1:
        return float(ours == known[0])
    hits, need = sum(ours == k for k in known), min(3, len(known) - 1)
    return sum(min(1.0, (hits - (ours == k)) / need) for k in known) / len(known)


@register_metric("f1")
def f1(said: str, answers: Sequence[str]) -> float:
    """Token F1 (SQuAD, arXiv 1606.05250): words in common, without articles and marks."""
    return max(_f1(_squad(said), _squad(a)) for a in answers)


@register_metric("rouge-l")
def rouge_l(said: str, answers: Sequence[str]) -> float:
    """ROUGE-L (Lin 2004): F1 of the longest common subsequence of words, without stemming."""
    ours = _words(said)
    return max(_of_common(_fuzz.LCSseq.similarity(ours, w), ours, w) for w in map(_words, answers))


@register_metric("choice")
def choice(said: str, answers: Sequence[str]) -> float:
    """The likeliest of a question's choices: what is said is that choice, and it has to be an answer."""
    return float(said in answers)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _number(text: str) -> float | None:
    stripped = re.sub(r"(?<=\d),(?=\d)", "", text.strip().rstrip(".").strip("$€£¥ "))
    try:
        return float(stripped[:-1]) / 100 if stripped.endswith("%") else float(stripped)
    except ValueError:
        return None


def _squad(text: str) -> list[str]:
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return [w for w in bare.split() if w not in _ARTICLES]


def _f1(ours: list[str], theirs: list[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    return _of_common((Counter(ours) & Counter(theirs)).total(), ours, theirs)


def _of_common(common: int, ours: list[str], theirs: list[str]) -> float:
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def _vqa(text: str) -> str:
    whole = " ".join(text.split())
    out, digits = whole, re.search(r"\d,\d", whole) is not None
    for mark in _MARKS:
        beside = f"{mark} " in whole or f" {mark}" in whole
        out = out.replace(mark, "" if beside or digits else " ")
    out = re.sub(r"(?<!\d)\.(?!\d)", "", out)
    return " ".join(_NUMBERS.get(w, w) for w in out.lower().split() if w not in _ARTICLES).replace("'", "")
