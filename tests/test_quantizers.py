"""Quantizers: the contract over all of them, the mathematics of each, bad input, names of before."""

import math
import subprocess
import sys
import warnings
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tokensieve as ts
from tokensieve.codec import Codes, Quantizer, load_quantizer, register_quantizer, save_quantizer, sign_entropy, usage
from tokensieve.codec.quantizer import Found
from tokensieve.codec.registry import KINDS, QUANTIZERS
from tokensieve.testing import quantizer_values
from tokensieve.testing.memory import Live

CASES = {
    "bsq": [{"bits": 9}, {"bits": 8, "groups": 2, "dim": 12}],
    "cascade": [{"codes": 32, "dim": 8}],
    "channels": [{"places": 16, "dim": 6, "codes": 16}],
    "depths": [{"dims": (4, 6), "codes": 8, "stages": 2}],
    "fsq": [{"levels": (8, 5, 5, 5)}, {"levels": (2, 3, 4), "dim": 12}, {"levels": (8,) * 11}],
    "gsq": [{"codes": 64, "dim": 8, "groups": 2}],
    "joint": [{"codes": 64, "dims": (4, 6), "weights": (1.0, 0.3)}],
    "lfq": [{"bits": 14}, {"bits": 8, "groups": 2, "dim": 12}],
    "product": [{"groups": 4, "dim": 8, "codes": 16}, {"of": "quantile", "groups": 2, "dim": 8, "bins": 4}],
    "quantile": [{"bins": 16, "dim": 5}],
    "residual": [
        {"stages": 3, "dim": 8, "codes": 16},
        {"stages": 2, "dim": 4, "of": "fsq", "levels": (5, 5, 5, 5), "gain": 4.0},
        {"stages": 2, "dim": 8, "codes": 32, "shared": True},
    ],
    "scales": [{"sides": (1, 2, 4), "dim": 8, "codes": 32}],
    "set": [{"codes": 32, "dim": 8}],
    "tied": [{"codes": 32, "dim": 8}],
    "vq": [
        {"codes": 4096, "dim": 8},
        {"codes": 64, "dim": 8, "cosine": True},
        {"codes": 64, "dim": 8, "update": "gradient", "kmeans": False, "revive": 0},
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "options"), [(n, o) for n, several in CASES.items() for o in several])
def test_the_contract_holds(name, options):
    ts.testing.check_quantizer(ts.quantizer(name, **options))


def test_every_quantizer_is_checked_and_has_a_kind():
    assert set(ts.list_quantizers()) == set(CASES)
    assert {QUANTIZERS.entry(n).facts["kind"] for n in CASES} <= set(KINDS)
    assert ts.list_quantizers(kind="FSQ") == ["fsq", "quantile"]
    assert all(QUANTIZERS.entry(n).summary for n in CASES)


# ---- what a check notices -----------------------------------------------------------------------------------------------


def broken(**changes):
    """A small FSQ with some of its methods replaced."""
    made = ts.quantizer("fsq", levels=(5, 5, 5))
    made.__class__ = type("Broken", (type(made),), changes)
    return made


FSQ = QUANTIZERS.get("fsq")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"table": lambda self, i: FSQ.table(self, i) + 0.7}, "nearest to itself"),
        ({"nearest": lambda self, u: FSQ.nearest(self, u - u.mean(0))}, "rows alone"),
        ({"lookup": lambda self, i: FSQ.lookup(self, i.clamp(max=4))}, "to be refused"),
        ({"nearest": lambda self, u: FSQ.nearest(self, u).int()}, "int64"),
        ({"squash": lambda self, x: FSQ.squash(self, x).detach()}, "straight through"),
        ({"loss_names": ("commitment",)}, "losses"),
        ({"forward": lambda self, z, mask=None, generator=None: FSQ.forward(self, z)}, "to be refused|finite"),
        ({"neighbours": lambda self, i, g=None: i}, "neighbours"),
    ],
)  # fmt: skip
def test_the_check_notices(changes, said):
    with pytest.raises((AssertionError, ValueError), match=said):
        ts.testing.check_quantizer(broken(**changes))


