"""Models under other vocabularies: old ids and rows stay, new rows are what they are said to be."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers import models as hf_models
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from tests.texts import ODD, corpus, learned_by_loops, trained
from tokensieve.cli.main import app
from tokensieve.testing.initialisations import check_initialisation
from tokensieve.text import adapt, donors, models
from tokensieve.text.extend import across_words, extend
from tokensieve.text.merges import merges_of
from tokensieve.text.reach import reach
from tokensieve.text.rows import INITS, Gap, pursuit
from tokensieve.text.transplant import gap, roles, settled, transplanted


def llama3_like():
    """A tokenizer whose special tokens are not in its model's vocabulary, and whose ids lie behind it."""
    state = json.loads(trained(vocab=400).tokenizer.to_str())
    vocabulary = {s: i - 1 for s, i in state["model"]["vocab"].items() if i}
    state["model"]["vocab"] = vocabulary
    special = state["added_tokens"][0]
    state["added_tokens"] = [
        special | {"id": 399 + n, "content": name} for n, name in enumerate(("<|begin|>", "<|end|>"))
    ]
    return Tokenizer.from_str(json.dumps(state))


def texts(size=12_000, at=20):
    return [d.text for d in corpus(size, at).documents]


def small(vocab, tied=True, rows=None):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows or vocab, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("words_only", [True, False])
@pytest.mark.parametrize("base", [llama3_like, lambda: trained(vocab=400).tokenizer], ids=["outside", "inside"])
def test_every_old_id_and_merge_stays(base, words_only):
    old = base()
    made = extend(old, texts(), 40, words_only)
    assert {s: made.tokenizer.token_to_id(s) for s in old.get_vocab()} == old.get_vocab()
    assert merges_of(made.tokenizer)[: len(merges_of(old))] == merges_of(old)
    assert made.added == tuple(range(len(old.get_vocab()), len(old.get_vocab()) + 40))
    assert len(set(made.tokenizer.get_vocab().values())) == len(old.get_vocab()) + 40
    specials = [t.content for t in old.get_added_tokens_decoder().values()]
    assert made.tokenizer.encode("".join(specials)).ids == [old.token_to_id(s) for s in specials]
    for text in (ODD, *texts(5_000, at=60)):
        assert made.tokenizer.decode(made.tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert reach(made.tokenizer).unreachable == ()
    strings = {i: s for s, i in made.tokenizer.get_vocab().items()}
    for i, parts in zip(made.added, made.parts, strict=True):
        assert "".join(strings[p] for p in parts) == strings[i]
        assert max(parts) < made.added[0]
    before, after = (sum(len(e) for e in t.encode_batch(texts())) for t in (old, made.tokenizer))
    assert after < before


def test_new_merges_are_what_plain_loops_learn():
    old = trained(vocab=400).tokenizer
    made = extend(old, texts(6_000), 30, words_only=True)
    rows = []
    for text in texts(6_000):
        encoded, by_word = old.encode(text), {}
        for i, word in zip(encoded.ids, encoded.word_ids, strict=True):
            by_word.setdefault(word, []).append(i)
        rows += by_word.values()
    names = {i: s for s, i in old.get_vocab().items() if i}
    wanted = learned_by_loops(rows, names, 30)
    assert merges_of(made.tokenizer)[len(merges_of(old)) :][:30] == wanted


def test_a_tokenizer_without_rules_of_its_own_is_cut_before_words_and_digits():
    """As Llama 2's: a normalizer writes spaces, nothing cuts, and no token holds two digits."""
    letters = ["<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789", *(f"<0x{b:02X}>" for b in range(256))]
    model = hf_models.BPE(
        {s: i for i, s in enumerate(letters)}, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True
    )
    old = Tokenizer(model)
    old.normalizer = normalizers.Replace(" ", "▁")
    old.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    rows = ["the cat of the house in 1999 and 1998", "the cat in the house of 1999"] * 3
    words = extend(old, rows, 12, words_only=True)
    across = extend(old, rows, 25)
    for made in (words, across):
        new = [made.tokenizer.id_to_token(i) for i in made.added]
        assert not any(sum(c.isdigit() for c in t) > 0 and len(t) > 1 for t in new)
        assert made.tokenizer.decode(made.tokenizer.encode(rows[0]).ids) == rows[0]
    assert not any("▁" in words.tokenizer.id_to_token(i)[1:] for i in words.added)
    assert any("▁" in across.tokenizer.id_to_token(i)[1:] for i in across.added)


def test_digits_are_cut_as_before_across_words():
    for numbers in ("r2l", "l2r", "single"):
        old = trained(vocab=400, numbers=numbers).tokenizer
        pieces = [p for p, _ in across_words(old).pre_tokenize_str("of 1234567 the")]
        digits = [p for p in pieces if p.isdigit()]
        assert digits == [p for p, _ in old.pre_tokenizer.pre_tokenize_str("1234567")]
        assert "Ġthe" in pieces


@pytest.mark.parametrize(("tied", "rows"), [(True, 400), (False, 400), (True, 512), (False, 420)])
def test_rows_are_the_means_of_their_parts_and_matrices_never_shrink(tied, rows):
    old = trained(vocab=400).tokenizer
    model = small(400, tied, rows)
    before = [None if w is None else w.clone() for w in models.embeddings(model)]
    ids = torch.tensor([old.encode("with the list of all").ids])
    logits = model(input_ids=ids).logits
    made = extend(old, texts(), 40)
    adapt.extended(model, made)
    for kept, now in zip(before, models.embeddings(model), strict=True):
        assert (kept is None) == (now is None)
        if now is not None:
            assert len(now) == max(rows, 440)
            assert torch.equal(now[:400], kept[:400])
            assert torch.equal(now[440:], kept[440:])
            for i, parts in zip(made.added, made.parts, strict=True):
                assert torch.allclose(now[i], kept[list(parts)].mean(0))
    assert torch.equal(model(input_ids=ids).logits[..., :400], logits[..., :400])
    assert model.config.vocab_size == max(rows, 440)


def test_other_kinds_and_too_little_text_are_refused():
    with pytest.raises(ValueError, match=r"the tokenizer is Unigram: .* transplant"):
        extend(trained(algorithm="unigram").tokenizer, texts(), 10)
    with pytest.raises(ValueError, match=r"add=5,000, but the texts hold only \d+ pairs"):
        extend(trained().tokenizer, ["abcab abcab"], 5000)
    with pytest.raises(ValueError, match="add=0"):
        extend(trained().tokenizer, texts(), 0)
    with pytest.raises(ValueError, match=r"dropout=0\.1"):
        extend(Tokenizer(hf_models.BPE(dropout=0.1)), texts(), 1)


def test_tuning_new_rows_leaves_all_others_bit_for_bit():
    old = trained(vocab=400).tokenizer
    for tied in (True, False):
        model, made = small(400, tied), extend(old, texts(), 40)
        adapt.extended(model, made)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        curve = adapt.recovery(model, made.tokenizer, texts(), [texts(4_000, at=50)[0][:1000]], 6, made.added, points=3)
        assert [p.trained for p in curve] == [0, 3_072, 6_144]
        assert curve[-1].bits < curve[0].bits
        for name, now in model.named_parameters():
            own = "embed_tokens" in name or "lm_head" in name
            assert torch.equal(now[:400] if own else now, before[name][:400] if own else before[name])
            assert not own or not torch.equal(now[400:], before[name][400:])


class Stop(Exception):
    pass


@pytest.mark.parametrize("all_weights", [False, True])
def test_tuning_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, all_weights):
    monkeypatch.setattr(adapt, "KEPT", 2)
    held, file = [texts(4_000, at=50)[0][:1000]], tmp_path / "new.tuning"

    def run(stop=None, kept=file, steps=6):
        made = extend(trained(vocab=400).tokenizer, texts(), 40)
        model = adapt.extended(small(400), made)

        def step(what, done, of):
            if done == stop:
                raise Stop

        fresh = None if all_weights else made.added
        return model, adapt.recovery(model, made.tokenizer, texts(), held, steps, fresh, 3, step, kept=kept)

    model, curve = run(kept=None)
    with pytest.raises(Stop):
        run(stop=5)
    with pytest.raises(ValueError, match="an interrupted run of another model, other texts or other options"):
        run(steps=7)
    made, step = [], adapt.Tuning.step
    monkeypatch.setattr(adapt.Tuning, "step", lambda self: made.append(self.done) or step(self))
    again, same = run()
    assert same == curve
    assert made == [4, 5]  # the run was put down behind 4 steps
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_bits_per_byte_is_the_sum_over_tokens():
    model, tokenizer = small(400), trained(vocab=400).tokenizer
    text = "with the list of all names"
    ids = [0, *tokenizer.encode(text).ids]
    logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    wanted = -sum(logits[i, ids[i + 1]] for i in range(len(ids) - 1)) / np.log(2) / len(text)
    assert models.bits_per_byte(model, tokenizer, [text]) == pytest.approx(float(wanted.detach()), rel=1e-5)
    long = text * 200
    assert models.bits_per_byte(model, tokenizer, [long]) > 0
    model.config.bos_token_id = model.config.eos_token_id = None
    with pytest.raises(ValueError, match="names neither bos_token_id nor eos_token_id"):
        models.bits_per_byte(model, tokenizer, [text])


