"""Compressed prompts: what every method keeps to, what is refused, and where characters came from."""

import itertools
import re
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tokensieve as ts
from tokensieve.core.method_registry import get_method, list_methods
from tokensieve.prompt.compress import WORDS
from tokensieve.sites.prompt.clusters import CLUSTER
from tokensieve.sites.prompt.cutting import WAYS, cut
from tokensieve.sites.prompt.protect import protected
from tokensieve.testing import check_prompt_method
from tokensieve.testing.memory import Largest
from tokensieve.testing.prompts import QUESTION, check_compressed, checking_compressor

pytest.importorskip("sentencex")

NAMES = list_methods(site="prompt")
SCRIPTS = st.text(
    st.one_of(
        st.sampled_from(' \n.。!?ab1e\u0301\u200d👩👦🏽ก็ไท中文`"\r\t-|#é'),
        st.characters(codec="utf-8", max_codepoint=0x3FFFF),
    ),
    max_size=80,
)


@pytest.fixture(scope="module")
def compressor():
    return checking_compressor()


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "surprisal")) for n in NAMES])
def test_methods_keep_to_the_contract(name):
    check_prompt_method(name)


@pytest.mark.parametrize("unit", ["passage", "line", "word"])
def test_the_contract_holds_for_every_unit(unit):
    check_prompt_method("random-text", unit=unit)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    passages=st.lists(SCRIPTS, min_size=1, max_size=3), unit=st.sampled_from(list(WAYS)),
    keep=st.one_of(st.integers(1, 30), st.floats(0.1, 0.9)), protect=st.sampled_from([(), ("numbers", "quotes", "code")]),
)  # fmt: skip
def test_any_text_is_compressed_within_its_budget(compressor, passages, unit, keep, protect):
    check_compressed(compressor, get_method("random-text", unit=unit), passages, keep, protect)


@settings(max_examples=150, deadline=None)
@given(text=SCRIPTS, unit=st.sampled_from(list(WAYS)))
def test_units_hold_all_but_blanks_and_cut_no_character(text, unit):
    made = cut(text, [0], unit, protected(text, [0], ["quotes"]))
    bounds = {m.start() for m in CLUSTER.finditer(text)} | {len(text)}
    edges = [(0, 0), *made.spans, (len(text), len(text))]
    for (_, a), (b, _) in itertools.pairwise(edges):
        assert a <= b
        assert not text[a:b].strip()
    assert {p for span in made.spans for p in span} <= bounds
    assert made.join(range(len(made.spans))) == text


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("Dr. Gray paid $3.50. He left.", ["Dr. Gray paid $3.50.", "He left."]),
        ("One\nwraps here. Two.", ["One\nwraps here.", "Two."]),
        ("# Head\nOne. Two.\n- item. More\n| a | b |", ["# Head", "One.", "Two.", "- item.", "More", "| a | b |"]),
        ("Text.\n```\nx = 1\n\ny = 2\n```\nMore.", ["Text.", "```", "x = 1", "y = 2", "```", "More."]),
        ("今天很好。我们去吧！", ["今天很好。", "我们去吧！"]),
        ("a" * 600, ["a" * 500, "a" * 100]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text, units):
    assert cut(text, [0], "sentence").units() == units


def test_blanks_end_sentences_of_scripts_without_marks():
    first, second = "เซิร์ฟเวอร์เริ่มทำงานตอนเที่ยงวันนี้", "มันฟังพอร์ต 8417 ลูกค้ารออยู่ข้างนอก"
    assert cut(f"{first} {second} จบ", [0], "sentence").units() == [first, second, "จบ"]
    assert cut("แมว หมา นก", [0], "sentence").units() == ["แมว หมา นก"]


def test_texts_that_the_embedded_encoder_was_not_trained_on_are_told(compressor, monkeypatch):
    embedded = ts.Compressor(compressor._tokenizer)
    monkeypatch.setitem(embedded.__dict__, "_encoder", compressor._given)
    for question, text, told in (
        ("哪个端口？", "服务器在中午启动。它监听端口8417！", "the question and the text are hardly"),
        (QUESTION, "服务器在中午启动。它监听端口8417！", "the text is hardly"),
        (QUESTION, "It listens. On a port.", ""),
    ):
        notes = [n for n in embedded(text, question, 0.5).notes if "hardly" in n]
        assert notes[0].startswith(told) if told else not notes
    ranked = embedded("服务器在中午启动。它监听端口8417！", "", 0.5, method="first-text")
    assert not any("hardly" in n for n in ranked.notes)


def test_words_of_scripts_without_blanks_are_their_characters():
    assert cut("ab 中文 ก็ไ", [0], "word").units() == ["ab", "中", "文", "ก็", "ไ"]


def test_what_is_protected_is_not_cut():
    text = 'He said "Stop. Now." twice. Then:\n```\na\n\nb\n```'
    units = cut(text, [0], "sentence", protected(text, [0], ["quotes", "code"])).units()
    assert 'He said "Stop. Now." twice.' in units
    assert "```\na\n\nb\n```" in units