def test_the_check_notices_what_evaluation_changes_and_tables_of_tokens_and_codes():
    made = ts.quantizer("vq", codes=2200, dim=4, kmeans=False)

    class Counting(type(made)):
        def nearest(self, u):
            self.size += 1
            return super().nearest(u)

    class Whole(type(made)):
        def nearest(self, u):
            return torch.cdist(u, self.points()).argmin(1)[:, None]

    for cls, said in ((Counting, "change no state"), (Whole, "tokens x codes")):
        other = deepcopy(made)
        other.__class__ = cls
        with pytest.raises(AssertionError, match=said):
            ts.testing.check_quantizer(other)


def shifted(self, u, generator):
    """Quantiles of a mean that was forgotten."""
    QUANTIZERS.get("quantile").set_from(self, u, generator)
    self.mean.zero_()


def summed(self, x, generator):
    """Two stages, the second of which sees what is not left."""
    first, second = self.stages()
    one = first.assign(x, generator)
    two = second.assign(x + one.values, generator)
    return Found(torch.cat([one.indices, two.indices], 1), one.values + two.values, {})


@pytest.mark.parametrize(
    ("check", "name", "options", "changes", "said"),
    [
        ("nearest", "lfq", {"bits": 6}, {"nearest": lambda self, u: (u > 0.5).long()}, "another was nearer"),
        (
            "the_way_back", "joint", {"codes": 16, "dims": (2, 2), "weights": (1.0, 0.2)},
            {"restore": lambda self, v: v * self.roots}, "restore to undo squash",
        ),
        ("fitting", "quantile", {"bins": 8, "dim": 3}, {"set_from": shifted}, "more than one code for all"),
        (
            "fitting", "product", {"groups": 2, "dim": 4, "codes": 8},
            {"set_from": lambda self, u, g: None}, "fit to reach the quantizers that it is made of",
        ),
        (
            "stages", "residual", {"stages": 2, "dim": 4, "codes": 8},
            {"assign": summed}, "each stage to come nearer",
        ),
        (
            "learning", "vq", {"codes": 16, "dim": 4},
            {"learn": lambda self, u, i, v, g: self.codebook.add_(0.2)}, "training to leave codes no further off",
        ),
        (
            "learning", "vq", {"codes": 16, "dim": 4},
            {"learn": lambda self, u, i, v, g: self.size.add_(1.0)}, "to change what codes say",
        ),
    ],
)  # fmt: skip
def test_the_check_notices_codes_that_say_little_and_learning_that_does_not_help(check, name, options, changes, said):
    made = ts.quantizer(name, **options).eval()
    call = getattr(quantizer_values, f"check_{check}")
    call(deepcopy(made))
    made.__class__ = type("Changed", (type(made),), changes)
    with pytest.raises(AssertionError, match=said):
        call(made)


# ---- entropy ------------------------------------------------------------------------------------------------------------


def by_brute_force(logits):
    """The same over all codes at once."""
    bits = logits.shape[1]
    codes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=logits.dtype)] * bits).reshape(-1, bits)
    p = (logits @ codes.T).softmax(1)
    mean = p.mean(0)
    return -torch.special.xlogy(p, p).sum(1).mean(), -torch.special.xlogy(mean, mean).sum()


@pytest.mark.parametrize("bits", [1, 2, 5, 10])
def test_the_entropy_of_signs_is_exact_and_so_is_its_gradient(bits):
    torch.manual_seed(bits)
    z = torch.randn(40, bits, dtype=torch.float64)
    for weights in ((1.0, 0.0), (0.0, 1.0), (1.0, -1.0)):
        one, two = z.clone().requires_grad_(), z.clone().requires_grad_()
        got, want = sign_entropy(one), by_brute_force(two)
        assert all(abs(float((a - b).detach())) < 1e-10 for a, b in zip(got, want, strict=True))
        sum(w * v for w, v in zip(weights, got, strict=True)).backward()
        sum(w * v for w, v in zip(weights, want, strict=True)).backward()
        assert float((one.grad - two.grad).abs().max()) < 1e-10


