"""Encoders under a sieve: odd input, precision, training, and what stands on top."""

import pytest
import torch

import tokensieve as ts
from tests.tiny_encoders import made


@pytest.mark.parametrize("kind", ["ViTModel", "BertModel", "T5EncoderModel"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_runs_on_the_processor(kind, dtype):
    encoder = made(kind)
    model = encoder.model.to(dtype)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in encoder.inputs.items()}
    with torch.no_grad(), ts.sieve(model, "tome", keep=0.5):
        out = model(**inputs).last_hidden_state
    assert out.dtype == dtype
    assert torch.isfinite(out).all()


def test_attention_maps_are_of_the_tokens_that_are_there():
    vit = made("ViTModel", attn="eager")
    with ts.sieve(vit.model, "random", keep=16):
        maps = vit(output_attentions=True).attentions
    assert [m.shape[-1] for m in maps] == [65, 49, 33, 17]


def test_an_image_of_another_shape_has_its_own_grid():
    vit = made("ViTModel")
    with torch.no_grad(), ts.sieve(vit.model, "uniform", keep=0.5) as s:
        out = vit.model(pixel_values=torch.randn(1, 3, 32, 64), interpolate_pos_encoding=True).last_hidden_state
    assert out.shape[1] == 129
    assert s.last.stages[0].grid == (8, 16)


def test_two_stages_between_the_blocks_are_refused():
    vit = made("ViTModel")
    with ts.sieve(vit.model, "tome", keep=0.5), pytest.raises(ValueError, match="at most one encoder stage"):
        ts.sieve(vit.model, "random", keep=0.5).attach()


def test_gradients_are_the_differences_quotients():
    """Which tokens leave is held still: of merged ones the gradient is that of their mean."""
    vit = made("ViTModel").model.double()
    pixels = torch.randn(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    toward = torch.randn(1, 65, 32, dtype=torch.float64)

    def loss(x):
        with ts.sieve(vit, "uniform", keep=0.5):
            return (vit(pixel_values=x).last_hidden_state * toward).sum()

    (grad,) = torch.autograd.grad(loss(pixels), pixels)
    step = torch.randn(pixels.shape, dtype=torch.float64)
    with torch.no_grad():
        quotient = (loss(pixels + 1e-6 * step) - loss(pixels - 1e-6 * step)) / 2e-6
    torch.testing.assert_close((grad * step).sum(), quotient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("between", [True, False])
def test_checkpointed_training_gives_the_same_gradients_or_says_no(between):
    vit = made("ViTModel").model.train()
    pixels = torch.randn(2, 3, 32, 32)
    weight = vit.layers[0].mlp.fc1.weight

    def grad():
        with ts.sieve(vit, "tome", keep=0.5, between=between):
            loss = vit(pixel_values=pixels).last_hidden_state.square().mean()
            return torch.autograd.grad(loss, weight)[0]

    plain = grad()
    vit.gradient_checkpointing_enable({"use_reentrant": False})
    if between:
        with pytest.raises(ValueError, match="pass between=False"):
            grad()
    else:
        torch.testing.assert_close(grad(), plain)


def test_texts_longer_than_the_model_fail_as_ever():
    bert = made("BertModel").model
    ids = torch.randint(7, 60, (1, 200))
    with pytest.raises(Exception) as plain, torch.no_grad():
        bert(input_ids=ids)
    with pytest.raises(type(plain.value)), torch.no_grad(), ts.sieve(bert, "tome", keep=0.5):
        bert(input_ids=ids)


def test_embeddings_may_come_in_place_of_ids():
    bert = made("BertModel")
    x = bert.model.embeddings.word_embeddings(bert.inputs["input_ids"]).detach()
    with torch.no_grad(), ts.sieve(bert.model, "tome", keep=0.5) as s:
        bert.model(inputs_embeds=x, attention_mask=bert.inputs["attention_mask"])
    assert s.last.stays[:, 0].all()
    assert s.last.stays[1, 14]
    assert not s.last.stays[1, 15:].any()