def test_lines_keep_their_indentation(compressor):
    code = "def a_long_name(of_an_argument, and_another):\n    x = 1\n    return x"
    made = compressor(code, "?", keep=6, method="last-text", unit="line")
    assert made.text == "    return x"


def test_paragraphs_stay_apart(compressor):
    text = "One is here. Drop this sentence now.\n\nTwo is here. And drop this one too."
    made = compressor(text, "One two is here.", keep=0.5)
    assert made.text == "One is here.\n\nTwo is here."


def test_the_sentence_that_answers_stays(compressor):
    passages = [f"Nothing of note happens in room {n}. It is quiet there." for n in range(30)]
    passages[17] += " The server listens on port 8417 and does use it."
    made = compressor(passages, QUESTION, keep=0.1)
    assert "8417" in made.text
    place = made.text.index("8417")
    assert made.origin(place) == (17, passages[17].index("8417"))
    with pytest.raises(IndexError, match="characters 0 to"):
        made.origin(len(made.text))


def test_a_heading_comes_with_its_sentence(compressor):
    """Also where it is as unlike the question as a sentence can be, and in front of what is like it."""
    pages = [f"page_{n}(x, y)\n\nIt does the thing number {n}. It returns nothing at all." for n in range(12)]
    pages[7] = "zebra(quagga)\n\nIt listens on the port. It returns nothing at all."
    made = compressor(pages, QUESTION, keep=40)
    assert "zebra(quagga)\n\nIt listens on the port." in made.text
    kept = [part for part in re.split(r"(?=page_|zebra)", made.text) if "(" in part]
    assert all("." in part for part in kept[:-1])


def test_a_heading_that_does_not_fit_lets_its_sentence_stay(compressor):
    heading = "a very long title of words that say what all below it is about"
    made = compressor([f"{heading}\n\nThe port is 8417."], QUESTION, keep=compressor.count("The port is 8417.") + 1)
    assert made.text == "The port is 8417."


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("surprisal", "tcra")])
def test_what_is_held_and_counted_grows_as_the_passages_do(compressor, name):
    """Not as their square: the largest tensor, and how many times over the text is counted."""

    def work(number: int) -> tuple[int, float]:
        texts = [f"Room {n} is quiet. Nothing of note happens in {n * 7}." for n in range(number)]
        again = ts.Compressor(compressor._tokenizer, encoder=compressor._given)
        count, seen = again._count.each, []
        again._count.each = lambda texts: seen.extend(map(len, texts)) or count(texts)
        with Largest() as largest:
            made = again(texts, QUESTION, keep=0.2, method=name)
        return largest.elements, sum(seen) / len(made.source)

    few, many = work(60), work(480)
    assert many[0] <= 8.5 * few[0]
    assert many[1] <= 40


@pytest.mark.slow
def test_of_ten_thousand_passages_the_one_that_answers_stays(compressor):
    passages = [f"Nothing of note happens in room {n}. It is quiet there." for n in range(10_000)]
    passages[7_531] += " The server listens on port 8417 and does use it."
    made = compressor(passages, QUESTION, keep=512)
    assert "8417" in made.text
    assert 500 < made.after <= 512
    assert made.origin(made.text.index("8417"))[0] == 7_531
    half = compressor(passages, QUESTION, keep=0.5)
    assert 0.499 * half.before < half.after <= 0.5 * half.before


def test_repetitions_enter_last(compressor):
    made = compressor(["The port is used. " * 5 + "It is 8417."], QUESTION, keep=15)
    assert made.text.count("The port is used.") < 3
    assert "8417" in made.text


def test_digests_do_not_grow_with_passages(compressor):
    reviews = [
        f"The {w} is good. I like the {w} a lot. Would buy the {w} again. Fine {n}." for n in range(19) for w in "abcd"
    ]
    few, many = (compressor(some, keep=0.9, method="crag").after for some in (reviews[:4], reviews))
    assert many <= 1.2 * few


def test_stages_of_a_plan_run_one_after_the_other(compressor):
    plan = ts.Plan([ts.stage("question", 0.5), ts.stage("random-text", 0.5, unit="word"), ts.stage("snapkv", 0.5)])
    text = " ".join(f"The server number {n} uses port {n}." for n in range(20))
    made = compressor(text, QUESTION, plan=plan)
    first = compressor(text, QUESTION, keep=0.5)
    assert made.after <= first.after // 2 + 1
    assert all(any(a <= s and e <= b for a, b in first.spans) for s, e in made.spans)
    assert "".join(made.source[a:b] for a, b in made.spans) == made.text


def test_a_sieve_refuses_prompt_stages_and_names_compress():
    from tests.models import decoder

    with pytest.raises(ValueError, match=r"tokensieve\.compress"):
        ts.sieve(decoder(), "question", keep=0.5)


def test_costs_count_prompt_stages():
    from tests.models import llava

    model = llava()
    half, plain = (
        ts.cost(model, plan, tokens=64, text=200) for plan in (ts.Plan(ts.stage("question", 0.5)), ts.Plan([]))
    )
    direct = ts.cost(model, ts.Plan([]), tokens=64, text=100)
    assert (half.flops, half.full_flops) == (direct.flops, plain.full_flops)
    assert half.kv_bytes == direct.kv_bytes