def test_the_entropy_of_eighteen_bits_does_not_saturate_and_is_small():
    z = (torch.randn(4096, 18) * 1e-3).requires_grad_()
    with Live() as seen:
        each, batch = sign_entropy(z)
        (each - batch).backward()
    assert float(batch.detach()) == pytest.approx(18 * math.log(2), abs=1e-4)
    assert bool(z.grad.isfinite().all())
    assert seen.peak < 256e6
    skewed = (torch.randn(4096, 18) + 0.5).requires_grad_()
    sign_entropy(skewed)[1].backward()
    assert float(skewed.grad.abs().max()) > 0


def test_the_entropy_of_sure_bits_has_a_finite_gradient():
    z = torch.tensor([[400.0, -400.0], [400.0, 400.0]], requires_grad=True)
    each, batch = sign_entropy(z)
    (each + batch).backward()
    assert float(batch.detach()) == pytest.approx(math.log(2))
    assert bool(z.grad.isfinite().all())


# ---- each of them -------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.integers(0, 1000))
def test_packing_counts_codes_and_back(levels, seed):
    q = ts.quantizer("fsq", levels=tuple(levels))
    draw = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randint(n, (2, 5), generator=draw) for n in levels], -1)
    indices[1, 2] = -1
    flat = q.pack(indices)
    assert torch.equal(q.unpack(flat), indices)
    assert int(flat.max()) < math.prod(levels)
    assert flat[1, 2] == -1


def test_finite_scalars_take_the_levels_that_the_formula_says():
    q = ts.quantizer("fsq", levels=(5, 2))
    z = torch.tensor([[[-9.0, -0.01], [0.0, 0.01], [9.0, 9.0]]])
    assert q(z).indices[0].tolist() == [[0, 0], [2, 1], [4, 1]]
    assert q(z).values[0].tolist() == [[-1.0, -1.0], [0.0, 0.0], [1.0, 0.0]]


def test_eleven_dimensions_of_eight_levels_are_made_at_once_and_pack():
    with Live() as seen:
        q = ts.quantizer("fsq", levels=(8,) * 11)
        codes = q(torch.randn(2, 3, 11))
    assert seen.peak < 1e6
    assert int(q.pack(codes.indices).max()) < 8**11


def test_signs_on_the_sphere_have_length_one():
    q = ts.quantizer("bsq", bits=9)
    codes = q(torch.randn(2, 5, 9))
    assert torch.allclose(codes.values.norm(dim=-1), torch.ones(2, 5))


def test_moving_averages_follow_the_rule():
    q = ts.quantizer("vq", codes=2, dim=1, kmeans=False, revive=0, decay=0.5)
    q.codebook[:] = q.total[:] = torch.tensor([[0.0], [10.0]])
    q.train()(torch.tensor([[[1.0], [3.0], [12.0]]]))
    # sizes (1 + 2) / 2 and (1 + 1) / 2; sums (0 + 4) / 2 and (10 + 12) / 2
    assert torch.allclose(q.codebook, torch.tensor([[2 / 1.5], [11.0]]))
    assert torch.allclose(q.size, torch.tensor([1.5, 1.0]))


@pytest.mark.parametrize("tokens", [64, 640])
def test_dead_codes_come_back_whatever_the_size_of_the_batch(tokens):
    torch.manual_seed(0)
    z = torch.randn(1, tokens, 4) + 10
    dead = {}
    for revive in (0.0, 0.1):
        q = ts.quantizer("vq", codes=32, dim=4, kmeans=False, revive=revive, decay=0.9).train()
        for _ in range(60):
            q(z)
        dead[revive] = q.eval()(z).usage.dead
    assert dead[0.1] < 0.2 < dead[0.0]


def test_fewer_vectors_than_codes_start_fewer_and_say_so():
    q = ts.quantizer("vq", codes=64, dim=4, revive=0)
    with pytest.warns(
        RuntimeWarning, match=r"20 vectors, 20 of them different, start 20 of codes=64; the others are never"
    ):
        codes = q.train()(torch.randn(2, 10, 4))
    assert int(q.active.sum()) == 20
    assert int(codes.indices.max()) < 20
    assert int(q.eval()(100 * torch.randn(1, 500, 4)).indices.max()) < 20


