"""Next bytes from next tokens, prompts that end inside a token, and infilling."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import models as hf_models
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor

import tokensieve as ts
from tests.texts import trained
from tokensieve.text.decoding import END
from tokensieve.text.infill import FillFormat
from tokensieve.text.proper import Spelling, cut, is_proper


def lm(size, seed=0, sharp=12.0, **options):
    """A small model that is sure of itself."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=0, eos_token_id=0, max_position_embeddings=256, **options,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data.mul_(sharp)
    return model


def level(words, merges=(), specials=("<|end|>",)):
    """A byte-level vocabulary of few tokens."""
    alphabet = ["a", "b", "Ġ", "ð", "Ł", "İ", "ī", "Ã", "¨", "©", *words]
    vocabulary = {s: i for i, s in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(hf_models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    return tokenizer


def bpe():
    merges = [("a", "b"), ("ab", "a"), ("Ġ", "ab"), ("ð", "Ł"), ("b", "b"), ("Ã", "¨")]
    return level([x + y for x, y in merges], merges)


def greedy():
    """Longest match first, by pieces that say themselves; no bytes."""
    pieces = ["[UNK]", "<|end|>", "a", "b", "ab", "aba", "bb", "è"]
    tokenizer = Tokenizer(
        hf_models.WordPiece(vocab={s: i for i, s in enumerate(pieces)}, unk_token="[UNK]", continuing_subword_prefix="")
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def fallback():
    """A vocabulary that puts a space before the text, and writes what it does not know in bytes."""
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    merges = [("a", "b"), ("▁", "ab"), ("ab", "a")]
    pieces = ["<unk>", "<s>", "</s>", *bytes_, "▁", "a", "b", "ab", "▁ab", "aba"]
    tokenizer = Tokenizer(
        hf_models.BPE(
            vocab={s: i for i, s in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


@torch.no_grad()
def probability(model, ids):
    """Of a row of tokens behind token 0."""
    logits = model(input_ids=torch.tensor([[0, *ids]])).logits[0].double().log_softmax(-1)
    return math.exp(sum(float(logits[i, t]) for i, t in enumerate(ids)))


def enumerated(model, tokenizer, prefix, end=0, lead=b""):
    """(257,) by the definition: every row of tokens that covers a byte more, its finished part proper."""
    spelling = Spelling(tokenizer)
    spelled = spelling.vocabulary.bytes
    mass = torch.zeros(257, dtype=torch.float64)
    target = lead + prefix

    def proper(ids):
        text = b"".join(spelled[i] for i in ids)
        if lead and text in (b"", lead):
            return ids in ([], [tokenizer.token_to_id("▁")])
        written = tokenizer.encode(text[len(lead) :].decode(errors="replace"), add_special_tokens=False).ids
        if b"\xef\xbf\xbd" not in text.decode(errors="replace").encode():
            return written == ids
        parts = spelling.frame(text[len(lead) :])
        return parts.ids(parts.tail) == tuple(ids)

    def walk(ids, text):
        if not proper(ids):
            return
        if text == target:
            mass[END] += probability(model, [*ids, end])
        for i, b in enumerate(spelled):
            if not b:
                continue
            longer = text + b
            if len(longer) > len(target) and longer.startswith(target):
                mass[longer[len(target)]] += probability(model, [*ids, i])
            elif len(longer) <= len(target) and target.startswith(longer):
                walk([*ids, i], longer)

    walk([], b"")
    return mass / mass.sum()


@pytest.mark.parametrize(
    "prefix", [b"", b"a", b"aba", b"abab ab", b"bb a", "a🎉".encode()[:-1], "è".encode()[:1], b"ab  "]
)
def test_next_bytes_are_those_of_all_covers(prefix):
    tokenizer = bpe()
    model = lm(20)
    found = ts.byte_model(model, tokenizer).next(prefix)
    assert torch.allclose(found.log_probs.exp(), enumerated(model, tokenizer, prefix), atol=1e-6)
    assert 0 <= found.outside < 1


@pytest.mark.parametrize("prefix", [b"", b"a", b"aba", b"ababb", "abè".encode()])
def test_next_bytes_of_a_greedy_vocabulary(prefix):
    tokenizer, model = greedy(), lm(8)
    model.generation_config.eos_token_id = 1
    found = ts.byte_model(model, tokenizer).next(prefix)
    assert torch.allclose(found.log_probs.exp(), enumerated(model, tokenizer, prefix, end=1), atol=1e-6)


@pytest.mark.parametrize("prefix", [b"", b"a", b"ab aba", "aé".encode()[:-1], "é".encode()])
def test_next_bytes_of_a_vocabulary_with_a_space_before_the_text(prefix):
    tokenizer, model = fallback(), lm(265)
    found = ts.byte_model(model, tokenizer).next(prefix)
    assert torch.allclose(found.log_probs.exp(), enumerated(model, tokenizer, prefix, lead=b" "), atol=1e-6)


def with_added():
    """As :func:`bpe`, with an added token of text that nothing marks as special."""
    tokenizer = bpe()
    tokenizer.add_tokens(["baab"])
    return tokenizer


@pytest.mark.parametrize("prefix", [b"", b"ba", b"aba", b"abaab", b"baaba"])
def test_added_tokens_match_as_text(prefix):
    tokenizer = with_added()
    model = lm(20)
    added = tokenizer.token_to_id("baab")
    b = ts.byte_model(model, tokenizer)
    assert added not in b.spelling.special
    assert torch.allclose(b.next(prefix).log_probs.exp(), enumerated(model, tokenizer, prefix), atol=1e-6)
    aligned = b.align("a baab", back=1)
    assert aligned.removed == (b"baab",)
    passed = aligned.inputs["logits_processor"][0](aligned.inputs["input_ids"], torch.zeros(1, 20)).isfinite()[0]
    assert {i for i, ok in enumerate(passed.tolist()) if ok} == {added, tokenizer.token_to_id("b")}


def test_rows_that_are_not_proper_are_outside():
    """Of the covers of "ab" the row a, b is one the tokenizer never writes."""
    tokenizer, model = bpe(), lm(20)
    names = tokenizer.get_vocab()
    spelled = Spelling(tokenizer).vocabulary.bytes
    a, b, ab = names["a"], names["b"], names["ab"]
    found = ts.byte_model(model, tokenizer).next(b"ab")
    wrong = probability(model, [a, b])
    covering = sum(probability(model, [i]) for i, s in enumerate(spelled) if s and s.startswith(b"ab"))
    covering += sum(probability(model, [a, i]) for i, s in enumerate(spelled) if s and s.startswith(b"b"))
    special = probability(model, [ab]) - sum(probability(model, [ab, i]) for i, s in enumerate(spelled) if s or i == 0)
    assert found.outside == pytest.approx((wrong + special) / covering, abs=1e-5)


def test_a_prefix_that_goes_on_reads_only_what_is_new():
    tokenizer, model = trained(vocab=400).tokenizer, lm(400)
    b = ts.byte_model(model, tokenizer)
    read = []
    model.register_forward_pre_hook(lambda m, a, k: read.append(k["input_ids"].numel()), with_kwargs=True)
    text = "the statement returns a list of strings, and the next of them is"
    b.next(text)
    whole, read[:] = sum(read), []
    went_on = b.next(text + " t").log_probs
    assert sum(read) < whole / 2
    assert torch.allclose(went_on, ts.byte_model(model, tokenizer).next(text + " t").log_probs, atol=1e-4)


def test_a_prefix_that_parts_from_the_last_reads_only_what_is_new():
    tokenizer, model = trained(vocab=400).tokenizer, lm(400)
    b = ts.byte_model(model, tokenizer)
    read = []
    model.register_forward_pre_hook(lambda m, a, k: read.append(k["input_ids"].numel()), with_kwargs=True)
    text = "the statement returns a list of strings, and the next of them is"
    b.next(text + " not the one that was asked for")
    for end in (" the", "", " a list of the other kind", " a list"):
        whole = ts.byte_model(model, tokenizer).next(text + end).log_probs
        read.clear()
        assert torch.allclose(b.next(text + end).log_probs, whole, atol=1e-4)
        assert sum(read) < len(tokenizer.encode(text).ids)


def test_answers_are_valid_and_stop():
    tokenizer, model = trained(vocab=400).tokenizer, lm(400)
    b = ts.byte_model(model, tokenizer)
    for seed in range(3):
        drawn = b.generate("the", max_bytes=12, temperature=2.0, seed=seed)
        cut(drawn)  # raises where it is not UTF-8
        assert drawn == b.generate("the", max_bytes=12, temperature=2.0, seed=seed)
    answer = b.generate("the fi", max_bytes=12)
    step = [int(b.next(b"the fi" + answer[:i]).log_probs[:256].argmax()) for i in range(3)]
    assert list(answer[:3]) == step
    assert b.generate("the fi", until=answer[:2]) == answer[:2]
    assert b.generate("the", max_bytes=0) == b""
    with pytest.raises(ValueError, match="until is empty"):
        b.generate("the", until="")
    with pytest.raises(ValueError, match="max_bytes is -1"):
        b.generate("the", max_bytes=-1)


def test_bits_are_those_of_all_covers():
    tokenizer, model = bpe(), lm(20)
    text = b"abab bb"
    b = ts.byte_model(model, tokenizer)
    spelled = Spelling(tokenizer).vocabulary.bytes
    total = 0.0
    for n in range(len(text)):
        part = tokenizer.encode(text[:n].decode()).ids
        total += sum(probability(model, [*part, i]) for i, s in enumerate(spelled) if s and s.startswith(text[n:]))
    exact = set()
    for n in range(len(text)):
        part = tokenizer.encode(text[:n].decode()).ids
        exact |= {(*part, i) for i, s in enumerate(spelled) if s == text[n:]}
    assert tuple(tokenizer.encode(text.decode()).ids) in exact
    assert b.score(text) == pytest.approx(-math.log2(total) / len(text), abs=1e-5)
    with pytest.raises(ValueError, match="empty"):
        b.score("")


def test_long_texts_are_scored_in_pieces(monkeypatch):
    b = ts.byte_model(lm(400), trained(vocab=400).tokenizer)
    text = "the naïve list " * 3
    whole = [b.score("the na"), b.score("ïve l"), b.score("ist the")]
    monkeypatch.setattr("tokensieve.text.decoding.PIECE", 7)
    assert b.score("the naïve l") == pytest.approx((6 * whole[0] + 6 * whole[1]) / 12, abs=1e-5)
    assert b.score(text) > 0


def test_an_ensemble_across_tokenizers():
    one = ts.byte_model(lm(20), bpe())
    two = ts.byte_model(lm(400, seed=1), trained(vocab=400).tokenizer)
    mixed = ts.mix_bytes([one, two], [3, 1])
    want = 0.75 * one.next("ab").log_probs.exp() + 0.25 * two.next("ab").log_probs.exp()
    assert torch.allclose(mixed.next("ab").log_probs.exp(), want)
    assert len(mixed.generate("ab", max_bytes=3)) <= 3
    chain = -sum(float(mixed.next("ab"[:i]).log_probs[ord(c)]) for i, c in enumerate("ab")) / 2 / math.log(2)
    assert mixed.score("ab") == pytest.approx(chain)
    alone = ts.mix_bytes([one]).next("ab").log_probs
    assert torch.allclose(alone.exp(), one.next("ab").log_probs.exp())
    for weights in ([1], [0, 0], [1, -1], [1, float("nan")]):
        with pytest.raises(ValueError, match="weights"):
            ts.mix_bytes([one, two], weights)


def test_what_no_tokens_stand_for_is_refused():
    b = ts.byte_model(lm(20), bpe())
    with pytest.raises(ValueError, match="not UTF-8"):
        b.next(b"a\xff b")
    with pytest.raises(ValueError, match="does not give"):
        b.next("axb")
    lossy = Tokenizer.from_str(trained(vocab=400).tokenizer.to_str())
    lossy.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match="normalizer"):
        ts.byte_model(lm(400), lossy).next("The")
    with pytest.raises(ValueError, match="at most 256"):
        ts.byte_model(lm(400), trained(vocab=400).tokenizer).next("a 1 " * 200)
    with pytest.raises(ValueError, match="outputs for 20"):
        ts.byte_model(lm(20), trained(vocab=400).tokenizer)
    with pytest.raises(ValueError, match="prefix is a int"):
        b.next(3)


def test_special_tokens_of_a_prefix_are_tokens():
    tokenizer = level(["ab"], [("a", "b")], specials=("<|end|>", "<s>"))
    model = lm(13)
    b = ts.byte_model(model, tokenizer)
    names = tokenizer.get_vocab()
    spelled = Spelling(tokenizer).vocabulary.bytes
    with torch.no_grad():
        p = model(input_ids=torch.tensor([[names["a"], names["<s>"]]])).logits[0, -1].double().softmax(-1)
    found = b.next("a<s>").log_probs.exp()
    said = sum(float(p[i]) for i, s in enumerate(spelled) if s and s[:1] == b"a")
    known = sum(float(p[i]) for i, s in enumerate(spelled) if s or i == 0)
    assert float(found[ord("a")]) == pytest.approx(said / known, abs=1e-6)


# ---- prompts that end inside a token --------------------------------------------------------------------------------------


def generated(model, aligned, **options):
    return model.generate(**aligned.inputs, pad_token_id=0, **({"max_new_tokens": 8, "do_sample": False} | options))


@pytest.fixture(scope="module")
def words():
    tokenizer = trained(vocab=400).tokenizer
    return ts.byte_model(lm(400), tokenizer), tokenizer


PROMPTS = ["the statem", "a list of str", "retur"]


def test_nothing_taken_changes_nothing(words):
    b, tokenizer = words
    for prompt in PROMPTS:
        aligned = b.align(prompt, back=0)
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        assert torch.equal(aligned.inputs["input_ids"], ids)
        plain = b.model.generate(
            ids, attention_mask=torch.ones_like(ids), pad_token_id=0, max_new_tokens=8, do_sample=False
        )
        assert torch.equal(generated(b.model, aligned), plain)
        scores = torch.randn(1, 400)
        assert aligned.inputs["logits_processor"][0](ids, scores) is scores


def test_nothing_changes_where_the_model_prefers_what_was_taken(words):
    b, tokenizer = words
    model = b.model
    ids = torch.tensor([tokenizer.encode(PROMPTS[0]).ids])
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, max_new_tokens=9, do_sample=False)[
        0
    ]
    checked = 0
    for n in range(ids.shape[1] + 1, len(plain) - 2):
        # What greedy decoding wrote is what it prefers to write; only where the text is cut as it wrote it.
        text = tokenizer.decode(plain[:n].tolist())
        if "�" in text or tokenizer.encode(text).ids != plain[:n].tolist():
            continue
        again = generated(model, b.align(text), max_new_tokens=len(plain) - n + 1)[0]
        assert torch.equal(again, plain)
        checked += 1
    assert checked


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}]
)
@pytest.mark.parametrize("back", [0, 1, 3, 50])
def test_answers_begin_with_what_was_taken(words, options, back):
    b, _ = words
    aligned = b.align([*PROMPTS, "naïve 🎉".encode()[:-2], ""], back=back)
    torch.manual_seed(0)
    out = generated(b.model, aligned, **{"max_new_tokens": 30} | options)
    each = options.get("num_return_sequences", 1)
    assert len(aligned.completions(out)) == 5 * each
    assert isinstance(aligned.inputs["logits_processor"][0], LogitsProcessor)
    assert aligned.inputs["attention_mask"][:, -1].all()
    assert aligned.removed[3].endswith("🎉".encode()[:-2])
    assert aligned.removed[4] == b""


def test_rows_of_a_batch_are_those_alone(words):
    b, _ = words
    together = b.align(PROMPTS, back=2)
    out = together.completions(generated(b.model, together, max_new_tokens=12))
    for prompt, answer in zip(PROMPTS, out, strict=True):
        alone = b.align(prompt, back=2)
        assert alone.completions(generated(b.model, alone, max_new_tokens=12)) == [answer]


def test_only_tokens_that_agree_pass(words):
    b, _ = words
    aligned = b.align("the statem", back=2)
    spelled = b.spelling.vocabulary.bytes
    taken = aligned.removed[0]
    ids = aligned.inputs["input_ids"]
    passed = aligned.inputs["logits_processor"][0](ids, torch.zeros(1, 400)).isfinite()[0]
    want = [bool(s) and (s.startswith(taken) or taken.startswith(s)) for s in spelled]
    assert passed.tolist() == want


def test_special_tokens_are_never_taken(words):
    b, tokenizer = words
    name = tokenizer.id_to_token(0)
    aligned = b.align(f"the{name}a list", back=50)
    assert [*tokenizer.encode("the").ids, 0] == aligned.inputs["input_ids"][0].tolist()
    assert aligned.removed == (b"a list",)
    assert b.align(f"the{name}", back=3).removed == (b"",)


def test_bad_prompts_are_refused(words):
    b, _ = words
    with pytest.raises(ValueError, match="back is -1"):
        b.align("a", back=-1)
    with pytest.raises(ValueError, match="prompts is empty"):
        b.align([])
    with pytest.raises(ValueError, match="not UTF-8"):
        b.align(b"\xff\xff")
    with pytest.raises(ValueError, match="no tokens write"):
        ts.byte_model(lm(8), greedy()).align(b"ab\xf0")
    aligned = b.align("the statem", back=3)
    with pytest.raises(ValueError, match="max_new_tokens"):
        aligned.completions(aligned.inputs["input_ids"])


# ---- infilling ------------------------------------------------------------------------------------------------------------

SE = FillFormat("<PRE>", "<SUF>", "<MID>", "<START>", "<END>")


def test_formats_come_apart_again():
    for prefix, middle, suffix in itertools.product(["", "a\nb", "x\n"], ["", "m\nn"], ["", "c\nd", "\ne"]):
        assert SE.assembled(SE.sample(prefix, middle, suffix)) == (prefix, middle, suffix)
    assert SE.prompt("a\nb", "c\nd") == "<PRE>a\n<SUF>d<START>b<END>c\n<MID>b"
    plain = FillFormat("<PRE>", "<SUF>", "<MID>")
    assert plain.prompt("a\nb", "c\nd") == "<PRE><SUF>c\nd<MID>a\nb"
    with pytest.raises(ValueError, match="does not begin with"):
        SE.assembled("<PRE>a\n<SUF>d<START>b<END>c\n<MID>xc\n")
    with pytest.raises(ValueError, match="in this order"):
        SE.assembled("a")
    with pytest.raises(ValueError, match="both of them"):
        FillFormat("<PRE>", "<SUF>", "<MID>", start="<START>")


@pytest.mark.parametrize("names", [("<PRE>", "<SUF>", "<MID>"), ("<PRE>", "<SUF>", "<MID>", "<START>", "<END>")])
def test_infilling_goes_on_behind_the_cut_prefix(names):
    tokenizer = level(["ab"], [("a", "b")], specials=("<|end|>", *names))
    model = lm(len(tokenizer.get_vocab()))
    b = ts.byte_model(model, tokenizer)
    form = FillFormat(*names)
    found = b.infill("ab a", "bb", max_bytes=5)
    answer = b.generate(form.prompt("ab a", "bb"), max_bytes=5 + len(form.split("ab a", "bb").rest))
    assert answer.startswith(found.middle)
    assert not found.complete or len(found.middle) < 5
    with pytest.raises(ValueError, match="no special tokens of infilling"):
        ts.byte_model(lm(20), bpe()).infill("a", "b")
    with pytest.raises(ValueError, match="'<X>' is no special"):
        b.infill("a", "b", FillFormat("<X>", "<SUF>", "<MID>"))


def test_what_was_filled_says_whether_it_fits():
    assert SE.filled("a\nb", "c\nd", b"xyc\n", ended=True).middle == b"xy"
    assert SE.filled("a\nb", "c\nd", b"xyc\n", ended=True).complete
    assert not SE.filled("a\nb", "c\nd", b"xy", ended=True).complete
    assert not SE.filled("a\nb", "c\nd", b"xyc\n", ended=False).complete


def test_rows_are_proper_or_not():
    tokenizer = bpe()
    names = tokenizer.get_vocab()
    assert is_proper(tokenizer, [names["ab"]])
    assert not is_proper(tokenizer, [names["a"], names["b"]])
    assert is_proper(tokenizer, [0, names["ab"]])
    assert is_proper(tokenizer, [names["ðŁ"]])
    assert not is_proper(tokenizer, [names["ð"], names["Ł"]])
    assert not is_proper(tokenizer, [names["Ł"]])
    with pytest.raises(ValueError, match="99, which is no token"):
        is_proper(tokenizer, [99])