# ---- another vocabulary ---------------------------------------------------------------------------------------------------


def test_pursuit_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    atoms, targets = torch.randn(40, 16, generator=generator), torch.randn(5, 16, generator=generator)
    chosen, weights = pursuit(targets, atoms, 6)
    unit = torch.nn.functional.normalize(atoms, dim=-1).double().numpy()
    for i in range(5):
        wanted = orthogonal_mp(unit.T, targets[i].double().numpy(), n_nonzero_coefs=6)
        got = np.zeros(40)
        got[chosen[i]] = (weights[i] * atoms[chosen[i]].norm(dim=-1)).numpy()
        np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_pursuit_bears_zeros_and_atoms_that_are_alike():
    atoms = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    chosen, weights = pursuit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), atoms, 2)
    made = torch.einsum("mk,mkd->md", weights, atoms[chosen])
    assert torch.allclose(made, torch.tensor([[3.0, 4.0], [0.0, 0.0]]), atol=1e-6)


@pytest.mark.parametrize("init", list(INITS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_rows_stay_bit_for_bit(init, dtype):
    old, new = trained(vocab=400).tokenizer, trained(vocab=500, numbers="single").tokenizer
    rows = torch.randn(410, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    donor = torch.randn(500, 24, generator=torch.Generator().manual_seed(1))
    given = gap(rows, old, new, donor)
    made = transplanted(given, init, 500, dtype)
    by_text = old.get_vocab()
    shared = {i: by_text[s] for s, i in new.get_vocab().items() if s in by_text}
    assert len(shared) == len(given.shared_new) > 250
    assert all(torch.equal(made[n], rows[o]) for n, o in shared.items())
    assert bool(made.isfinite().all())
    assert torch.equal(transplanted(given, init, 500, dtype), made)


def test_a_donor_of_the_same_space_gives_the_rows_back():
    """Where missing rows are combinations of few shared ones, and the donor space is a rotation of the model's."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 16, generator=generator)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    wanted = 0.5 * rows[3] - 2 * rows[7]
    donor = torch.cat([rows, wanted[None]]) @ rotation
    own = torch.arange(60)
    given = Gap(rows, own, own, torch.tensor([60]), ((1, 2),), donor)
    assert torch.allclose(INITS.get("omp")(given)[0], wanted, atol=1e-3)
    assert torch.allclose(INITS.get("mean")(given)[0], rows[[1, 2]].mean(0))
    assert float(INITS.get("zero")(given).abs().max()) == 0


def test_what_does_not_belong_together_is_refused():
    old, new = trained(vocab=400).tokenizer, trained(vocab=500).tokenizer
    rows = torch.randn(400, 8)
    with pytest.raises(ValueError, match="the model has 399 rows, its tokenizer 400 ids"):
        gap(rows[:399], old, new)
    with pytest.raises(ValueError, match="the donor space has 499 rows, the new tokenizer 500 ids"):
        gap(rows, old, new, torch.zeros(499, 4))
    broken = rows.clone()
    broken[17, 3] = float("nan")
    with pytest.raises(ValueError, match="1 rows of the model hold NaN or infinity, the first of id 17"):
        gap(broken, old, new)
    with pytest.raises(ValueError, match="needs a donor space"):
        transplanted(gap(rows, old, new), "omp", 500)
    none = torch.zeros(0, dtype=torch.long)
    apart = Gap(rows, none, none, torch.tensor([0]), ((),), torch.randn(1, 4))
    with pytest.raises(ValueError, match="share no token"):
        INITS.get("omp")(apart)
    with pytest.raises(ValueError, match="did you mean"):
        transplanted(gap(rows, old, new), "meen", 500)


def test_special_tokens_take_the_place_of_their_role():
    old, new = trained(vocab=400).tokenizer, trained(vocab=400, special=("<pad>", "</s>")).tokenizer
    config = small(400).config
    same, lost = settled([config], old, new, roles(new, {"eos_token": {"content": "</s>"}}))
    assert (config.eos_token_id, config.bos_token_id) == (1, None)
    assert (same, lost) == ({1: 0}, ["bos_token_id"])
    rows = torch.randn(400, 8)
    given = gap(rows, old, new, same=same)
    assert torch.equal(transplanted(given, "mean", 400)[1], rows[0])


def test_tokens_that_stand_in_like_places_are_near_in_the_corpus():
    tokenizer = trained(vocab=400).tokenizer
    rows = ["the cat sleeps on a bed .", "the dog sleeps on a bed .", "we count seven of nine ;"] * 40
    vectors = donors.of_corpus(tokenizer, rows, width=12)
    assert vectors.shape == (400, 12)
    seen = sorted({i for row in rows for i in tokenizer.encode(row).ids})
    assert bool((vectors[seen].norm(dim=-1) > 0).all())
    unseen = sorted(set(range(400)) - set(seen))
    assert float(vectors[unseen].abs().max()) < 1e-5
    with pytest.raises(ValueError, match="no two tokens beside each other"):
        donors.of_corpus(tokenizer, [""])


# ---- the commands -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A model of a tokenizer, and texts."""
    tokenizer = trained(vocab=400)
    tokenizer.save(tmp_path / "model")
    small(400, rows=448).save_pretrained(tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for document in corpus(20_000).documents:
        (tmp_path / "texts" / document.name).write_text(document.text, encoding="utf-8")
    return tmp_path


def run(*arguments):
    done = CliRunner().invoke(app, ["tokenizer", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_extending_says_what_is_saved_beside_what_is_lost(folder):
    out = folder / "more"
    text = run("extend", folder / "model", folder / "texts", "--add", 64, "--out", out, "--judged", 3000, "--tune", 2)
    assert "tokens saved" in text
    assert "bits per byte lost" in text
    facts = json.loads((out / "vocabulary.json").read_text())
    assert facts["added"] == 64
    assert facts["bits"][1]["tokens"] < facts["bits"][0]["tokens"]
    assert [p["trained"] for p in facts["curve"]][-1] == 2 * 1024
    assert (out / "recovery.png").stat().st_size > 1000
    assert not (folder / "more.tuning").exists()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.get_input_embeddings().weight.shape[0] == 464
    assert tokenizer.decode(tokenizer(ODD)["input_ids"]) == ODD
    with pytest.raises(ValueError, match="exists; give a folder that does not"):
        run("extend", folder / "model", folder / "texts", "--out", out)


def test_transplanting_prints_every_initialisation(folder):
    trained(vocab=500, numbers="single").save(folder / "other")
    out = folder / "moved"
    text = run(
        "transplant", folder / "model", "--tokenizer", folder / "other", "--out", out, "--init", "omp", "--donor", "corpus",
        "--text", folder / "texts", "--judged", 3000,
    )  # fmt: skip
    facts = json.loads((out / "vocabulary.json").read_text())
    assert [row["name"] for row in facts["bits"]] == ["before", *INITS]
    assert all(name in text for name in INITS)
    old, new = (
        AutoModelForCausalLM.from_pretrained(folder / n).get_input_embeddings().weight for n in ("model", "moved")
    )
    a, b = trained(vocab=400).tokenizer.get_vocab(), trained(vocab=500, numbers="single").tokenizer.get_vocab()
    assert all(torch.equal(new[b[s]], old[a[s]]) for s in a.keys() & b.keys())
    with pytest.raises(ValueError, match="--init omp needs --donor"):
        run("transplant", folder / "model", "--tokenizer", folder / "other", "--out", folder / "x", "--init", "omp")


def test_an_interrupted_save_leaves_no_model(folder, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    model, tokenizer = models.open_model(folder / "model"), trained(vocab=400).tokenizer
    monkeypatch.setattr(models, "check_same", stop)
    with pytest.raises(KeyboardInterrupt):
        models.save(model, tokenizer, folder / "model", folder / "new")
    assert not (folder / "new").exists()
    assert not (folder / "new.part").exists()


def test_quantized_weights_are_refused(folder):
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ValueError, match="its weights are quantized"):
        models.open_model(folder / "model")


@pytest.mark.parametrize("name", list(INITS))
def test_every_initialisation_keeps_its_contract(name):
    check_initialisation(name)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda gap: gap.rows[:1], "one row|rows for 20"),
        (lambda gap: gap.rows.new_full((len(gap.missing), 12), float("nan")), "finite"),
        (lambda gap: torch.rand(len(gap.missing), 12), "every time"),
        (lambda gap: gap.rows.mul_(2)[[0] * len(gap.missing)], "every time|as they are"),
    ],
)
def test_the_contract_notices_what_is_wrong(wrong, message):
    INITS.register("wrong")(wrong)
    try:
        with pytest.raises(AssertionError, match=message):
            check_initialisation("wrong")
    finally:
        INITS.forget("wrong")


def test_what_is_held_out_is_none_of_what_is_learned_and_not_beginnings_alone():
    documents = corpus().documents
    learned, held = adapt.split(documents, 8000)
    assert not any(part in text for part in held for text in learned)
    assert 0 < sum(len(t.encode()) for t in held) <= 8000
    assert (learned, held) == adapt.split(documents, 8000)
    many = adapt.shortened([d.text for d in documents], 8000)
    assert any(not d.text.startswith(t) for t, d in zip(many, documents, strict=False))
    learned, held = adapt.split(documents[:1], 500)
    assert documents[0].text.startswith(learned[0])
    assert held[0] in documents[0].text[len(learned[0]) :]
    assert adapt.shortened(["é" * 3000], 101) == ["é" * 50]