def test_a_refused_batch_leaves_the_start_to_the_next():
    q = ts.quantizer("vq", codes=8, dim=2).train()
    z = torch.randn(1, 30, 2)
    z[0, 3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"z\[0, 3, 1\]=nan is not finite"):
        q(z)
    assert not q.started
    assert bool(q.codebook.isfinite().all())
    q(torch.randn(1, 30, 2))
    assert q.started
    held = q.codebook.clone()
    q(100 + torch.randn(1, 30, 2))
    assert float((q.codebook - held).abs().max()) < 10, "started twice"


def test_large_finite_values_are_no_error():
    q = ts.quantizer("fsq", levels=(5, 5))
    assert q(torch.full((1, 4, 2), 3e38)).indices.unique().tolist() == [4]


def test_the_joint_index_weighs_both_spaces():
    first, second = torch.tensor([[[0.0, 5.0]]]), torch.tensor([[0.0, 0.0], [9.0, 5.0]])
    for weights, code in (((1.0, 0.01), 0), ((0.01, 1.0), 1)):
        q = ts.quantizer("joint", codes=2, dims=(1, 1), weights=weights, kmeans=False)
        q.codebook[:] = second * q.roots
        codes = q(first)
        assert codes.indices.item() == code
        assert torch.allclose(codes.values[0, 0], second[code])


def test_residual_stages_come_nearer_one_by_one():
    torch.manual_seed(0)
    z = torch.randn(4, 100, 6)
    q = ts.quantizer("residual", stages=4, dim=6, codes=16).fit(z).eval()
    codes = q(z)
    errors = [float((q.lookup(codes.indices[..., :n]) - z).square().mean()) for n in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < errors[0] / 2
    with pytest.raises(ValueError, match="component 0 has codes 0 to 15"):
        q.lookup(codes.indices[..., :2] + 16)
    with pytest.raises(ValueError, match="a component for each"):
        q.lookup(codes.indices[..., [0, 1, 2, 3, 3]])


def test_the_gradient_of_a_residual_goes_through_once():
    q = ts.quantizer("residual", stages=3, dim=4, codes=8, commitment=0.0).train()
    z = torch.randn(2, 9, 4, requires_grad=True)
    q(z).values.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))


def test_channels_speak_of_all_places_and_scales_begin_coarse():
    q = ts.quantizer("channels", places=16, dim=6, codes=8).fit(torch.randn(9, 16, 6)).eval()
    z = torch.randn(1, 16, 6)
    codes = q(z)
    other = codes.indices.clone()
    other[0, 2] = (other[0, 2] + 1) % 8
    moved = (q.lookup(other) - codes.values)[0] != 0
    assert bool(moved[:, 2].all())
    assert not bool(moved[:, [0, 1, 3, 4, 5]].any())
    scales = ts.quantizer("scales", sides=(1, 4), dim=3, codes=64).fit(torch.randn(9, 16, 3)).eval()
    flat = scales(torch.ones(1, 16, 3)).indices
    assert flat.shape == (1, 17, 1)
    with pytest.raises(ValueError, match="a part of a row"):
        scales(torch.randn(1, 16, 3), torch.arange(16)[None] < 4)


def test_anchors_stay_and_refinements_learn():
    torch.manual_seed(0)
    z = torch.randn(4, 64, 4)
    q = ts.quantizer("cascade", codes=16, dim=4).fit(z).train()
    anchors, before = q.codebook.clone(), float(q(z).losses["codebook"].detach())
    optimizer = torch.optim.Adam(q.parameters(), 0.05)
    z2 = z + 1.0
    for _ in range(40):
        optimizer.zero_grad()
        q(z2).loss.backward()
        optimizer.step()
    assert torch.equal(q.codebook, anchors)
    assert float(q(z2).losses["codebook"].detach()) < 3 * before
    assert float(q.refinement.detach().abs().max()) > 0.1


