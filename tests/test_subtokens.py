"""Words as one token inside models of text: against layers run by hand, in batches, while decoding, and in encoders."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import tokensieve as ts
from tests.texts import trained
from tokensieve.sites.subtokens import identifiers, merged_words

WORDS = torch.tensor([[-1, 0, 0, 0, 1, 2, 2, -1, -1, 3, 4, 4]])
KEPT = [0, 1, 4, 5, 7, 8, 9, 10, 11]  # the last word of a prompt stays in tokens
IDS = torch.arange(3, 15)[None]


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    return BertModel(BertConfig(vocab_size=50, **sizes), add_pooling_layer=False).eval()


def runs(words, kept):
    ends = [*kept[1:], words.shape[1]]
    return list(zip(kept, ends, strict=True))


@torch.no_grad()
def by_hand(model, ids, words, kept, layer):
    """Logits at the kept tokens: all layers called one by one, a row without padding."""
    body = model.model
    x = body.embed_tokens(ids)
    places = torch.arange(ids.shape[1])[None]
    for i, block in enumerate(body.layers):
        if i == layer:
            x = torch.stack([x[:, a:b].mean(1) for a, b in runs(words, kept)], 1)
            places = torch.tensor([kept])
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)[None, None]
        x = block(x, attention_mask=mask, position_embeddings=body.rotary_emb(x, places), position_ids=places)
        x = x[0] if isinstance(x, tuple) else x
    return model.lm_head(body.norm(x))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_causal_model_goes_on_with_the_means(layer):
    model = llama()
    with merged_words(model, WORDS, layer) as merged, torch.no_grad():
        got = model(input_ids=IDS).logits
    assert got.shape[1] == 12
    assert merged.counts.tolist() == [9]
    assert torch.allclose(got[:, KEPT], by_hand(model, IDS, WORDS, KEPT, layer), atol=1e-5)


def test_words_of_one_token_change_nothing():
    model = llama()
    with merged_words(model, torch.arange(12)[None]), torch.no_grad():
        got = model(input_ids=IDS).logits
    assert torch.equal(got, model(input_ids=IDS).logits)


def test_answers_are_those_of_a_pass_over_all():
    model = llama()
    with merged_words(model, WORDS):
        out = model.generate(
            IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False, pad_token_id=0
        )
    for n in range(12, 18):
        # What was generated follows the last word in tokens of its own.
        kept = [*KEPT, *range(12, n)]
        logits = by_hand(model, out[:, :n], torch.zeros(1, n), kept, 1)
        assert int(logits[0, -1].argmax()) == int(out[0, n])


def test_rows_of_a_batch_are_those_alone():
    model = llama()
    ids = torch.cat([IDS, torch.cat([torch.zeros(1, 4, dtype=torch.long), IDS[:, :8]], 1)])
    words = torch.cat([WORDS, torch.cat([torch.full((1, 4), -1), torch.tensor([[0, 0, 0, 1, 1, 1, 2, 3]])], 1)])
    mask = (ids > 0).long()
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with merged_words(model, words) as merged:
        out = model.generate(ids, attention_mask=mask, **options)
    assert merged.counts.tolist() == [9, 4]
    for row, start in ((0, 0), (1, 4)):
        with merged_words(model, words[row : row + 1, start:]):
            alone = model.generate(ids[row : row + 1, start:], attention_mask=mask[row : row + 1, start:], **options)
        assert torch.equal(out[row, start:], alone[0])


@torch.no_grad()
def test_every_token_of_an_encoder_has_the_state_of_its_word():
    model = bert()
    x = model.embeddings(input_ids=IDS)
    kept = [0, 1, 4, 5, 7, 8, 9, 10]
    for i, block in enumerate(model.encoder.layer):
        if i == 1:
            x = torch.stack([x[:, a:b].mean(1) for a, b in runs(WORDS, kept)], 1)
        x = block(x)
        x = x[0] if isinstance(x, tuple) else x
    with merged_words(model, WORDS) as merged:
        got = model(input_ids=IDS, output_hidden_states=True)
    slot = [0, 1, 1, 1, 2, 3, 3, 4, 5, 6, 7, 7]
    assert torch.allclose(got.last_hidden_state, x[:, slot], atol=1e-5)
    assert all(h.shape[1] == 12 for h in got.hidden_states)
    assert merged.counts.tolist() == [8]
    # Behind padding, and beside a row that keeps more, it is the same.
    ids = torch.cat([torch.cat([IDS, torch.zeros(1, 3, dtype=torch.long)], 1), torch.arange(20, 35)[None]])
    words = torch.cat([torch.cat([WORDS, torch.full((1, 3), -1)], 1), torch.full((1, 15), -1)])
    with merged_words(model, words) as merged:
        both = model(input_ids=ids, attention_mask=(ids > 0).long()).last_hidden_state
    assert torch.allclose(both[0, :12], got.last_hidden_state[0], atol=1e-5)
    assert torch.allclose(both[1:], model(input_ids=ids[1:]).last_hidden_state, atol=1e-5)
    assert merged.counts.tolist() == [8, 15]


def test_identifiers_are_told_from_the_rest():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained(vocab=400).tokenizer, pad_token="<|endoftext|>")
    texts = ["return_value = x + 12345", "a"]
    encoding = tokenizer(texts, padding=True)
    all_words, names = identifiers(encoding), identifiers(encoding, texts)
    assert all_words.shape == names.shape == (2, len(encoding["input_ids"][0]))
    kept = {tokenizer.decode([i for i, w in zip(encoding["input_ids"][0], names[0].tolist(), strict=True) if w == n])
            for n in set(names[0].tolist()) - {-1}}  # fmt: skip
    assert {"return", " x"} <= kept
    assert not any(c.isdigit() or "+" in c for c in kept)
    assert (names[1][1:] == -1).all()
    with pytest.raises(ValueError, match="1 texts and 2 rows"):
        identifiers(encoding, texts[:1])
    with pytest.raises(ValueError, match="slow one"):
        identifiers({"input_ids": [[1]]})


def test_what_does_not_fit_is_refused():
    model = llama()
    with pytest.raises(ValueError, match=r"layer=3"):
        merged_words(model, WORDS, 3)
    with pytest.raises(ValueError, match=r"words has shape \(12,\)"):
        merged_words(model, WORDS[0])
    with (
        merged_words(model, WORDS),
        pytest.raises(ValueError, match=r"shape \(1, 12\) and the model is given \(1, 5\)"),
    ):
        model(input_ids=IDS[:, :5])
    assert model(input_ids=IDS[:, :5]).logits.shape[1] == 5
    with (
        ts.sieve(model, "tova", keep=4),
        pytest.raises(ValueError, match="a sieve is attached"),
        merged_words(model, WORDS),
    ):
        pass
