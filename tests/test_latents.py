"""Text to latents: what readers compute, what a frozen model is given, what it learns nothing of, and files."""

from __future__ import annotations

import math
import string

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tokensieve.prompt import latents
from tokensieve.prompt.latents.pages import PageStyle
from tokensieve.sites.prompt import readers
from tokensieve.testbed import lm

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "eos_token_id": None,
}  # fmt: skip
PAGE = PageStyle(lines=2, columns=8)
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


class Letters:
    """Ids are letters."""

    def decode(self, ids):
        return "".join(chr(65 + i) for i in ids)


def llama(**options):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES | options)).eval()


def qwen():
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval()


def gemma2():
    """Windows in every other layer, and scores that only eager attention caps."""
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, sliding_window=4)).eval()


def gemma3():
    """Rotary positions of its own for each kind of layer."""
    torch.manual_seed(0)
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=4)).eval()


def made(name, model=None):
    model = llama() if model is None else model
    torch.manual_seed(1)
    module = {
        "arc": lambda: latents.arc(model, 4),
        "c3": lambda: latents.c3(model, 5),
        "vist": lambda: latents.vist(model, Letters(), 3, style=PAGE, width=16),
    }[name]()
    return module.eval()


PRESETS = pytest.mark.parametrize("name", ["arc", "c3", "vist"])


def text(rows=1, n=20, seed=0):
    return torch.randint(1, 60, (rows, n), generator=torch.Generator().manual_seed(seed))


def ragged(side):
    """A row of 20 tokens and one of 9, padded on a side with tokens of any kind."""
    ids = text(2)
    mask = torch.ones_like(ids)
    (mask[1, :11] if side == "left" else mask[1, 9:]).zero_()
    return ids, mask


@PRESETS
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_is_unseen_and_a_row_of_a_batch_is_what_it_is_alone(name, side):
    module, (ids, mask) = made(name), ragged(side)
    both = module(ids, mask)
    for row in range(2):
        alone = module(ids[row : row + 1, mask[row].bool()])
        torch.testing.assert_close(both.embeds[row, both.real[row]], alone.embeds[0], **CLOSE)
        assert alone.real.all()
    other = torch.where(mask.bool(), ids, (ids + 7) % 60)
    assert torch.equal(module(other, mask).embeds[both.real], both.embeds[both.real])


@pytest.mark.parametrize("model", [gemma2, gemma3])
@pytest.mark.parametrize("name", ["arc", "c3"])
@torch.no_grad()
def test_layers_of_several_kinds_read(name, model):
    given, (ids, mask) = model(), ragged("left")
    module = made(name, given)
    both, alone = module(ids, mask), module(ids[1:, mask[1].bool()])
    torch.testing.assert_close(both.embeds[1, both.real[1]], alone.embeds[0], **CLOSE)
    assert alone.loss(given, text()).isfinite()


@PRESETS
def test_the_budget_is_what_was_asked_for(name):
    module = made(name)
    for n in (1, 16, 17, 40):
        found = module(text(n=n))
        asked = {"arc": math.ceil(n / 4), "c3": 5, "vist": 3 * math.ceil(n / 16)}[name]
        assert found.counts.tolist() == [asked + 1]  # and what to do with them
        assert found.embeds.shape == (1, asked + 1, 32)


@PRESETS
def test_gradients_reach_all_that_is_trained_and_the_frozen_model_stays(name):
    model = llama()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    module = made(name, model).train()
    module(text(2, n=20)).loss(model, text(2, 6, seed=1)).backward()
    module(text(2, n=20), task="repeat").loss(model, text(2, 6, seed=1)).backward()
    silent = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert silent == []
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    torch.optim.SGD(module.parameters(), 0.1).step()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@PRESETS
def test_a_file_holds_all_of_it(name, tmp_path):
    model = llama()
    module = made(name, model)
    module.save(tmp_path / "a.safetensors")
    torch.manual_seed(5)
    again = latents.load(tmp_path / "a.safetensors", model, tokenizer=Letters())
    assert torch.equal(again(text()).embeds, module(text()).embeds)
    assert again.recipe == module.recipe
    with pytest.raises(ValueError, match="holds weights of other parts"):
        latents.load(tmp_path / "a.safetensors", llama(hidden_size=64), tokenizer=Letters())
    if name != "vist":
        with pytest.raises(ValueError, match="was made without encoder=; load it likewise"):
            latents.load(tmp_path / "a.safetensors", model, encoder=model)
    else:
        with pytest.raises(ValueError, match="give the language model's tokenizer"):
            latents.load(tmp_path / "a.safetensors", model)


def test_what_is_no_file_of_latents_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no safetensors file"):
        latents.load(tmp_path / "a", llama())
    with pytest.raises(ValueError, match="is of the format 'pt'; TextToLatents"):
        latents.load(lm.path() / "model.safetensors", llama())