def test_a_tied_codebook_follows_its_table():
    q = ts.quantizer("tied", codes=4, dim=2, momentum=0.5)
    q.follow(torch.ones(4, 2))
    assert torch.equal(q.codebook, torch.ones(4, 2))
    q.follow(torch.zeros(4, 2))
    assert torch.equal(q.codebook, torch.full((4, 2), 0.5))
    with pytest.raises(ValueError, match=r"it must be \(4, 2\), and finite"):
        q.follow(torch.full((4, 2), torch.nan))


def test_quantiles_are_used_alike_by_normal_values():
    z = 3 + 2 * torch.randn(1, 40_000, 2, generator=torch.Generator().manual_seed(0))
    q = ts.quantizer("quantile", bins=8, dim=2).fit(z)
    codes = q(z)
    assert codes.usage.parts[0].entropy == pytest.approx(3, abs=0.001)
    assert torch.allclose(codes.values.mean((0, 1)), torch.tensor([3.0, 3.0]), atol=0.05)


def test_sets_are_exact_counts_whatever_the_order():
    q = ts.quantizer("set", codes=8, dim=2).fit(torch.randn(1, 99, 2))
    codes = q(torch.randn(3, 12, 2), torch.arange(12)[None] < torch.tensor([12, 5, 0])[:, None])
    counts = q.counts(codes.indices)
    assert counts.sum(1).tolist() == [12, 5, 0]
    assert torch.equal(q.counts(q.members(counts)), counts)
    assert torch.equal(q.counts(codes.indices[:, torch.randperm(12)]), counts)
    assert q.set_bits(2) == pytest.approx(math.log2(8 * 9 / 2))
    with pytest.raises(ValueError, match="none below 0"):
        q.members(-counts)


def test_usage_of_uniform_and_collapsed_codes():
    even = usage(torch.arange(16).repeat(5)[:, None], (16,))
    assert (even.distinct, even.dead, even.tokens) == (16, 0.0, 80)
    assert even.perplexity == pytest.approx(16)
    one = usage(torch.zeros(50, 2, dtype=torch.int64), (4, 4))
    assert (one.distinct, one.entropy, one.perplexity, one.dead) == (1, 0.0, 1.0, 1 - 1 / 16)
    assert [p.dead for p in one.parts] == [0.75, 0.75]


# ---- bad input and names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fsq", {"levels": (8, 1)}, r"fsq: levels=\(8, 1\); each must be a whole number, at least 2"),
        ("fsq", {"levels": 8}, r"levels=8; it must be a tuple"),
        ("vq", {"codes": 1, "dim": 4}, r"vq: codes=1; it must be a whole number, at least 2"),
        ("vq", {"codes": 8}, r"vq needs dim="),
        ("vq", {"codes": 8, "dim": 4, "reviv": 0.2}, r"vq has no option 'reviv'; did you mean revive"),
        ("vq", {"codes": 8, "dim": 4, "decay": 2}, r"decay=2; it must be a number, 0 to 1"),
        ("vq", {"codes": 8, "dim": 4, "update": "sgd"}, r"update='sgd'; it must be one of ema, gradient"),
        ("lfq", {"bits": 64}, "bits=64 in groups=1: the entropy of a group is over 2\\^64 codes; give more groups"),
        ("lfq", {"bits": 9, "groups": 2}, r"groups=2 do not divide bits=9"),
        ("product", {"groups": 3, "dim": 8, "codes": 4}, r"groups=3 do not divide dim=8"),
        ("scales", {"sides": (4, 2), "dim": 8, "codes": 4}, r"they must grow"),
        ("joint", {"codes": 4, "dims": (2, 2), "weights": (1, 0)}, r"one above 0"),
        ("residual", {"of": "lfq", "stages": 2, "dim": 4, "bits": 6}, r"dim=4; lfq of these options has 6"),
        ("vp", {}, r"no quantizer is called 'vp'; did you mean .*vq"),
    ],
)  # fmt: skip
def test_options_are_checked_by_name(name, options, said):
    with pytest.raises(ValueError, match=said):
        ts.quantizer(name, **options)


