"""What texts cost: counts against their definitions, languages, the page, and input that is none."""

from __future__ import annotations

import functools
import json
import math
import re
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from typer.testing import CliRunner

from tests.texts import ODD, corpus, trained
from tokensieve.cli.main import app
from tokensieve.parts.budget import flops
from tokensieve.sites.cost import text_cost
from tokensieve.testbed import lm
from tokensieve.text import page, parallel
from tokensieve.text.corpus import PIECE, Corpus, Document, pieces, read
from tokensieve.text.encoding import Coder
from tokensieve.text.loading import from_tiktoken, open_tokenizer
from tokensieve.text.measure import measure
from tokensieve.text.parallel import Parallel
from tokensieve.text.reach import reach
from tokensieve.text.report import premiums, report
from tokensieve.text.vocabulary import Vocabulary


def wordpiece():
    vocabulary = {s: i for i, s in enumerate(["[UNK]", "a", "b", "##a", "##b", "ab", "##ab", "1", "##1", "never##"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def metaspace():
    letters = ["<unk>", "▁", "a", "b", *(f"<0x{b:02X}>" for b in range(256)), "▁a", "ab", "▁ab"]
    vocabulary = {s: i for i, s in enumerate(letters)}
    model = models.BPE(vocabulary, [("a", "b"), ("▁", "ab"), ("▁", "a")], byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def plain_counts(tokenizer, text):
    """Words, their pieces, numbers, their pieces, by looking at each character's tokens."""
    encoded = tokenizer.encode(text, add_special_tokens=False)
    kinds = "".join(
        "w" if unicodedata.category(c)[0] in "LM" else "d" if unicodedata.category(c) == "Nd" else "." for c in text
    )
    out = []
    for kind in "wd":
        runs = [m.span() for m in re.finditer(f"{kind}+", kinds)]
        out += [len(runs), sum(sum(s < end and e > start for s, e in encoded.offsets) for start, end in runs)]
    return out


@functools.cache
def coder(name):
    source = {
        "words": trained,
        "superwords": lambda: trained(superwords=0.45),
        "free": lambda: trained(numbers="free"),
    }[name]()
    return Coder(name, source.tokenizer)


@pytest.mark.parametrize("name", ["words", "superwords", "free"])
@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text(alphabet="aéb 12.\n\tжZ", min_size=1), min_size=1, max_size=4))
def test_pieces_of_words_and_numbers_are_those_of_the_definition(name, texts):
    tokenizer = coder(name).tokenizer
    (got,) = measure([coder(name)], [Document(str(i), t) for i, t in enumerate(texts)])
    wanted = [sum(column) for column in zip(*(plain_counts(tokenizer, t) for t in texts), strict=True)]
    assert [got.words, got.word_pieces, got.numbers, got.number_pieces] == wanted
    assert got.lengths == tuple(len(tokenizer.encode(t, add_special_tokens=False)) for t in texts)
    assert got.tokens == sum(got.lengths)


def test_tokenizers_whose_tokens_are_not_the_text_are_read_by_their_offsets():
    (got,) = measure([Coder("t", wordpiece())], [Document("a", "ab aba 11 111 b")])
    assert (got.words, got.word_pieces, got.numbers, got.number_pieces) == (3, 1 + 2 + 1, 2, 5)
    assert got.lost == ()
    (got,) = measure([Coder("t", wordpiece())], [Document("a", "ab  aba"), Document("b", "ab")])
    assert got.lost == ("a",)
    (got,) = measure([Coder("t", metaspace())], [Document("a", "ab ab é")])
    assert (got.tokens, got.words, got.word_pieces, got.lost) == (5, 3, 4, ())


@pytest.mark.parametrize(
    "made", [wordpiece, metaspace, lambda: trained().tokenizer], ids=["wordpiece", "metaspace", "bytes"]
)
@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(alphabet="ab 1\u00e9\n", min_size=1, max_size=12), min_size=1, max_size=6))
def test_texts_are_compared_as_each_would_be_alone(made, texts):
    coder = Coder("t", made())
    data = [t.encode() for t in texts]
    got = coder.encode(texts, data)
    spelled = coder.vocabulary.bytes
    starts, place = [], 0
    for text, own, exact in zip(texts, data, got.exact.tolist(), strict=True):
        ids = coder.tokenizer.encode(text, add_special_tokens=False).ids
        said = [spelled[i] or b"" for i in ids]
        added = b"".join(said) == b" " + own
        assert exact == (added or b"".join(said) == own)
        at = place - added
        for token in said:
            if exact:
                starts.append(max(at, place))
            at += len(token)
        place += len(own) + 1
    assert got.starts.tolist() == starts
    assert got.counts.tolist() == [len(coder.tokenizer.encode(t, add_special_tokens=False).ids) for t in texts]