# ---- readers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [llama, qwen])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@torch.no_grad()
def test_the_last_layer_asks_with_means_of_states(model, kernel):
    """Layer by layer by hand: no causal mask, and in the last one queries, and what goes past, are means of 4."""
    given = model()
    given.set_attn_implementation(kernel)
    reader = readers.PooledReader(given, 4)
    root, ids = given.model, text(n=10)
    x, at = root.embed_tokens(ids), torch.arange(10)[None]

    def heads(states, project):
        return project(states).view(1, states.shape[1], -1, 8).transpose(1, 2)

    def turned(states, places):
        cos, sin = root.rotary_emb(states, places)
        a, b = states.chunk(2, -1)
        return states * cos[:, None] + torch.cat([-b, a], -1) * sin[:, None]

    for layer in root.layers:
        asking, there = x, at
        if layer is root.layers[-1]:
            asking = torch.stack([x[:, a : a + 4].mean(1) for a in (0, 4, 8)], 1)
            there = torch.tensor([[1, 5, 8]])
        q, kv = layer.input_layernorm(asking), layer.input_layernorm(x)
        own = layer.self_attn
        mixed = F.scaled_dot_product_attention(
            turned(heads(q, own.q_proj), there),
            turned(heads(kv, own.k_proj), at),
            heads(kv, own.v_proj),
            enable_gqa=True,
        )
        x = asking + own.o_proj(mixed.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    states, real = reader(ids, torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(states, x, **CLOSE)
    assert real.all()
    assert len(given.model.layers) == 3 == given.config.num_hidden_layers  # the copy alone was cut


@torch.no_grad()
def test_slots_stand_behind_the_text():
    given = llama()
    reader = readers.SlotReader(given, 5)
    x = torch.cat([given.model.embed_tokens(text()), reader.slots[None]], 1)
    plain = given.model(inputs_embeds=x).last_hidden_state[:, -5:]
    torch.testing.assert_close(reader(text(), torch.ones(1, 20, dtype=torch.bool))[0], plain, **CLOSE)


def test_fewer_layers_may_read():
    assert len(latents.arc(llama(), depth=2).reader.root.layers) == 1  # and the last one apart
    assert len(latents.c3(llama(), depth=2).reader.root.layers) == 2


def test_another_model_may_read_for_a_wider_one():
    small, wide = llama(), llama(hidden_size=64)
    found = latents.arc(wide, 4, encoder=small)(text())
    assert found.embeds.shape == (1, 6, 64)
    assert found.loss(wide, text(n=4)).isfinite()
    with pytest.raises(ValueError, match="the latents are 64 wide, and the embeddings of LlamaForCausalLM 32"):
        found.before(small)


# ---- in front of the model -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_latents_that_are_embeddings_are_the_text():
    """Embeddings of the tokens themselves as latents: the model says what it says of the tokens."""
    model, ids, after = llama(), text(n=12), text(n=6, seed=1)
    same = latents.TextLatents(model.get_input_embeddings()(ids), torch.ones_like(ids, dtype=torch.bool))
    whole = torch.cat([ids, after], 1)
    plain = F.cross_entropy(model(whole).logits[0, 11:-1], after[0])
    torch.testing.assert_close(same.loss(model, after), plain, **CLOSE)
    said = model.generate(whole, max_new_tokens=6, do_sample=False, pad_token_id=0)[:, 18:]
    assert torch.equal(
        model.generate(**same.before(model, after), max_new_tokens=6, do_sample=False, pad_token_id=0), said
    )


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_rows_of_different_lengths_are_told_as_if_alone(side):
    model, module = llama(), made("arc")
    (ids, mask), (after, seen) = ragged(side), ragged(side)
    both = module(ids, mask)
    told = both.told(model, after, seen)
    out = model.generate(**both.before(model, after, seen), max_new_tokens=5, do_sample=False, pad_token_id=0)
    for row in range(2):
        own = after[row : row + 1, seen[row].bool()]
        alone = module(ids[row : row + 1, mask[row].bool()])
        torch.testing.assert_close(told[row, seen[row].bool()], alone.told(model, own)[0], **CLOSE)
        assert (told[row, ~seen[row].bool()] == 0).all()
        said = model.generate(**alone.before(model, own), max_new_tokens=5, do_sample=False, pad_token_id=0)
        assert torch.equal(out[row], said[0])
    torch.testing.assert_close(both.loss(model, after, seen), -told.sum() / seen.sum())


def test_bad_input_says_what_is_wrong():
    model, module = llama(), made("arc")
    found = module(text(2))
    for call, message in (
        (lambda: module(text(), task="repeated"), "task='repeated'; it must be one of repeat"),
        (lambda: module(text()[0]), r"input_ids has the shape \(20,\); it must be \(rows, tokens\)"),
        (lambda: module(text(), torch.ones(1, 3)), "attention_mask has the shape"),
        (lambda: module(text(2), torch.tensor([[1] * 20, [0] * 20])), "row 1 has no token to read"),
        (lambda: found.before(model, text(3)), "input_ids has 3 rows, and the latents 2"),
        (lambda: latents.arc(model, 0), "ratio=0; it must be at least 1"),
        (lambda: latents.arc(model, depth=4), "depth=4; LlamaModel has 3 layers, so it must lie between 1 and 3"),
        (lambda: latents.c3(model, 0), "slots=0"),
        (lambda: latents.vist(model, Letters(), 0), "slots=0"),
        (lambda: PageStyle(lines=0), "lines=0"),
        (lambda: PageStyle(font="none.ttf"), "font='none.ttf' is no file"),
        (lambda: latents.vist(model, Letters(), style=PageStyle(columns=7)), "across=4 does not divide the 7 columns"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2))
    with pytest.raises(ValueError, match="encoder=GPT2LMHeadModel: it has no layers and no norm and no rotary_emb"):
        latents.arc(model, encoder=gpt)


# ---- rendered text -------------------------------------------------------------------------------------------------------


def test_pages_hold_each_character_in_its_cell():
    page = PAGE.draw("ab\ncdefghijklmnopq")
    assert page.shape == (2, 20, 40)
    assert (page[0, :10, 10:15] == PageStyle(lines=1, columns=1).draw("↵")[0]).all()
    assert (page[0, 10:, :5] == PageStyle(lines=1, columns=1).draw("h")[0]).all()
    assert page[1].any()
    assert not page[1, 10:].any()
    assert page.min() == 0
    assert 0.5 < page.max() <= 1
    signs = string.ascii_letters + string.digits + string.punctuation + " "
    assert len({PAGE.draw(c)[0, :10, :5].tobytes() for c in signs}) == len(signs)  # all different at this size


def test_an_empty_text_is_one_empty_page():
    assert PAGE.draw("").shape == (1, 20, 40)
    assert not PAGE.draw("").any()


def test_characters_without_a_glyph_are_counted():
    with pytest.warns(UserWarning, match="2 characters, such as '中', have no glyph in DejaVuSansMono.ttf"):
        PageStyle().draw("中文 text")


@pytest.mark.filterwarnings("ignore:.* have no glyph")
@given(st.text(st.characters(), max_size=40))
def test_any_text_can_be_drawn(some):
    pages = PAGE.draw(some)
    assert pages.shape[1:] == (20, 40)
    assert len(pages) == max(1, math.ceil(len(some.replace("\r", "")) / 16))


def test_a_vision_encoder_that_is_given_stays_as_it_is():
    vision = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 5, 5), torch.nn.Dropout(0.5), torch.nn.Flatten(2))
    module = latents.vist(llama(), Letters(), 3, style=PAGE, vision=Turned(vision), width=16).train()
    assert not vision.training
    module(text(2)).loss(llama(), text(2, 4)).backward()
    assert all(p.grad is None for p in vision.parameters())
    assert module.reader.resampler.slots.grad.abs().sum() > 0


