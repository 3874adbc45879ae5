"""Tokenizers by recipe: what was learned, what comes back, and what is refused."""

from __future__ import annotations

import functools
import json
import os
import random
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from typer.testing import CliRunner

from tests.texts import ODD, corpus, learned_by_loops, trained
from tokensieve.cli.main import app
from tokensieve.text import superwords
from tokensieve.text.config import TokenizerConfig
from tokensieve.text.corpus import Corpus, Document, read_bytes
from tokensieve.text.cutting import untrained
from tokensieve.text.encoding import Coder
from tokensieve.text.measure import measure
from tokensieve.text.merges import merges_of, parts_of, with_model
from tokensieve.text.reach import reach
from tokensieve.text.superwords import learn
from tokensieve.text.train import sampled, texts_of, train
from tokensieve.text.vocabulary import Vocabulary

RECIPES = (
    {},
    {"superwords": 0.45},
    {"superwords": 0.45, "numbers": "single", "barriers": ("words", "newline", "punctuation")},
    {"barriers": ("newline",), "numbers": "l2r"},
    {"algorithm": "unigram"},
)


@pytest.mark.parametrize("options", RECIPES, ids=str)
def test_every_text_comes_back_and_every_token_is_reached(options):
    made = trained(**options)
    for text in (ODD, *(d.text for d in corpus(20_000, at=40).documents)):
        assert made.tokenizer.decode(made.tokenizer.encode(text).ids, skip_special_tokens=False) == text
    found = reach(made.tokenizer)
    # Unigram keeps pieces that its best cut never takes.
    assert found.unreachable == () or options.get("algorithm") == "unigram"
    assert len(found.single) == 128
    assert made.tokenizer.get_vocab_size() == made.config.vocab == 600


@functools.cache
def table_of_bytes():
    return Vocabulary.of(trained(superwords=0.45).tokenizer).bytes


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_any_text_comes_back(text):
    tokenizer = trained(superwords=0.45).tokenizer
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    table = table_of_bytes()
    assert b"".join(table[i] for i in ids if table[i] is not None) == text.encode() or "<|endoftext|>" in text


def test_superwords_are_what_plain_loops_learn_over_the_tokens_of_the_first_stage():
    config = TokenizerConfig(vocab=400, superwords=0.5)
    first = train(corpus(12_000), TokenizerConfig(vocab=400 - 72)).tokenizer
    across = with_model(first, parts_of(first), merges_of(first), untrained(config, final=True).pre_tokenizer)
    texts = [d.text for d in corpus(12_000).documents]
    rows = []
    for text in texts:
        encoded = across.encode(text)
        by_chunk = {}
        for i, chunk in zip(encoded.ids, encoded.word_ids, strict=True):
            by_chunk.setdefault(chunk, []).append(i)
        rows += by_chunk.values()
    names = {i: s for s, i in across.get_vocab().items() if s != "<|endoftext|>"}
    assert learn(across, texts, 72, frozenset({0}))[:72] == learned_by_loops(rows, names, 72)
    whole = train(corpus(12_000), config).tokenizer
    assert merges_of(whole)[: len(merges_of(first))] == merges_of(first)


@pytest.mark.parametrize(
    ("text", "barriers", "longest"),
    [
        ("acgt" * 2000, ("words", "newline"), 512),
        ("some words of a long line " * 400, ("words",), 10_400),
        ("some words of a long line " * 400, ("newline",), 2048),
        ("a line of words\n" * 400, ("newline",), 6_400),
        ("a line of words\n" * 400, ("none",), 2048),
    ],
)
def test_no_trainer_is_given_words_without_end(text, barriers, longest):
    parts = [part for group in texts_of([Document("a", text)], barriers) for part in group]
    assert "".join(parts) == text
    assert longest * 0.4 < max(map(len, parts)) <= longest


def test_long_chunks_are_cut_for_the_second_stage():
    made = trained(vocab=400, barriers=("none",)).tokenizer
    text = "one line that never ends, " * 2000
    between = 0xF0000
    (spelled,) = superwords._spelled(made, [text], between, frozenset())
    chunks = spelled.split(chr(between))
    assert max(map(len, chunks)) == superwords.LONGEST
    assert sum(map(len, chunks)) == len(made.encode(text).ids)


