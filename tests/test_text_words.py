"""Words cut by one vocabulary, vocabularies chosen, and what both say, each against its plain definition."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.texts import ODD, corpus, trained
from tokensieve.text.merges import merges_of
from tokensieve.text.proper import Spelling, is_proper
from tokensieve.text.words.chunkability import chunkability, coverage, plausibility
from tokensieve.text.words.counts import word_counts
from tokensieve.text.words.homomorphism import balanced, balanced_tokens, decodes_apart
from tokensieve.text.words.huffman import WORD, HuffmanWords, huffman
from tokensieve.text.words.korean import joined, spelled, two_way
from tokensieve.text.words.lib import Lexicon, learn
from tokensieve.text.words.mixture import mixture
from tokensieve.text.words.prune import losses, pruned
from tokensieve.text.words.sage import context_losses, neighbours, skip_gram, trimmed
from tokensieve.text.words.segment import SEGMENTERS, Pieces, by_merges, dropout, fewest, likeliest

TINY = {"a": -2.0, "b": -2.5, "ab": -3.0, "ba": -2.2, "aba": -6.0, "bb": -9.0, "abab": -5.0}


def ways(word, first, inner):
    """Every way to cut a word."""
    if not word:
        return [[]]
    return [
        [word[:n], *rest] for n in range(1, len(word) + 1) if word[:n] in first for rest in ways(word[n:], inner, inner)
    ]


@given(st.text("ab", min_size=1, max_size=9))
def test_shortest_and_likeliest_ways_are_those_of_all(word):
    pieces = Pieces(TINY, TINY)
    every = ways(word, TINY, TINY)
    assert len(fewest(word, pieces)) == min(map(len, every))
    assert sum(TINY[p] for p in likeliest(word, pieces)) == pytest.approx(max(sum(TINY[p] for p in w) for w in every))
    for name, segment in SEGMENTERS.items():
        if name not in ("merges", "dropout"):
            assert segment(word, pieces) in every
            assert len(segment(word, pieces)) >= len(fewest(word, pieces))


def test_greedy_ways():
    pieces = Pieces(TINY, TINY)
    found = {n: SEGMENTERS[n]("bababb", pieces) for n in ("prefix", "suffix", "longest")}
    assert found == {"prefix": ["ba", "ba", "bb"], "suffix": ["b", "aba", "bb"], "longest": ["b", "abab", "b"]}
    assert SEGMENTERS["prefix"]("abba", pieces) == ["ab", "ba"]
    assert SEGMENTERS["suffix"]("aabab", pieces) == ["a", "abab"]
    assert SEGMENTERS["prefix"]("aabab", pieces) == ["a", "abab"]
    assert SEGMENTERS["prefix"]("babab", pieces) == ["ba", "ba", "b"]
    assert SEGMENTERS["suffix"]("babab", pieces) == ["b", "abab"]
    for segment in (SEGMENTERS[n] for n in ("prefix", "suffix", "longest", "likeliest", "fewest")):
        assert segment("", pieces) == []
        with pytest.raises(ValueError, match="'axb' cannot be cut"):
            segment("axb", pieces)
    with pytest.raises(ValueError, match="no merges"):
        by_merges("ab", pieces)


def test_segmenters_are_those_of_the_tokenizers():
    words = sorted(word_counts(trained().tokenizer, [d.text for d in corpus(20_000, at=40).documents]))[:400]
    bpe = Pieces.of(trained().tokenizer)
    for word in words:
        assert by_merges(word, bpe) == [t.value for t in trained().tokenizer.model.tokenize(word)]
        assert dropout(word, bpe, p=0.0) == by_merges(word, bpe)
        assert dropout(word, bpe, p=1.0) == list(word)
        assert len(fewest(word, bpe)) <= len(by_merges(word, bpe))
        assert "".join(dropout(word, bpe, 0.5)) == word
    with pytest.raises(ValueError, match="p is 2"):
        dropout("a", bpe, p=2)
    plain = [w for w in words if w.isascii() and w.isalpha()]
    lines = [" ".join(plain)]
    wordpiece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.pre_tokenizer = pre_tokenizers.Whitespace()
    wordpiece.train_from_iterator(lines, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"]))
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Whitespace()
    unigram.train_from_iterator(
        lines, trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    )
    for word in plain:
        marked = SEGMENTERS["prefix"](word, Pieces.of(wordpiece))
        assert [p if i == 0 else "##" + p for i, p in enumerate(marked)] == [
            t.value for t in wordpiece.model.tokenize(word)
        ]
        scores = Pieces.of(unigram)
        theirs = [t.value for t in unigram.model.tokenize(word)]
        assert sum(scores.inner[p] for p in likeliest(word, scores)) == pytest.approx(
            sum(scores.inner[p] for p in theirs)
        )


# ---- vocabularies made smaller -------------------------------------------------------------------------------------------


def test_losses_are_those_of_leaving_a_token_out():
    """Exactly where a word holds the token once."""
    for word in ("ababb", "bbab", "aab", "abba"):
        found = losses({word: 3}, Pieces(TINY, TINY))
        for piece, lost in found.items():
            left = {p: w for p, w in TINY.items() if p != piece}
            assert fewest(word, Pieces(TINY, TINY)).count(piece) == 1
            true = min(map(len, ways(word, left, left))) - min(map(len, ways(word, TINY, TINY)))
            assert lost == 3 * true


def test_pruning_takes_what_costs_least():
    words = {"abab": 10, "bb": 1, "ba": 5}
    assert pruned(words, TINY, 4, share=0.01) == ["a", "b", "ba", "abab"]
    assert pruned(words, TINY, 7) == list(TINY)
    with pytest.raises(ValueError, match="size is 1"):
        pruned(words, TINY, 1)
    with pytest.raises(ValueError, match="share is 0"):
        pruned(words, TINY, 3, share=0)


def test_losses_of_neighbours_are_those_of_the_definition():
    pairs = neighbours([[0, 1, 2, 0], [2]], window=2)
    counts = Counter(
        (a, b) for i, a in enumerate([0, 1, 2, 0]) for j, b in enumerate([0, 1, 2, 0]) if 0 < abs(i - j) < 3
    )
    assert {(int(a), int(b)): int(n) for a, b, n in pairs.T} == counts
    own, other = skip_gram(pairs, 3, width=4, steps=20)
    parts = [[0], [0, 2], [2]]

    def loss(a, b):
        return math.log1p(math.exp(-float(own[a] @ other[b])))

    want = [
        sum(n * (sum(loss(u, c) for u in parts[t]) - loss(t, c)) for (a, c), n in counts.items() if a == t)
        for t in range(3)
    ]
    assert context_losses(pairs, own, other, parts).tolist() == pytest.approx(want, abs=1e-4)
    with pytest.raises(ValueError, match="two tokens"):
        neighbours([[0], []])


def test_skip_grams_learn_who_stands_beside_whom():
    rows = [[0, 1] * 20, [2, 3] * 20]
    own, other = skip_gram(neighbours(rows, window=1), 4, width=8, steps=150)
    scores = own @ other.T
    assert scores[0, 1] > scores[0, 3]
    assert scores[2, 3] > scores[2, 1]


def test_trimming_keeps_characters_and_size():
    lines = [["abab", "bb"], ["ba", "abab", "aab"]] * 5
    found = trimmed(lines, list(TINY), 4, rounds=2, steps=10)
    assert len(found) == 4
    assert {"a", "b"} < set(found) < set(TINY)
    with pytest.raises(ValueError, match="size is 1"):
        trimmed(lines, list(TINY), 1)


# ---- Korean --------------------------------------------------------------------------------------------------------------


def test_the_commoner_way_is_taken():
    frequencies = {"나": 9, "나는": 30, "##는다": 50, "##다": 5, "##는": 8}
    assert two_way("나는다", frequencies) == ["나", "##는다"]
    assert two_way("나는다", frequencies | {"나는": 60}) == ["나는", "##다"]
    assert two_way("나는", frequencies) == ["나는"]
    with pytest.raises(ValueError, match="cannot be cut"):
        two_way("가", frequencies)
    with pytest.raises(ValueError, match="unit is 'letter'"):
        two_way("나", frequencies, unit="letter")


@given(st.text("가각한국어는다값", min_size=1, max_size=6), st.sampled_from(["syllable", "jamo"]))
def test_korean_words_come_back(word, unit):
    letters = {c for w in "가각한국어는다값" for c in spelled(w, unit)}
    frequencies = dict.fromkeys([*letters, *("##" + c for c in letters), spelled("한국", unit)], 2)
    assert joined(two_way(word, frequencies, unit)) == word


# ---- Huffman -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbols", [2, 3])
def test_codes_are_the_shortest(symbols):
    counts = {"a": 7, "b": 3, "c": 3, "d": 1, "e": 1}
    codes = huffman(counts, symbols)
    for x, y in itertools.permutations(codes.values(), 2):
        assert y[: len(x)] != x
    total = sum(counts[w] * len(codes[w]) for w in counts)
    # Any lengths with sum of symbols**-length at most 1 are those of some code.
    best = min(
        sum(n * k for n, k in zip(counts.values(), lengths, strict=True))
        for lengths in itertools.product(range(1, 5), repeat=5)
        if sum(symbols**-k for k in lengths) <= 1 + 1e-9
    )
    assert total == best


@pytest.mark.parametrize("symbols", [2, 100, 1000])
def test_words_come_back(symbols):
    coder = HuffmanWords.train([d.text for d in corpus(20_000).documents], symbols, words=300)
    for text in (ODD, "", "unseen" * 60, corpus(5_000, at=50).documents[0].text):
        assert coder.decode(coder.encode(text)) == text
    common = Counter(WORD.findall("".join(d.text for d in corpus(20_000).documents))).most_common(300)
    assert len(coder.codes[common[0][0]]) <= len(coder.codes[common[-1][0]])
    with pytest.raises(ValueError, match=r"end inside|no word's code"):
        coder.decode(coder.encode("unseen")[:-1])
    with pytest.raises(ValueError, match="symbols is 1"):
        HuffmanWords.train(["a"], 1)
    with pytest.raises(ValueError, match="no word"):
        HuffmanWords.train([""], 5)


# ---- LiB -----------------------------------------------------------------------------------------------------------------


def test_a_lexicon_learns_what_recurs():
    generator = random.Random(0)
    names = ["of the ", "return ", "list "]
    texts = ["".join(generator.choice(names) for _ in range(30)) for _ in range(60)]
    lexicon = learn(texts, life=20, longest=8)
    text = "".join(generator.choice(names) for _ in range(50))
    assert "".join(lexicon.segment(text)) == text
    assert len(lexicon.segment(text)) < len(text) / 4
    assert any(" " in u[1:-1] for u in lexicon.units)
    best = lexicon.best(30)
    assert len(best.units) == 30
    assert {c for t in texts for c in t} <= set(best.units)
    assert learn(texts, life=20, longest=8) == lexicon
    assert "".join(lexicon.segment("xyz of")) == "xyz of"
    with pytest.raises(ValueError, match="size is 1"):
        lexicon.best(1)
    with pytest.raises(ValueError, match="longest=1"):
        learn(texts, longest=1)
    with pytest.raises(ValueError, match="no character"):
        learn([""])


def test_units_that_do_not_come_again_are_forgotten():
    lexicon = learn(["ab"] + ["cd"] * 30, memorize=1.0, life=3)
    assert "cd" in lexicon.units
    assert "ab" not in lexicon.units
    assert Lexicon(("a", "b", "ab")).segment("aab") == ["a", "ab"]


# ---- what a tokenizer was trained on -------------------------------------------------------------------------------------


def invented(letters, seed, size):
    generator = np.random.default_rng(seed)
    words = ["".join(generator.choice(list(letters), generator.integers(2, 7))) for _ in range(400)]
    shares = generator.dirichlet(np.full(400, 0.3))
    return [" ".join(generator.choice(words, 200, p=shares)) for _ in range(size)]


@pytest.mark.parametrize("shares", [(0.6, 0.3, 0.1), (0.1, 0.1, 0.8)])
def test_shares_of_a_known_mixture_are_found(shares):
    kinds = [invented("abcdefgh", 1, 120), invented("efghijkl", 2, 120), invented("ijklmnab", 3, 120)]
    size = min(sum(map(len, k)) for k in kinds) / 2
    text = [k[: int(s * size / np.mean([len(x) for x in k]))] for k, s in zip(kinds, shares, strict=True)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        [t for part in text for t in part], trainers.BpeTrainer(vocab_size=200, show_progress=False)
    )
    found = mixture(merges_of(tokenizer)[:150], {str(i): word_counts(tokenizer, k[60:]) for i, k in enumerate(kinds)})
    assert sum(found.values()) == pytest.approx(1)
    assert np.abs(np.array(list(found.values())) - shares).mean() < 0.05
    with pytest.raises(ValueError, match="2 categories"):
        mixture(merges_of(tokenizer), {"one": {"ab": 1}})


# ---- readers -------------------------------------------------------------------------------------------------------------


def test_planted_responses_are_found():
    words = [d.name for d in corpus(60_000).documents] + sorted(set(corpus(5_000).documents[0].text.split()))
    pieces = Pieces.of(trained().tokenizer)

    def cut(word):
        return by_merges("".join(c if c in pieces.first else "a" for c in word), pieces)

    generator = np.random.default_rng(0)
    slow = {w: 600 - 200 * chunkability(w, cut(w)) + generator.normal(0, 20) for w in words}
    found = plausibility(cut, slow)
    assert found.correlation < -0.5
    assert found.pvalue < 0.01
    values = generator.permutation(list(slow.values()))
    chance = plausibility(cut, dict(zip(slow, values, strict=True)))
    assert abs(chance.correlation) < 0.3
    assert chance.pvalue > 0.01
    assert chunkability("abcd", ["ab", "cd"]) == 0.5
    assert coverage({"un", "able"}, ["un", "able", "ness", "ly"]) == 0.5
    for bad, message in (
        ({"a": 1.0}, "1 words"),
        ({"a": 1.0, "b": 2.0, "c": float("nan")}, "finite"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "alike|one response"),
    ):
        with pytest.raises(ValueError, match=message):
            plausibility(list, bad)
    with pytest.raises(ValueError, match="morphemes is empty"):
        coverage({"a"}, [])


# ---- homomorphism --------------------------------------------------------------------------------------------------------


def test_bytes_of_rows_are_those_of_their_parts():
    tokenizer = trained(vocab=400).tokenizer
    generator = random.Random(0)
    rows = [[generator.randrange(1, 400) for _ in range(generator.randrange(1, 8))] for _ in range(200)]
    assert all(decodes_apart(tokenizer, rows))
    spelling = Spelling(tokenizer)
    for row in rows:
        text = spelling.joined(row)
        try:
            written = tokenizer.encode(text.decode()).ids
        except UnicodeDecodeError:
            continue
        assert is_proper(spelling, row) == (written == row)
    spaced = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    spaced.decoder = decoders.WordPiece()
    assert decodes_apart(spaced, [[1, 2], [1]]) == [False]


@given(st.lists(st.text("([)]x", min_size=1, max_size=4), max_size=6))
def test_brackets_are_told_from_tokens(tokens):
    assert balanced_tokens(tokens) == balanced("".join(tokens))


def test_brackets():
    assert balanced("([]{x})")
    assert not balanced("([)]")
    assert not balanced("((")
    assert not balanced(")")


def test_a_pair_is_counted_where_it_stands():
    """The words of a text as its tokenizer cuts them; merged pairs are those of the tokenizer's own counts."""
    tokenizer = trained(vocab=300).tokenizer
    words = word_counts(tokenizer, ["the list of the list"])
    assert words.total() == 5
    pairs = Counter(p for w, n in words.items() for p in pairwise(w) for _ in range(n))
    assert pairs[("t", "h")] == 2
    assert torch.is_tensor(neighbours([[0, 1]]))
