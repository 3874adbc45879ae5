"""Denoisers of diffusers, tiny and random, against the plain model with the same tokens hidden."""

import pytest
import torch

pytest.importorskip("diffusers")

from tokensieve.bench.compat import denoiser_check, denoiser_matrix, denoisers
from tokensieve.bench.compat.check import Differs
from tokensieve.core.denoising import FORMS
from tokensieve.sites.diffusion import modules, per_token

QUICK = ("DiTTransformer2DModel", "FluxTransformer2DModel", "ZImageTransformer2DModel", "UNet2DConditionModel")
"""One self-attention; a joint one in two streams and in one; the latents in front of the text; a pyramid."""


def verdict(name):
    made, recorded = denoiser_matrix.check(name), {v.name: v for v in denoiser_matrix.recorded()}[name]
    assert made.status != "wrong", made.why
    assert (made.status, made.checked) == (recorded.status, recorded.checked)
    assert set(made.why) == set(recorded.why)


@pytest.mark.parametrize("name", QUICK)
def test_a_denoiser_is_as_recorded(name):
    verdict(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in denoisers.TINY if n not in QUICK])
def test_every_denoiser_is_as_recorded(name):
    verdict(name)


def test_at_least_25_work_and_none_is_wrong():
    rows = denoiser_matrix.recorded()
    assert {v.name for v in rows} == set(denoisers.TINY)
    assert sum(v.status == "works" for v in rows) >= 25
    assert not [v.name for v in rows if v.status == "wrong"]
    assert all(set(v.checked) | set(v.why) >= set(FORMS) or "" in v.why for v in rows)


def test_the_check_sees_a_table_of_angles_that_was_not_gathered(monkeypatch):
    """As it would if a new argument per token were not known: the first tokens' angles in the place of the right ones."""

    def first(x, axis, take):
        for i in axis:
            x = x.narrow(i, 0, take(x.shape[i]).shape[1])
        return x

    monkeypatch.setattr(per_token, "gather", first)
    with pytest.raises(Differs, match="with the same tokens hidden"):
        denoiser_check.DenoiserCase("FluxTransformer2DModel").hidden("attention")


def test_the_check_sees_a_text_on_the_wrong_side(monkeypatch):
    case = denoiser_check.DenoiserCase("ZImageTransformer2DModel")
    case.text_stays()
    monkeypatch.setattr(modules, "IMAGE_FIRST", ())
    with pytest.raises(Differs, match="taken for those of the text"):
        case.text_stays()


def test_masks_and_tables_are_gathered_where_they_have_a_row_for_each_token():
    take = per_token.places(torch.tensor([[0, 3], [1, 2]]), 4, 2, True)
    assert take(4).tolist() == [[0, 3], [1, 2]]
    assert take(6).tolist() == [[0, 1, 2, 5], [0, 1, 3, 4]]
    assert take(5) is None
    for name, shape, axes in (
        ("image_rotary_emb", (6, 8), (0,)),
        ("image_rotary_emb", (1, 1, 6, 8), (2,)),
        ("attention_mask", (2, 6), (1,)),
        ("attention_mask", (2, 1, 6, 6), (2, 3)),
        ("temb", (2, 4), ()),  # two rows of four numbers
        ("temb", (2, 4, 8), (1,)),  # of each token
        ("encoder_attention_mask", (2, 4), ()),
    ):
        assert per_token.axes(name, torch.zeros(shape), 2, (4, 6)) == axes, name