def test_more_bits_than_an_integer_holds_are_not_packed():
    q = ts.quantizer("lfq", bits=64, groups=4)
    codes = q(torch.randn(1, 2, 64))
    with pytest.raises(ValueError, match=r"have 64\.0 bits; one int64 holds 63"):
        q.pack(codes.indices)
    small = ts.quantizer("lfq", bits=63, groups=3)
    held = small(torch.ones(1, 1, 63)).indices
    assert torch.equal(small.unpack(small.pack(held)), held)


def test_a_message_says_which_index_is_out_of_range():
    q = ts.quantizer("fsq", levels=(8, 5))
    bad = torch.tensor([[[7, 4], [3, 5]]])
    with pytest.raises(ValueError, match=r"indices\[0, 1, 1\] is 5; component 1 has codes 0 to 4"):
        q.lookup(bad)
    with pytest.raises(ValueError, match="must be int64"):
        q.lookup(bad.int())
    with pytest.raises(ValueError, match="a packed index is 40; it must be 0 to 39"):
        q.unpack(torch.tensor([[40]]))


def test_a_folder_of_nothing_or_of_another_version_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no quantizer"):
        load_quantizer(tmp_path)
    save_quantizer(ts.quantizer("lfq", bits=4), tmp_path)
    assert load_quantizer(tmp_path).levels == (2,) * 4
    (tmp_path / "quantizer.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="is not of the format"):
        load_quantizer(tmp_path)
    with pytest.raises(ValueError, match=r"made by tokensieve\.quantizer"):
        save_quantizer(QUANTIZERS.get("lfq")(bits=4), tmp_path)


def test_one_of_your_own_takes_two_methods():
    @register_quantizer("mine", kind="LFQ")
    class Mine(Quantizer):
        """Thirds."""

        def __init__(self, *, dim: int):
            super().__init__((3,) * dim, dim)

        def nearest(self, u):
            return (u.clamp(-1, 1).round() + 1).long()

        def table(self, indices):
            return indices.float() - 1

    try:
        q = ts.quantizer("mine", dim=4)
        ts.testing.check_quantizer(q)
        assert isinstance(q(torch.randn(1, 2, 4)), Codes)
        with pytest.raises(ValueError, match="kind='other'"):
            register_quantizer("other", kind="other")
    finally:
        QUANTIZERS.forget("mine")


def test_a_model_in_bfloat16_quantizes_as_its_float32_codes_do():
    net = nn.Sequential(ts.quantizer("vq", codes=32, dim=4, kmeans=False)).bfloat16().eval()
    z = torch.randn(1, 50, 4, dtype=torch.bfloat16)
    codes = net[0](z)
    near = torch.cdist(z[0].double(), net[0].codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert torch.equal(codes.indices[0, :, 0], near)
    net.train()(z)


# ---- names of before ----------------------------------------------------------------------------------------------------


def test_what_stood_at_codec_before_is_found_with_a_warning():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        from tokensieve.codec import CODECS, Binary, Codec, Fields, Float16, Float32, Int4, Int8, Residual, codec
    storage = ts.retrieval.storage
    assert Codec is storage.VectorFormat
    assert CODECS is storage.FORMATS
    assert Fields is storage.Fields
    assert codec("int8", 16) == storage.vector_format("int8", 16)
    named = {c.name for c in (Binary, Float16, Float32, Int4, Int8, Residual)}
    assert named <= set(ts.list_formats())
    said = {str(w.message) for w in seen}
    assert "tokensieve.codec.Codec is now tokensieve.retrieval.storage.VectorFormat" in said
    assert len({s for s in said if s.startswith("tokensieve.codec.")}) == 10
    with pytest.raises(ImportError, match="cannot import name 'Int16'"):
        exec("from tokensieve.codec import Int16")


def test_importing_the_codec_loads_no_search():
    code = "import sys, tokensieve.codec as c; c.list_quantizers(); print('tokensieve.retrieval' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr
