"""The parts that prompts are compressed by, each against plain loops."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from tokensieve.parts.numeric import similarity
from tokensieve.parts.select import coverage
from tokensieve.parts.select.marginal import behind, marginal
from tokensieve.prompt.compressed import Compressed, back, forth
from tokensieve.sites.prompt import surprisal
from tokensieve.sites.prompt.cutting import Cut, cut, held
from tokensieve.sites.prompt.headings import headed, headings
from tokensieve.sites.prompt.protect import protected
from tokensieve.sites.prompt.vectors import Memory, encoded, shifts


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_marginal_relevance_is_that_of_plain_loops():
    unit, relevance = normalize(drawn(2, 20, 6), dim=-1), drawn(2, 20, seed=1)
    candidates = drawn(2, 20, seed=2) > -0.5
    order = marginal(unit, relevance, torch.tensor([7, 30]), candidates, 0.6)
    for b, most in ((0, 7), (1, 30)):
        left, picks = candidates[b].nonzero()[:, 0].tolist(), []
        while left and len(picks) < most:
            like = [max([max(0.0, float(unit[b, i] @ unit[b, picks[0]]))] + [float(unit[b, i] @ unit[b, p]) for p in picks[1:]])
                    if picks else 0.0 for i in left]  # fmt: skip
            worth = [0.6 * float(relevance[b, i]) - 0.4 * s for i, s in zip(left, like, strict=True)]
            picks.append(left.pop(worth.index(max(worth))))
        assert order[b].argsort(descending=True)[: len(picks)].tolist() == picks[::-1]
        assert int((order[b] >= 0).sum()) == len(picks)


def test_what_was_not_picked_comes_behind_by_its_score():
    order = torch.tensor([[1, -1, 0, -1, -1]])
    score, candidates = torch.tensor([[9.0, 1.0, 9.0, 3.0, 2.0]]), torch.tensor([[True, True, True, True, False]])
    assert behind(order, score, candidates).tolist() == [[1, 3, 0, 2, -1]]


def test_covering_tells_the_order_of_the_picks():
    like = similarity.dots(normalize(drawn(2, 30, 5), dim=-1))
    everyone = torch.ones(2, 30, dtype=torch.bool)
    order = coverage.covering(like, torch.tensor([12, 12]), everyone)
    for count in (1, 5, 12):
        chosen = coverage.cover(like, torch.tensor([count, count]), everyone)
        assert torch.equal(chosen, (order >= 0) & (order < count))


def test_headings_are_found_and_belong_to_what_is_below_them():
    text = (
        "name(x)\n\nIt does. It ends.\n\nNotes\n-----\nOne more.\n\n# Last #\nA line.\n\nStay here, please.\n\n- item\n\n"
        "```\ncode\n\nmore code\n```\n\nNothing below"
    )
    made = cut(text, [0], "sentence")
    units, above = made.units(), headings(made)
    found = {unit: units[i] if i >= 0 else "" for unit, i in zip(units, above, strict=True)}
    assert found == {
        "name(x)": "", "It does.": "name(x)", "It ends.": "name(x)", "Notes": "", "-----": "Notes", "One more.": "Notes",
        "# Last #": "", "A line.": "# Last #", "Stay here, please.": "# Last #", "- item": "# Last #", "```": "# Last #",
        "code": "# Last #", "more code": "# Last #", "Nothing below": "# Last #",
    }  # fmt: skip
    assert headings(cut("Title\n\nOne.\n\nTwo.", [0, 13], "sentence")) == [-1, 0, -1]


def test_a_heading_enters_once_behind_its_first_sentence():
    assert headed([3, 0, 2, 1, 4], [-1, 0, 0, -1, 3]) == [2, 0, 1, 4, 3]
    assert headed([0, 1], [-1, -1]) == [0, 1]
    assert headed([2, 1], [-1, 0, 0]) == [2, 1]


# ---- vectors ------------------------------------------------------------------------------------------------------------


def letters(texts):
    """A text's letters, counted."""
    rows = [[text.count(c) + 0.01 * (i == 0) for i, c in enumerate("abcdefgh")] for text in texts]
    return normalize(torch.tensor(rows), dim=-1)