def test_a_text_of_one_line_is_learned_from():
    rng = random.Random(0)
    endless = "".join(rng.choice(("acgt", "ggat", "tta", "c")) for _ in range(40_000))
    made = train(Corpus((Document("a", endless),), {}), TokenizerConfig(vocab=330, superwords=0.3))
    assert made.tokenizer.decode(made.tokenizer.encode(endless).ids) == endless
    assert reach(made.tokenizer).unreachable == ()


def test_superwords_go_across_words_and_not_across_barriers():
    made = trained(vocab=800, superwords=0.45)
    texts = [t for t in Vocabulary.of(made.tokenizer).texts if t]
    assert any(" " in t.strip(" ") for t in texts)
    assert not any("\n" in t.rstrip("\r\n") for t in texts)
    digits = [t for t in texts if any(c.isdigit() for c in t)]
    assert all(t.isdigit() and len(t) <= 3 for t in digits)
    ids = made.tokenizer.encode("of the").ids
    assert len(ids) < len(trained(vocab=440).tokenizer.encode("of the").ids) + 1


@pytest.mark.parametrize(
    ("numbers", "pieces"),
    [
        ("r2l", "1|234|567"),
        ("l2r", "123|456|7"),
        ("single", "1|2|3|4|5|6|7"),
        ("comma", "1|,|234|,|567"),
        ("free", "1234567"),
    ],
)
def test_numbers_are_cut_as_asked(numbers, pieces):
    tokenizer = untrained(TokenizerConfig(vocab=300, numbers=numbers))
    text = tokenizer.normalizer.normalize_str("1234567") if tokenizer.normalizer else "1234567"
    assert [p for p, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == pieces.split("|")


def test_long_numbers_are_cut_in_time_that_grows_with_them():
    cut = untrained(TokenizerConfig(vocab=300)).pre_tokenizer.pre_tokenize_str("7" * 50_000)
    assert max(len(p) for p, _ in cut) == 3


def test_raw_bytes_come_back_and_all_have_a_token(tmp_path):
    data = bytes(range(256)) * 8 + b"\x7fELF\x02\x01\x01" * 200
    made = train(
        Corpus((Document("a", data.decode("latin-1"), raw=True),), {}),
        TokenizerConfig(vocab=270, raw=True, numbers="free", barriers=("none",)),
    )
    other = os.urandom(500) + bytes(range(256))
    ids = made.tokenizer.encode(other.decode("latin-1")).ids
    assert made.tokenizer.decode(ids).encode("latin-1") == other
    assert len(made.tokenizer.encode(data.decode("latin-1")).ids) < 0.6 * len(data)
    (tmp_path / "binary").write_bytes(other)
    (got,) = measure([Coder("raw", made.tokenizer)], read_bytes([tmp_path]).documents)
    assert (got.bytes, got.tokens, got.lost) == (len(other), len(ids), ())


def languages():
    texts = {
        "en": "the cat sat on the mat and the dog ran to the house\n" * 400,
        "xx": "žluťoučký kůň příliš úpěl ďábelské ódy nad šedou řekou\n" * 20,
        "yy": "собака бежала домой через большой зелёный лес и поле\n" * 20,
    }
    dev = {name: tuple(text.splitlines()[:4]) for name, text in texts.items()}
    return Corpus(tuple(Document(f"{n}/a.txt", t) for n, t in texts.items()), {}), dev


def test_parity_brings_languages_together_with_all_bytes():
    documents, dev = languages()
    config = TokenizerConfig(vocab=300)
    plain, fair = train(documents, config).tokenizer, train(documents, config, dev).tokenizer

    def gini(tokenizer):
        cost = sorted(sum(len(tokenizer.encode(line)) for line in rows) for rows in dev.values())
        n = len(cost)
        return sum((2 * i - n + 1) * c for i, c in enumerate(cost)) / (n * sum(cost))

    assert gini(fair) < gini(plain) / 2
    assert fair.get_vocab_size() == 300
    assert fair.decode(fair.encode(ODD).ids) == ODD
    assert fair.token_to_id("<|endoftext|>") == 0
    assert reach(fair).unreachable == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab": 256}, "above 257: every byte"),
        ({"superwords": 1.0}, "superwords"),
        ({"algorithm": "bp"}, "algorithm"),
        ({"algorithm": "unigram", "superwords": 0.2}, "BPE's"),
        ({"superwords": 0.2, "barriers": ("newline",)}, "'words' must be a barrier"),
        ({"raw": True}, "raw bytes have neither words"),
        ({"special": ("a", "a")}, "a text of its own"),
        ({"numbers": "left"}, "numbers"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**options)


@pytest.mark.parametrize("options", [{}, {"superwords": 0.5}], ids=str)
def test_more_tokens_than_pairs_are_refused_with_their_number(options):
    few = Corpus((Document("a", "abc abc abd"),), {})
    with pytest.raises(ValueError, match=r"vocab=500, .* no more than 2\d\d tokens"):
        train(few, TokenizerConfig(vocab=500, **options))


def test_parity_is_refused_where_it_makes_no_sense():
    documents, dev = languages()
    with pytest.raises(ValueError, match="between 1 languages"):
        train(documents, TokenizerConfig(vocab=300), {"en": dev["en"]})
    with pytest.raises(ValueError, match=r"unequal numbers of texts \(en 4, xx 3"):
        train(documents, TokenizerConfig(vocab=300), dev | {"xx": dev["xx"][:3]})
    with pytest.raises(ValueError, match="no part of its path is one of the languages"):
        train(Corpus((Document("a.txt", "a b"),), {}), TokenizerConfig(vocab=300), dev)
    with pytest.raises(ValueError, match="no text of zz"):
        train(documents, TokenizerConfig(vocab=300), dev | {"zz": dev["xx"]})
    with pytest.raises(ValueError, match="parity is BPE's"):
        train(documents, TokenizerConfig(vocab=300, algorithm="unigram"), dev)


def test_documents_are_drawn_at_random_and_the_same_by_seed():
    documents = corpus().documents
    one = sampled(documents, TokenizerConfig(sample=20_000, seed=1))
    assert one == sampled(documents, TokenizerConfig(sample=20_000, seed=1))
    assert one != sampled(documents, TokenizerConfig(sample=20_000, seed=2))
    assert one != list(documents[: len(one)])
    assert 20_000 <= sum(len(d.text.encode()) for d in one) < sum(len(d.text) for d in documents)


def test_the_command_writes_what_transformers_opens_and_a_recipe(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for document in corpus(20_000).documents:
        (texts / document.name).write_text(document.text, encoding="utf-8")
    (texts / "broken.txt").write_bytes(b"\xff\xfe")
    out = tmp_path / "new" / "tokenizer"
    done = CliRunner().invoke(
        app, ["tokenizer", "train", str(texts), "--out", str(out), "--vocab", "400", "--superwords", "0.4", "--json"]
    )
    assert done.exit_code == 0, done.output
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["config"] == TokenizerConfig(vocab=400, superwords=0.4).json()
    assert len(recipe["digest"]) == len(recipe["tokenizer"]) == 64
    opened = AutoTokenizer.from_pretrained(out)
    assert opened.decode(opened(ODD)["input_ids"]) == ODD
    assert opened.eos_token == "<|endoftext|>"
    again = train(corpus(20_000), TokenizerConfig(vocab=400, superwords=0.4))
    assert again.tokenizer.encode(ODD).ids == opened(ODD)["input_ids"]
    assert sorted(f.name for f in out.iterdir()) == ["recipe.json", "tokenizer.json", "tokenizer_config.json"]


def test_a_folder_that_cannot_be_written_is_said_before_any_work(tmp_path, monkeypatch):
    if os.geteuid() == 0:
        file = tmp_path / "file"
        file.touch()
        out = file / "tokenizer"  # root may write to any folder, but a file is none
    else:
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        out = tmp_path / "tokenizer"
    monkeypatch.setattr("tokensieve.text.corpus.read", lambda paths: pytest.fail("read before the folder was tried"))
    done = CliRunner().invoke(app, ["tokenizer", "train", str(tmp_path), "--out", str(out)])
    assert isinstance(done.exception, OSError)
    assert "cannot be written to" in str(done.exception)


def test_an_interrupted_run_leaves_nothing_half_written(tmp_path, monkeypatch):
    made = trained()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tokensieve.core.files.os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        made.save(tmp_path / "t")
    assert list((tmp_path / "t").iterdir()) == []