def test_costs_of_text_alone():
    from tests.models import decoder

    made = ts.cost(decoder(), ts.Plan([ts.stage("question", 0.25), ts.stage("snapkv", 0.5)]), text=400)
    assert made.kv_bytes == made.full_kv_bytes / 4
    assert made.flops < made.full_flops / 4
    assert made.share == made.flops / made.full_flops


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"keep": None}, "keep is missing"),
        ({"question": ""}, "question=.*method="),
        ({"method": "tome"}, "does not run at site='prompt'"),
        ({"method": "qestion"}, "did you mean question"),
        ({"protect": ["nubers"]}, "numbers"),
        ({"protect": [(0, 999)]}, r"characters 0 to"),
        ({"protect": ["numbers"], "keep": 1}, r"keep=1 tokens; what is protected takes \d+"),
        ({"method": "surprisal", "compressor": {}}, "pass lm="),
        ({"unit": "chapter"}, "passage, sentence, line, word"),
        ({"text": ["fine", 3]}, "passage 1 is a int"),
        ({"text": "half \ud83d"}, "lone surrogate"),
        ({"plan": ts.Plan(ts.stage("snapkv", 0.5)), "keep": None}, "no stage at site='prompt'"),
        ({"plan": ts.Plan(ts.stage("question", 0.5))}, "carries its own"),
    ],
)
def test_what_cannot_be_done_is_refused(compressor, given, told):
    given = {"text": "Room 5 is on fire. Call 112 now, or run away.", "question": "Which room?", "keep": 5, **given}
    if given.pop("compressor", None) is not None:
        compressor = ts.Compressor(compressor._tokenizer, encoder=compressor._given)
    with pytest.raises(ValueError, match=told):
        compressor(given.pop("text"), given.pop("question"), given.pop("keep"), **given)


def test_a_sentence_over_the_budget_is_cut_at_words_and_says_so(compressor):
    made = compressor("this one sentence goes on and on and on without any end in sight", QUESTION, keep=6)
    assert made.source.startswith(made.text)
    assert made.source[len(made.text)] == " "
    assert any("cut to its first words" in note for note in made.notes)


def test_methods_of_words_carry_a_warning(compressor):
    text = "One thing is here. Another thing is there."
    assert WORDS in compressor(text, QUESTION, keep=6, method="random-text", unit="word").notes
    assert WORDS not in compressor(text, QUESTION, keep=6, method="random-text").notes
    assert WORDS not in compressor(text, QUESTION, keep=1.0, method="random-text", unit="word").notes


def test_units_that_the_encoder_reads_in_part_are_told(compressor):
    whole = type(compressor._given)()
    whole.reading = SimpleNamespace(document_length=8)
    again = ts.Compressor(compressor._tokenizer, encoder=whole)
    text = ["word " * 30 + "end.", "Short.", "Also short."]
    assert any("1 units are longer" in n for n in again(text, QUESTION, keep=12, unit="passage").notes)
    notes = again(text, QUESTION, keep=12, method="first-text", unit="passage").notes
    assert notes == ("a unit of 62 tokens would come first and does not fit into 12: it is passed over",)


def test_empty_text_is_said(compressor):
    for text in ("", " \n", []):
        made = compressor(text, QUESTION, keep=4)
        assert "the text is empty" in made.notes


def test_control_tokens_stay_as_text(compressor):
    made = compressor("<|im_start|>user\nMany words stand here. More stand here.<|im_end|>", QUESTION, keep=0.7)
    assert made.text.startswith("<|im_start|>")
    assert made.text.endswith("<|im_end|>")


def test_the_question_stays_where_it_stands(compressor):
    text = "Some facts come first. They are long and many. " * 4 + QUESTION
    made = compressor(text, QUESTION, keep=20, method="first-text")
    assert made.text.endswith(QUESTION)


def test_patterns_words_and_places_can_be_protected(compressor):
    text = "Alpha is here. Beta is there. Gamma is gone. Delta is new."
    for what in (re.compile("Gam.a"), "Gamma", (30, 35)):
        assert "Gamma is gone." in compressor(text, QUESTION, keep=8, method="first-text", protect=[what]).text


def test_a_missing_package_is_named_with_its_command(monkeypatch, compressor):
    import tokensieve.sites.prompt.cutting as cutting
    from tokensieve.extras import Lazy

    monkeypatch.setattr(cutting, "sentencex", Lazy("no_such_package", "prompts"))
    with pytest.raises(ImportError, match=r"pip install '\.\[prompts\]'"):
        compressor("One. Two. Three.", QUESTION, keep=2)


def test_vectors_are_read_once(compressor):
    asked = []
    encoder = compressor._given
    whole = type(encoder)()
    whole.documents = lambda texts: asked.extend(texts) or encoder.documents(texts)
    again = ts.Compressor(compressor._tokenizer, encoder=whole)
    for _ in range(2):
        again("One thing. Two things. One thing.", "Which thing?", keep=6)
    assert sorted(asked) == ["One thing.", "Two things."]
