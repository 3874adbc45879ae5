"""Small text encoders: losses as plain loops, padding, batches, gradients; temperature and sticky tokens on any encoder."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize
from transformers import BertModel, LlamaConfig, LlamaModel

from benchmarks.reference.dupmae_21 import DupMAE, Joint
from benchmarks.reference.inceptive_160 import Inceptive
from benchmarks.reference.lotlip_338 import LoTLIP, summary_mask
from benchmarks.reference.mexma_382 import Mexma, koleo
from benchmarks.reference.sticky_tokens_307 import inserted, scan
from benchmarks.reference.tempscale_122 import high_frequency, likeness, slope, tempered
from benchmarks.reference.text_encoder import Vocabulary, batch, masked, tiny

SEQUENCES = [[5, 6, 7, 8, 9, 5], [10, 11], [12, 13, 14, 15]]


def small(**more) -> BertModel:
    torch.manual_seed(0)
    return tiny(32, 16, longest=24, **more).eval()


def padded(extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    ids, real = batch(SEQUENCES, 24)
    pads = torch.zeros(len(ids), extra, dtype=torch.long)
    return torch.cat([ids, pads], 1), torch.cat([real, pads > 0], 1)


# ---- the encoder they share


def test_a_vocabulary_reads_what_it_learned():
    known = Vocabulary(["read a file line by line", "close the file"], 64)
    (ids,) = known.ids(["read the file"])
    assert known.tokenizer.decode(ids) == "read the file"
    assert min(ids) > 3
    ids, real = batch([[7, 8, 9], [7]], 3)
    assert ids.tolist() == [[2, 7, 8], [2, 7, 0]]
    assert real.tolist() == [[True] * 3, [True, True, False]]


def test_masks_spare_cls_and_padding():
    ids, real = padded(3)
    seen, chosen = masked(ids, real, 1.0, torch.Generator())
    assert torch.equal(chosen[:, 1:], real[:, 1:])
    assert not chosen[:, 0].any()
    assert torch.equal(seen[~chosen], ids[~chosen])
    assert seen[chosen].unique().tolist() == [3]


# ---- DupMAE


def test_the_bag_of_words_is_told_by_the_maximum_of_ordinary_tokens():
    model = DupMAE(small())
    ids, real = padded(2)
    logits = torch.randn(*ids[:, 1:].shape, 32)
    total = 0.0
    for row, text in enumerate(SEQUENCES):
        most = logits[row, : len(text)].amax(0).log_softmax(0)
        total -= sum(float(most[t]) for t in set(text)) / len(text)
    assert model._bag(logits, ids, real).item() == pytest.approx(total / 3, abs=1e-5)


def test_its_decoder_sees_cls_and_never_the_token_it_tells():
    model = DupMAE(small(), unseen=0.0).eval()
    ids, real = padded()
    cls = torch.randn(3, 16)
    plain = model._decode(cls, ids, real, torch.Generator())
    other = ids.clone()
    other[0, 2] = 20
    changed = (model._decode(cls, other, real, torch.Generator()) - plain).abs().amax(2)[0] > 1e-7
    assert changed.tolist() == [True, True, False, True, True, True, True]
    blind = DupMAE(small(), unseen=1.0).eval()
    assert torch.equal(
        blind._decode(cls, ids, real, torch.Generator()), blind._decode(cls, other, real, torch.Generator())
    )


def test_dupmae_ignores_padding_and_trains_everything():
    model = DupMAE(small())
    ids, real = padded()
    for mine, other in zip(model(ids, real), model(*padded(4)), strict=True):
        assert torch.allclose(mine, other, atol=1e-5)
    for mine, other in zip(model(ids[1:2, :3], real[1:2, :3]), model(ids, real), strict=True):
        assert torch.allclose(mine[0], other[1], atol=1e-5)
    model.loss(ids, real, torch.Generator().manual_seed(0)).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_a_joint_vector_has_both_parts_in_one_length():
    joint = Joint(16, 32, 3, 5)
    cls, ordinary = torch.randn(2, 16), torch.randn(2, 32)
    plain = normalize(torch.cat([joint.cls(cls), joint.ordinary(ordinary)], 1), dim=1)
    assert torch.equal(joint(cls, ordinary), plain)
    assert Joint(16, 32, 8, 0)(cls, ordinary).shape == (2, 8)
    with pytest.raises(ValueError, match="cls=0, ordinary=0"):
        Joint(16, 32, 0, 0)


# ---- MEXMA


def test_koleo_is_minus_the_log_distance_to_the_nearest():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    unit = normalize(x, dim=1)
    plain = [-min((unit[i] - unit[j]).norm() for j in range(6) if j != i).log() for i in range(6)]
    assert koleo(x).item() == pytest.approx(float(sum(plain)) / 6, abs=1e-5)
    with pytest.raises(ValueError, match="no neighbours"):
        koleo(x[:1])


def test_token_gradients_can_be_blocked():
    ids, real = padded()
    found = {}
    for tokens in (True, False):
        torch.manual_seed(0)
        model = Mexma(small(), tokens=tokens).eval()
        other = torch.randn(3, 16, requires_grad=True)
        loss = model._tell(ids, real, other, torch.Generator().manual_seed(0))
        weight = model.encoder.encoder.layer[0].attention.self.query.weight
        grads = torch.autograd.grad(loss, [other, weight], allow_unused=True)
        found[tokens] = (loss.item(), grads)
    assert found[True][0] == found[False][0]
    assert torch.equal(found[True][1][0], found[False][1][0])
    assert found[True][1][0].any()
    assert found[True][1][1].any()
    assert found[False][1][1] is None


def test_mexma_ignores_padding_and_leaves_the_masked_loss_out_on_demand():
    model = Mexma(small(), told=False).eval()
    one, two = padded(), padded(3)
    assert torch.allclose(model(*one), model(*two), atol=1e-5)
    draw = torch.Generator().manual_seed(0)
    flipped = (one[0].flip(0), one[1].flip(0))
    a, b = model(*one), model(*flipped)
    plain = ((a - b) ** 2).mean() + 0.01 * (koleo(a) + koleo(b))
    assert model.loss(one, flipped, draw).item() == pytest.approx(plain.item(), abs=1e-6)
    full = Mexma(model.encoder).eval()
    assert torch.allclose(
        full._tell(*one, a, torch.Generator().manual_seed(0)), full._tell(*one, a, torch.Generator().manual_seed(0))
    )


# ---- Inceptive


def test_inceptive_is_convolutions_and_a_weighted_mean():
    torch.manual_seed(0)
    module = Inceptive(6, (1, 3), channels=2)
    states, real = torch.randn(2, 5, 6), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    for row, length in enumerate((5, 3)):
        x = states[row, :length]
        local = []
        for branch in module.branches:
            half = branch.kernel_size[0] // 2
            wide = torch.cat([torch.zeros(half, 6), x, torch.zeros(half, 6)])
            local.append(
                torch.stack(
                    [
                        torch.stack(
                            [(branch.weight[c] * wide[i : i + 2 * half + 1].T).sum() + branch.bias[c] for c in range(2)]
                        )
                        for i in range(length)
                    ]
                )
            )
        y = module.norm(x + module.back(torch.cat(local, 1).relu()))
        plain = (module.score(y).softmax(0) * y).sum(0)
        assert torch.allclose(module(states, real)[row], plain, atol=1e-5)
    with pytest.raises(ValueError, match=r"kernels=\(2,\)"):
        Inceptive(6, (2,))


# ---- LoTLIP


def test_summary_tokens_do_not_see_each_other():
    real = torch.tensor([[True] * 5 + [False]])
    assert summary_mask(real, 1)[0].long().tolist() == [
        [1, 0, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 0],
        [1, 0, 1, 1, 1, 0],
        [1, 0, 1, 1, 1, 0],
        [1, 0, 1, 1, 1, 0],
        [1, 0, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize("corners", [0, 2])
def test_lotlip_ignores_padding_and_corners_leave_cls_alone(corners):
    model = LoTLIP(small(), 8, corners)
    made = model(*padded())
    assert made.shape == (3, corners + 1, 8)
    assert torch.allclose(made, model(*padded(5)), atol=1e-5)
    ids, real = padded()
    assert torch.allclose(made[1], model(ids[1:2, :3], real[1:2, :3])[0], atol=1e-5)
    if corners:
        with torch.no_grad():
            model.extra.copy_(torch.randn(2, 16))
        assert torch.allclose(made[:, 0], model(*padded())[:, 0], atol=1e-6)
        assert not torch.allclose(made[:, 1], model(*padded())[:, 1], atol=1e-3)
    images = normalize(torch.randn(3, 8), dim=1)

    def both(t):
        like = t @ images.T / 0.07
        return -sum(like[i, i] - (like[i].logsumexp(0) + like[:, i].logsumexp(0)) / 2 for i in range(3)) / 3

    plain = both(made[:, 0]) + sum(both(made[:, k]) for k in range(corners + 1)) / (corners + 1)
    assert model.loss(images, made, made).item() == pytest.approx(plain.item(), abs=1e-4)


# ---- temperature


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_a_temperature_sharpens_every_layer_and_leaves_no_trace(kind):
    model = small()
    model.set_attn_implementation(kind)
    for layer in model.encoder.layer:
        torch.nn.init.normal_(layer.attention.self.query.weight)
        torch.nn.init.normal_(layer.attention.self.key.weight)
    ids, real = padded(2)
    given = {"input_ids": ids, "attention_mask": real.long()}
    with torch.no_grad():
        before = model(**given).last_hidden_state
        with tempered(model, 1.0):
            assert torch.allclose(model(**given).last_hidden_state, before, atol=1e-6)
        with tempered(model, 0.5):
            warm = model(**given).last_hidden_state
        # Twice the queries are half the temperature.
        for layer in model.encoder.layer:
            layer.attention.self.query.weight *= 2
            layer.attention.self.query.bias *= 2
        assert torch.allclose(warm[real], model(**given).last_hidden_state[real], atol=1e-5)
        for layer in model.encoder.layer:
            layer.attention.self.query.weight /= 2
            layer.attention.self.query.bias /= 2
        assert torch.equal(model(**given).last_hidden_state, before)
    assert not torch.allclose(warm[real], before[real], atol=1e-4)


def test_temperatures_out_of_range_and_decoders_are_refused():
    with pytest.raises(ValueError, match="temperature=0"), tempered(small(), 0):
        pass
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    with pytest.raises(ValueError, match="LlamaModel"), tempered(LlamaModel(config), 0.9):
        pass


def test_meters_are_what_loops_give():
    states = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    for row, length in enumerate((5, 3)):
        x = states[row, :length]
        share = ((x - x.mean(0)) ** 2).sum() / (x**2).sum()
        assert high_frequency(states, real)[row].item() == pytest.approx(share.item(), abs=1e-5)
    vectors, bins = torch.randn(7, 4), torch.tensor([0, 1, 0, 1, 1, 0, 0])
    unit = normalize(vectors, dim=1)
    for k in (0, 1):
        of = [i for i in range(7) if bins[i] == k]
        plain = [float(unit[i] @ unit[j]) for i in of for j in of if i != j]
        assert likeness(vectors, bins)[k].item() == pytest.approx(sum(plain) / len(plain), abs=1e-5)
    assert slope(torch.tensor([1.0, 3.0, 5.0])) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="bin 1 holds 1"):
        likeness(vectors[:3], torch.tensor([0, 0, 1]))


# ---- sticky tokens


def test_a_token_that_takes_every_text_over_is_found():
    draw = torch.Generator().manual_seed(0)
    # What all tokens have in common, and a place of the last token's own.
    table = torch.cat([torch.randn(40, 16, generator=draw), torch.full((40, 1), 2.0), torch.zeros(40, 1)], 1)
    pairs = [tuple(torch.randint(39, (6,), generator=draw).tolist() for _ in range(2)) for _ in range(60)]

    def embed(texts):
        return torch.stack([table[text].sum(0) for text in texts])

    sides = [normalize(embed([p[i] for p in pairs]), dim=1) for i in (0, 1)]
    like = (sides[0] * sides[1]).sum(1)
    cosine = like.mean() / sides[0][:, 16].mean()
    table[39] = 0.0
    table[39, 16:] = 1000 * torch.stack([cosine, (1 - cosine**2).sqrt()])
    found = scan(embed, pairs, [1, 2, 3, 39], shortlist=0.25, tolerance=0.2)
    assert found[0].token == 39
    assert found[0].sticky
    assert found[0].within == 1.0
    assert [f.within for f in found[1:]] == [None] * 3
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)
    assert found[0].spread < min(f.spread for f in found[1:])
    far = (like[like < like.mean()][:5] - like.mean()).abs().mean()
    left = sides[0][(like < like.mean()).nonzero()[:5, 0], 16] * cosine - like.mean()
    assert found[0].score == pytest.approx(1 - float(left.abs().mean() / far), abs=0.02)
    assert scan(embed, pairs, [1, 2, 3, 39], shortlist=0.25, tolerance=0.2) == found


def test_insertions_stand_in_front_behind_and_among():
    front, behind, candidates = inserted([1, 2, 3], 9, 4, torch.Generator().manual_seed(0))
    assert front == [9] * 4 + [1, 2, 3]
    assert behind == [1, 2, 3] + [9] * 4
    assert [t for t in candidates if t != 9] == [1, 2, 3]
    assert candidates.count(9) == 4


def test_a_scan_says_what_it_lacks():
    with pytest.raises(ValueError, match="times=0"):
        scan(lambda t: torch.ones(len(t), 2), [([1], [2])], [1], times=0)
    with pytest.raises(ValueError, match="less alike than the mean"):
        scan(lambda t: torch.ones(len(t), 2), [([1], [2])] * 4, [1])