def test_special_tokens_that_text_spells_are_text():
    tokenizer = Tokenizer.from_str(trained().tokenizer.to_str())
    tokenizer.add_special_tokens(["<name>"])
    texts = ["ab <name>12 <name>", "<na"]
    got = (coder := Coder("t", tokenizer)).encode(texts, [t.encode() for t in texts])
    assert got.exact.all()
    assert got.returns.all()
    assert coder.vocabulary.bytes[tokenizer.token_to_id("<name>")] is None
    assert {3, 11} <= set(got.starts.tolist())
    (measured,) = measure([coder], [Document(str(i), t) for i, t in enumerate(texts)])
    counts = np.sum([plain_counts(tokenizer, t) for t in texts], 0).tolist()
    assert [measured.words, measured.word_pieces, measured.numbers, measured.number_pieces] == counts


def test_renyi_and_odd_numbers():
    tokenizer = trained(vocab=400, numbers="free").tokenizer
    text = "a12 b12 c12 d34 e1 11111"
    (got,) = measure([Coder("t", tokenizer)], [Document("a", text)])
    ids = tokenizer.encode(text).ids
    share = [n / len(ids) for n in Counter(ids).values()]
    assert got.renyi == pytest.approx(math.log(sum(p**2.5 for p in share)) / (1 - 2.5) / math.log(400))
    ends = {e for _, e in tokenizer.encode(text).offsets}
    cuts = Counter(tuple(m.start() + 1 in ends for _ in "1") for m in re.finditer(r"\d\d(?!\d)(?<!\d\d\d)", text))
    several = 5
    assert got.inconsistent == pytest.approx(1 - (max(cuts.values()) + 1) / several)
    single, grouped = (trained(vocab=400, numbers=n).tokenizer for n in ("single", "r2l"))
    for even in measure([Coder("a", single), Coder("b", grouped)], [Document("a", "1234 12 999 5678 34 7 12345678")]):
        assert even.inconsistent in (0.0, pytest.approx(even.inconsistent))
    (one,) = measure([Coder("a", single)], [Document("a", "1234 12 999 5678 34")])
    assert one.inconsistent == 0
    (none,) = measure([Coder("a", single)], [Document("a", "no digits")])
    assert math.isnan(none.inconsistent)
    assert math.isnan(none.pieces_per_number)