def test_shifts_are_those_of_words_left_out_of_their_own_sentence():
    text = "aa bb cc. dd ee"
    words, sentences = cut(text, [0], "word"), Cut(text, (0,), ((0, 9), (10, 15)))
    found = shifts(words, sentences, letters)
    pairs = [("bb cc.", "aa bb cc."), ("aa cc.", "aa bb cc."), ("aa bb", "aa bb cc."), ("ee", "dd ee"), ("dd", "dd ee")]
    wanted = [1 - float(letters([without])[0] @ letters([whole])[0]) for without, whole in pairs]
    assert torch.allclose(found, torch.tensor(wanted), atol=1e-6)
    assert shifts(cut("aa", [0], "word"), Cut("aa", (0,), ((0, 2),)), letters).tolist() == [1.0]


def test_texts_are_read_once_in_any_order_and_the_oldest_forgotten():
    asked = []
    memory = Memory(lambda texts: asked.append(list(texts)) or letters(texts), most=3)
    assert torch.equal(memory(["bbb", "a", "bbb"]), letters(["bbb", "a", "bbb"]))
    memory(["cc", "a", "d"])
    assert asked == [["a", "bbb"], ["d", "cc"]]
    memory(["bbb"])
    assert asked[2] == ["bbb"]
    assert torch.equal(encoded(letters, ["hh", "a", "gggg"]), letters(["hh", "a", "gggg"]))


# ---- surprisal ----------------------------------------------------------------------------------------------------------


class Counting:
    """A model that foresees the next token id, and less surely the further it is from the beginning of what it is given."""

    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=8, max_position_embeddings=1000))
    device = torch.device("cpu")

    def __init__(self):
        self.lengths = []

    def __call__(self, ids, use_cache, logits_to_keep):
        self.lengths.append(ids.shape[1])
        logits = torch.zeros(1, ids.shape[1], 8).scatter_(2, ((ids + 1) % 8)[..., None], 5.0)
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


class Digits:
    bos_token_id, eos_token_id = None, None

    def __call__(self, text, **_):
        found = [(i, c) for i, c in enumerate(text) if c.isdigit()]
        return {"input_ids": [int(c) for _, c in found], "offset_mapping": [(i, i + 1) for i, _ in found]}


def test_surprisal_is_the_mean_of_a_units_tokens_whatever_the_windows(monkeypatch):
    text = "012 347 5"
    made, model = cut(text, [0], "word"), Counting()
    found = surprisal.surprisals(made, model, Digits())
    low = math.log(7 + math.exp(5)) - 5
    high, first = low + 5, math.log(8)
    assert found.tolist() == pytest.approx([(first + 2 * low) / 3, (low + low + high) / 3, high])
    monkeypatch.setattr(surprisal, "WINDOW", 3)
    monkeypatch.setattr(surprisal, "BEFORE", 1)
    model.lengths.clear()
    assert surprisal.surprisals(made, model, Digits()).tolist() == pytest.approx(found.tolist())
    assert max(model.lengths) == 3


def test_passages_are_read_by_themselves():
    text = "01\n\n34"
    found = surprisal.surprisals(cut(text, [0, 4], "word"), Counting(), Digits())
    assert found[0] == pytest.approx(float(found[1]))


# ---- stretches ----------------------------------------------------------------------------------------------------------


def test_a_protected_stretch_is_held_by_the_units_it_reaches_into():
    made = cut("one two three four", [0], "word")
    assert held(made, [(5, 10)]) == [1, 2]
    assert held(made, [(3, 4)]) == []
    assert protected("a 1.5% b ids x9 2024-01-02", [0], ["numbers"]) == [(2, 6), (13, 15), (16, 26)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.data())
def test_stretches_of_what_was_left_lead_back_to_the_source(steps, data):
    edges, spans = 0, []
    for i, step in enumerate(steps):
        if i % 2:
            spans.append((edges, edges + step))
        edges += step
    source = "".join(chr(97 + i) for i in range(edges))
    text = "".join(source[a:b] for a, b in spans)
    if not text:
        return
    a = data.draw(st.integers(0, len(text) - 1))
    b = data.draw(st.integers(a + 1, len(text)))
    assert "".join(source[s:e] for s, e in back(spans, [(a, b)])) == text[a:b]
    (start, _), *_ = back(spans, [(a, b)])
    assert forth(spans, start) == a
    made = Compressed(source, (0,), tuple(spans), 0, 0, "")
    assert made.origin(a) == (0, start)
