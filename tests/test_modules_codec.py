"""Tokenizers that nobody calls by name: what each promises, exactly; none is trained here."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import tokensieve as ts
from benchmarks.reference.dualtoken_217 import DualToken
from benchmarks.reference.imagefolder_324 import Folded
from benchmarks.reference.instella_95 import OneDimensional
from benchmarks.reference.magvit2_208 import CausalTokenizer, Factorised
from benchmarks.reference.tokenbridge_237 import Dimensions
from benchmarks.reference.tokenflow_2 import TokenFlow
from benchmarks.reference.tokenset_168 import FixedSum, fixed_sum
from benchmarks.reference.unicode2_182 import Adapter
from benchmarks.reference.unicode_211 import OneTable
from benchmarks.reference.unitok_193 import WORDS, Matched
from benchmarks.reference.wetok_72 import Generative
from tokensieve.bench.codec.autoencoder import Autoencoder


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def images(count=4):
    return torch.rand(count, 1, 8, 8)


def trains(model, loss):
    """Whether each parameter that can be trained gets a gradient."""
    loss.backward()
    return all(p.grad is not None for p in model.parameters() if p.requires_grad)


# ---- tokens that stand for no place ----------------------------------------------------------------------------------------


def test_a_line_of_tokens_has_an_order_and_a_set_has_none():
    for ordered in (True, False):
        q = ts.quantizer("set", codes=16, dim=4, kmeans=False)
        model = OneDimensional(8, 1, 2, 6, q, ordered).eval()
        with torch.no_grad():
            codes = model.encode(images())
            assert codes.indices.shape == (4, 6, 1)
            values = torch.randn(4, 6, 4)
            back, other = model.decode(values), model.decode(values.flip(1))
        assert back.shape == (4, 1, 8, 8)
        assert torch.allclose(back, other, atol=1e-5) != ordered
    with torch.no_grad():
        assert model.decode(torch.randn(4, 9, 4)).shape == back.shape


def test_totals_are_kept_and_the_largest_fractions_go_up():
    values = torch.tensor([[0.4, 1.7, 0.9], [1.5, 1.5, 0.0], [3.0, 0.0, 0.0]])
    assert fixed_sum(values, 3).tolist() == [[0, 2, 1], [2, 1, 0], [3, 0, 0]]
    draw = torch.rand(50, 20)
    shares = 16 * draw / draw.sum(1, keepdim=True)
    held = fixed_sum(shares, 16)
    assert held.sum(1).tolist() == [16] * 50
    assert bool(((held - shares).abs() < 1).all())


def test_a_diffusion_of_counts_keeps_every_total_unless_it_is_free():
    totals = {}
    for fixed in (True, False):
        model = FixedSum(12, 9, fixed, width=8)
        steps = list(model.sample(5, 4, torch.Generator().manual_seed(0)))
        assert len(steps) == 5
        assert all(int(s.min()) >= 0 for s in steps)
        totals[fixed] = torch.stack(steps).sum(2).unique().tolist()
        again = list(model.sample(5, 4, torch.Generator().manual_seed(0)))
        assert torch.equal(again[-1], steps[-1])
        assert trains(model, model.loss(torch.full((3, 12), 0).index_fill(1, torch.tensor([2]), 9)))
    assert totals[True] == [9]
    assert len(totals[False]) > 1


# ---- images and clips, groups of bits --------------------------------------------------------------------------------------


def test_an_image_has_the_codes_of_a_clip_that_begins_with_it():
    model = CausalTokenizer(1, 2, ts.quantizer("lfq", bits=6)).eval()
    clip = torch.rand(2, 1, 5, 8, 8)
    with torch.no_grad():
        codes, grid = model.encode(clip)
        assert grid == (3, 4, 4)
        assert model.decode(codes.values, grid).shape == clip.shape
        for frames in (1, 3):
            part, _ = model.encode(clip[:, :, :frames])
            assert torch.equal(part.indices, codes.indices[:, : part.indices.shape[1]])
        later = clip.clone()
        later[:, :, 3:] = 0
        assert not torch.equal(model.encode(later)[0].values, codes.values)
    assert trains(model.train(), model.loss(clip))
    with pytest.raises(ValueError, match="4 frames; the first stands alone"):
        model.encode(clip[:, :, :4])


def test_groups_of_bits_are_told_by_tables_of_their_own():
    made = Factorised(6, 2, 8)
    bits = torch.randint(2, (3, 5, 6))
    assert made.words(torch.tensor([1, 0, 1, 0, 1, 1])).tolist() == [5, 6]
    assert made.embed(bits).shape == (3, 5, 8)
    states, words = torch.randn(3, 5, 8), made.words(bits)
    want = sum(cross_entropy(h(states).flatten(0, 1), words[..., i].flatten()) for i, h in enumerate(made.heads))
    assert torch.allclose(made.loss(states, bits), want)
    with pytest.raises(ValueError, match="groups=4 do not divide bits=6"):
        Factorised(6, 4, 8)


def test_a_generative_decoder_draws_and_leaves_the_encoder_alone():
    made = Autoencoder((1, 8, 8), 4, ts.quantizer("lfq", bits=4)).eval()
    model = Generative(made)
    values = made.encode(images()).values
    one, two, again = (model.decode(values, torch.Generator().manual_seed(i)) for i in (0, 1, 0))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    assert trains(model, model.loss(images(), torch.Generator().manual_seed(0)))
    assert all(p.grad is None for p in made.encoder.parameters())


# ---- codes in language models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folded", [True, False])
def test_a_step_sees_nothing_of_what_it_is_to_tell(folded):
    model = Folded(8, 2, 5, folded).eval()
    indices = torch.randint(8, (3, 5, 2))
    with torch.no_grad():
        before = model.logits(indices)
        for at in range(5):
            for branch in range(2):
                other = indices.clone()
                other[:, at, branch] = (other[:, at, branch] + 1) % 8
                after = model.logits(other)
                for i in range(2):
                    same = at + 1 if folded or i <= branch else at
                    assert torch.allclose(before[i][:, :same], after[i][:, :same], atol=1e-5)
                    assert not torch.allclose(before[i][:, same : same + 1], after[i][:, same : same + 1]) or same == 5
        drawn, calls = model.sample(2, 5, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 5, 2)
    assert calls == (5 if folded else 10)
    assert trains(model, model.loss(indices))


def test_one_table_serves_codes_and_words():
    model = OneTable(16, 10, 8, 7).eval()
    q = ts.quantizer("tied", codes=16, dim=8)
    q.follow(model.rows())
    assert torch.equal(q.codebook, model.rows().detach())
    symbols = torch.randint(26, (2, 7))
    with torch.no_grad():
        before = model.logits(symbols)
        other = symbols.clone()
        other[:, 4] = (other[:, 4] + 1) % 26
        after = model.logits(other)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-5)
    assert not torch.allclose(before[:, 5:], after[:, 5:])
    assert trains(model, model.loss(symbols))


@pytest.mark.parametrize("chain", [True, False])
def test_a_dimension_is_told_from_those_before_it(chain):
    model = Dimensions(4, 5, 3, chain)
    states, indices = torch.randn(6, 3), torch.randint(4, (6, 5))
    other = indices.clone()
    other[:, 2] = (other[:, 2] + 1) % 4
    before, after = model.logits(states, indices), model.logits(states, other)
    assert torch.equal(before[:, :3], after[:, :3])
    assert torch.equal(before, after) != chain
    assert model.sample(states).shape == indices.shape
    model.loss(states, indices).backward()


# ---- codes that mean something ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spaces", [("semantic", "pixels"), ("semantic",), ("pixels",)])
def test_one_index_serves_meaning_and_pixels(spaces):
    model = TokenFlow((1, 8, 8), 16, 12, 32, spaces)
    features = torch.randn(4, 16, 12)
    codes = model.encode(images(), features)
    assert codes.indices.shape == (4, 16, 1)
    back, meant = model.decode(codes.values)
    assert (back.shape, meant.shape) == ((4, 1, 8, 8), features.shape)
    model.loss(images(), features).backward()
    assert (model.into[1].weight.grad is not None) == ("semantic" in spaces)
    assert (model.frame.encoder[0].weight.grad is not None) == ("pixels" in spaces)


def test_two_depths_have_as_many_bits_as_one_shared_codebook():
    made = {shared: DualToken((1, 8, 8), 16, 12, 8, 2, shared=shared) for shared in (False, True)}
    bits = [model.encode(images()).levels for model in made.values()]
    assert bits[0] == bits[1] == (8,) * 4
    dual = made[False]
    dual.zero_grad()
    codes = dual.encode(images())
    dual.decode(codes.values)[0].sum().backward()
    assert dual.deeper[0].up.weight.grad is None or not bool(dual.deeper[0].up.weight.grad.any())
    assert made[True].meant(codes.values).shape == (4, 16, 8)


def test_an_adapter_begins_as_the_identity_on_anchored_features():
    features = torch.randn(8, 6, 12)
    model = Adapter(12, ts.quantizer("cascade", codes=32, dim=12), 3).eval()
    model.anchor(features, torch.Generator().manual_seed(0))
    with torch.no_grad():
        codes = model.quantizer(model.into(features))
        assert torch.equal(model.out_of(codes.values), codes.values)
    assert codes.usage.dead == 0
    assert trains(model.train(), model.loss(features, torch.zeros(8, dtype=torch.int64)))


def test_equal_captions_are_all_right_answers():
    model = Matched(6)
    assert model.words().shape == (len(WORDS), 32)
    assert torch.allclose(model.words().norm(dim=1), torch.ones(10))
    values, labels = torch.randn(4, 5, 6), torch.tensor([3, 3, 3, 3])
    like = model.scale.exp() * model.images(values) @ model.words()[labels].T
    want = -(like.log_softmax(1).mean() + like.log_softmax(0).mean()) / 2
    assert torch.allclose(model.loss(values, labels), want, atol=1e-5)
    assert model.named(values).shape == (4,)