def test_long_documents_are_cut_and_that_is_said():
    text = "word " * (PIECE // 4)
    for most in (7, 50, PIECE):
        some = text[: most * 9 + 3] + "x" * 3 * most
        assert "".join(pieces(some, most)) == some
        assert max(map(len, pieces(some, most))) <= most
    assert [len(p) for p in pieces("", 5)] == [0]
    (got,) = measure([Coder("t", trained().tokenizer)], [Document("long", text), Document("b", "a")])
    assert got.cut == ("long",)
    assert got.lost == ()
    assert sum(got.lengths) == got.tokens


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("fine\x00", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"abc\xff")
    (tmp_path / "c.txt").touch()
    (tmp_path / ".hidden").write_text("no")
    got = read([tmp_path])
    assert [d.text for d in got.documents] == ["fine\x00"]
    assert sorted(got.skipped.values()) == ["empty", "not UTF-8 at byte 3 (ff)"]
    with pytest.raises(ValueError, match=r"not UTF-8 at byte 3 .* iconv"):
        read([tmp_path / "b.txt"])
    with pytest.raises(ValueError, match=r"no text in .*c\.txt: empty"):
        read([tmp_path / "c.txt"])
    with pytest.raises(ValueError, match="does not exist"):
        read([tmp_path / "d.txt"])
    with pytest.raises(ValueError, match="given twice"):
        report([("a", trained().tokenizer), ("a", trained().tokenizer)], got)
    with pytest.raises(ValueError, match="no tokenizer"):
        report([], got)


def test_the_digest_is_of_the_texts():
    a, b = Document("a", "one"), Document("b", "two")
    assert Corpus((a, b), {}).digest == Corpus((Document("c", "one"), b), {}).digest
    assert Corpus((a, b), {}).digest != Corpus((b, a), {}).digest
    assert Corpus((a, b), {}).digest != Corpus((Document("a", "onetwo"),), {}).digest


# ---- vocabularies -------------------------------------------------------------------------------------------------------


def test_tokens_that_no_text_reaches_are_found():
    tokenizer = wordpiece()
    found = reach(tokenizer)
    assert [Vocabulary.of(tokenizer).strings[i] for i in found.unreachable] == ["never##"]
    assert found.special == (0,)
    state = json.loads(trained().tokenizer.to_str())
    state["model"]["vocab"] |= {"nevermade": 600, "âĤ": 601}
    found = reach(Tokenizer.from_str(json.dumps(state)))
    assert (found.unreachable, found.unused) == ((600,), ())
    assert 601 in found.incomplete
    assert reach(metaspace()).unreachable == ()


def test_bytes_of_tokens():
    assert Vocabulary.of(wordpiece()).bytes[1:5] == (b" a", b" b", b"a", b"b")
    of = Vocabulary.of(metaspace())
    assert (of.kind, of.bytes[of.strings.index("▁ab")], of.bytes[of.strings.index("<0xC3>")]) == (
        "byte-fallback",
        b" ab",
        b"\xc3",
    )
    of = Vocabulary.of(lm.load()[1].backend_tokenizer)
    assert of.kind == "byte-level"
    assert {of.strings[i] for i in of.special} == {"<|end|>", "<|pad|>"}
    assert sorted(b for b in of.bytes if b and len(b) == 1) == [bytes([b]) for b in range(256)]


# ---- opening ------------------------------------------------------------------------------------------------------------


def test_tokenizers_open_from_wherever_they_lie(tmp_path):
    made = trained()
    made.save(tmp_path)
    ids = made.tokenizer.encode(ODD).ids
    cut = Tokenizer.from_str(made.tokenizer.to_str())
    cut.enable_truncation(2)
    cut.enable_padding(length=9)
    for source in (tmp_path, str(tmp_path), tmp_path / "tokenizer.json", cut):
        assert open_tokenizer(source).encode(ODD).ids == ids
    assert len(cut.encode(ODD).ids) == 9
    assert open_tokenizer(lm.load()[1]).encode("a").ids == lm.load()[1]("a")["input_ids"]


def test_what_is_no_tokenizer_is_said(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no tokenizer\.json that tokenizers can read"):
        open_tokenizer(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json; AutoTokenizer"):
        open_tokenizer(tmp_path / "empty")
    with pytest.raises(ValueError, match="does not exist"):
        open_tokenizer("./nowhere")
    with pytest.raises(ValueError, match="list is no tokenizer"):
        open_tokenizer([])


def test_tiktoken_encodings_keep_their_ids():
    tiktoken = pytest.importorskip("tiktoken")
    table = Vocabulary.of(trained().tokenizer)
    ranks = {b: i - 1 for i, b in enumerate(table.bytes) if b is not None}
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    given = tiktoken.Encoding(
        "own", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|end|>": 700, "<|x|>": 650}
    )
    made = from_tiktoken(given)
    for text in (ODD, *(d.text for d in corpus(20_000).documents)):
        assert made.encode(text).ids == given.encode(text, disallowed_special=())
    assert made.encode("a<|end|>b<|x|>").ids == given.encode("a<|end|>b<|x|>", allowed_special="all")
    assert made.decode(made.encode(ODD).ids, skip_special_tokens=False) == ODD


def test_another_encoder_is_used_only_where_it_agrees(monkeypatch):
    import sys
    import types

    class Other:
        wrong = False

        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def encode_batch(self, data):
            import numpy as np

            rows = [self.tokenizer.encode(d.decode()).ids for d in data]
            return [np.array(r[::-1] if self.wrong else r) for r in rows]

    monkeypatch.setitem(sys.modules, "gigatoken", types.SimpleNamespace(Tokenizer=Other, __version__="9"))
    documents = [Document("a", "some words of text")]
    coder = Coder("t", trained().tokenizer)
    (fast,) = measure([coder], documents)
    assert coder.note == "gigatoken 9"
    Other.wrong = True
    coder = Coder("t", trained().tokenizer)
    assert measure([coder], documents)[0].renyi == fast.renyi
    assert coder.note == "tokenizers (gigatoken gave other ids on a sample of 1 texts)"
    monkeypatch.setitem(sys.modules, "gigatoken", types.SimpleNamespace(Tokenizer=lambda t: 1 / 0))
    coder = Coder("t", trained().tokenizer)
    assert measure([coder], documents)[0].renyi == fast.renyi
    assert "gigatoken refuses this tokenizer: division by zero" in coder.note


# ---- languages ----------------------------------------------------------------------------------------------------------


def test_the_premium_is_tokens_over_tokens_for_the_same_content():
    tokenizer = trained().tokenizer
    both = Parallel("en", {"xx": (("žluť", "kůň"), ("yellow", "horse"))}, {}, "")
    length = {t: len(tokenizer.encode(t)) for t in ("žluť", "kůň", "yellow", "horse")}
    wanted = (length["žluť"] + length["kůň"]) / (length["yellow"] + length["horse"])
    assert premiums(tokenizer, both) == {"xx": wanted}


def test_names_are_those_that_both_languages_have():
    pytest.importorskip("babel")
    got = parallel.names(("de", "my", "dsb"))
    assert set(got.pairs) | set(got.few) == {"de", "my", "dsb"}
    theirs, own = got.pairs["de"]
    assert len(theirs) == len(own) >= parallel.FEWEST
    assert ("Deutschland", "Germany") in set(zip(theirs, own, strict=True))
    assert parallel.names(("de",), fewest=10**6).few == {"de": len(theirs)}
    with pytest.raises(ValueError, match="language 'xq': CLDR has none"):
        parallel.names(("xq",))


def test_parallel_files_answer_line_by_line(tmp_path):
    with pytest.raises(ValueError, match="holds 0 files"):
        parallel.lines(tmp_path)
    (tmp_path / "en.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="holds 1 files"):
        parallel.lines(tmp_path)
    (tmp_path / "de.txt").write_text("eins\nzwei\ndrei\n")
    with pytest.raises(ValueError, match=r"unequal numbers of lines \(de.txt 3, en.txt 2\)"):
        parallel.lines(tmp_path)
    (tmp_path / "de.txt").write_text("eins\nzwei\n")
    assert parallel.lines(tmp_path).pairs == {"de": (("eins", "zwei"), ("one", "two"))}
    with pytest.raises(ValueError, match=r"holds no fr\.txt, the base"):
        parallel.lines(tmp_path, base="fr")


# ---- cost, page, command ------------------------------------------------------------------------------------------------


def test_the_price_of_text_is_that_of_its_layers():
    config = lm.load()[0].config
    computed, held = text_cost(config, [10, 10, 300])
    depth = config.num_hidden_layers
    assert computed == depth * (2 * flops.of_layer(config, 10) + flops.of_layer(config, 300))
    assert held == depth * flops.kv_bytes(config, 320)


def test_coloured_text_is_the_text():
    tokenizer = trained().tokenizer
    count, markup = page.coloured(tokenizer, ODD + "<b>&")
    plain = re.sub("</?i>", "", str(markup))
    assert (
        plain.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == ODD.translate(page.CONTROLS) + "<b>&"
    )
    assert count == len(tokenizer.encode(ODD + "<b>&"))
    assert "<b>" not in str(markup)


def test_the_command_compares_tokenizers(tmp_path):
    (tmp_path / "text.txt").write_text(
        corpus(20_000).documents[0].text * 3 + "<script>alert(1)</script>", encoding="utf-8"
    )
    (tmp_path / "long.txt").write_text("many words " * 3000, encoding="utf-8")
    for name, options in (("one", {}), ("two", {"superwords": 0.45})):
        trained(**options).save(tmp_path / name)
    arguments = [
        "tokenizer",
        "report",
        str(tmp_path / "text.txt"),
        str(tmp_path / "long.txt"),
        "--out",
        str(tmp_path / "page.html"),
    ]
    for name in ("one", "two"):
        arguments += ["--tokenizer", str(tmp_path / name)]
    done = CliRunner().invoke(app, [*arguments, "--model", str(lm.path())])
    assert done.exit_code == 0, done.output
    assert "bytes/token" in done.output
    assert "FLOPs to prefill" in done.output
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "(its first 20,000 characters)" in text
    assert "<script>alert" not in text
    assert not re.search(r"(src|href)=", text)
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["two"]["measured"]["tokens"] < rows["one"]["measured"]["tokens"]
    assert rows["one"]["reach"]["unreachable"] == []


def test_a_pre_tokenizer_that_leaves_text_out_loses_it():
    tokenizer = open_tokenizer(trained().tokenizer)
    bytes_ = pre_tokenizers.ByteLevel(use_regex=False, add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(" "), "removed"), bytes_])
    (got,) = measure([Coder("t", tokenizer)], [Document("a", "a b"), Document("b", "ab")])
    assert got.lost == ("a",)