class Turned(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, pixels):
        return self.inner(pixels).transpose(1, 2)


def test_the_most_frequent_tokens_are_masked():
    counts = torch.tensor([100, 50, 1, 0, 20])
    assert latents.rarity(counts).argsort().tolist() == [0, 1, 4, 2, 3]
    ids = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 1, 0, 0, 2, 2]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    assert latents.rare(ids, counts, mask).int().tolist() == [[0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]
    assert latents.rare(ids, counts, mask, 0.25).sum(1).tolist() == [5, 3]
    with pytest.raises(ValueError, match=r"share=1; it must lie between 0 and 1"):
        latents.rare(ids, counts, share=1)
    with pytest.raises(ValueError, match="counts has 3 tokens, and ids holds 4"):
        latents.rare(ids, counts[:3])


def test_latents_are_drawn_to_their_own_tokens():
    tokens = torch.eye(4)[None].repeat(2, 1, 1)
    stay = torch.tensor([[True, True, False, False], [False, False, True, True]])
    real = torch.ones(2, 1, dtype=torch.bool)
    own = torch.tensor([[[1.0, 1, 0, 0]], [[0.0, 0, 1, 1]]])
    good = latents.enhancement(latents.TextLatents(own, real), tokens, stay)
    bad = latents.enhancement(latents.TextLatents(own.flip(0), real), tokens, stay)
    assert good < 1e-4 < 10 < bad
    with pytest.raises(ValueError, match="one text alone"):
        latents.enhancement(latents.TextLatents(own[:1], real[:1]), tokens[:1], stay[:1])
