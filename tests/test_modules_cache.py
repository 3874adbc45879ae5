"""Trainable parts that keep less cache: their definitions as plain loops, no leaks, and caches equal to masks."""

import math

import pytest
import torch
from torch.nn import functional as F

from benchmarks.reference import block_transformer_184, nats_79, pod_291
from benchmarks.reference import decoder as tiny
from tests.frames import SHAPE, TEXT, decoder, sees_no_future, singly
from tokensieve.testbed import lm


def test_the_frame_computes_what_llama_computes():
    model = lm.build("micro", seed=1)
    ids = torch.randint(0, 2048, (2, 30))
    with torch.no_grad():
        torch.testing.assert_close(tiny.Decoder.of_llama(model)(ids), model(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prompt", [1, 7])
def test_the_frame_decodes_what_it_reads(prompt):
    model = decoder()
    with torch.no_grad():
        logits, memory = singly(model, TEXT, prompt=prompt)
        torch.testing.assert_close(logits, model(TEXT), atol=1e-5, rtol=1e-5)
    assert memory[0].bytes() == 2 * 2 * 2 * 24 * 8 * 4
    sees_no_future(model, TEXT)


def test_a_stretch_of_tokens_may_follow_a_cache():
    model, memory = decoder(), {}
    with torch.no_grad():
        parts = [model(TEXT[:, :9], None, memory), model(TEXT[:, 9:], None, memory, 9)]
        torch.testing.assert_close(torch.cat(parts, 1), model(TEXT), atol=1e-5, rtol=1e-5)


def test_heads_that_no_groups_can_share_are_refused():
    with pytest.raises(ValueError, match=r"groups=3 must divide heads=4; take one of \[1, 2, 4\]"):
        tiny.Shape(groups=3)


def one_hot_roles(length=20, seed=0):
    drawn = torch.randint(0, 3, (2, 2, length), generator=torch.Generator().manual_seed(seed))
    drawn[..., 0] = nats_79.GLOBAL
    return F.one_hot(drawn, 3).float()


def seen(roles, i, j, window):
    """One pair by the definition; roles (T,)."""
    if j > i:
        return False
    if j == i or roles[j] == nats_79.GLOBAL:
        return True
    if roles[j] == nats_79.SLIDING:
        return i - j <= window
    return not any(roles[n] == nats_79.GLOBAL for n in range(j + 1, i))


@pytest.mark.parametrize("window", [1, 5])
def test_nats_masks_by_its_definition(window):
    roles = one_hot_roles()
    mask = nats_79.mask_of(roles, window)
    for b in range(2):
        for g in range(2):
            names = roles[b, g].argmax(-1).tolist()
            told = [[float(seen(names, i, j, window)) for j in range(20)] for i in range(20)]
            assert mask[b, g].tolist() == told


def test_nats_attends_to_what_is_visible_even_where_the_hidden_is_far_larger():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 20, 8), 40 * torch.randn(2, 2, 20, 8), torch.randn(2, 2, 20, 8)
    mask = nats_79.mask_of(one_hot_roles(), 3)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.bool().repeat_interleave(2, 1), enable_gqa=True)
    torch.testing.assert_close(nats_79.masked(q, k, v, mask), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prompt", [1, 9])
def test_nats_really_drops_what_its_mask_hides(prompt):
    model = decoder()
    roles = nats_79.NAtS(SHAPE, window=3).eval()
    with torch.no_grad():
        for m in roles.roles:
            m.weight.normal_(std=2.0)
        logits, memory = singly(model, TEXT, roles, prompt)
        torch.testing.assert_close(logits, model(TEXT, roles), atol=1e-5, rtol=1e-5)
        longer = torch.cat([TEXT, TEXT[:, :1]], 1)
        masks = {}
        model(longer, lambda i, x, *rest: roles(i, masks.setdefault(i, x), *rest))
    for i, layer in memory.items():
        mask = nats_79.mask_of(roles.role(i, masks[i], True), 3)
        living = mask[:, :, -1, :-1].sum(-1).flatten()  # what one more token would see
        assert layer.counts().tolist() == living.tolist()
        assert layer.bytes() == 2 * 8 * 4 * living.sum() < 2 * 2 * 2 * 24 * 8 * 4


def test_nats_sees_no_future_and_its_roles_learn():
    model = decoder()
    roles = nats_79.NAtS(SHAPE, window=3)
    sees_no_future(lambda ids: model(ids, roles.eval()), TEXT)
    F.cross_entropy(model(TEXT, roles.train()).flatten(0, 1), TEXT.flatten()).backward()
    assert all(m.weight.grad.abs().sum() > 0 for m in roles.roles)
    roles.zero_grad()
    model(TEXT, roles)
    torch.stack(list(roles.visible.values())).mean().backward()
    assert all(m.weight.grad.abs().sum() > 0 for m in roles.roles)
    assert 0 < float(roles.visible[0].detach()) < 1


def test_a_global_token_s_gradient_counts_the_pairs_it_would_open():
    roles = torch.zeros(1, 1, 10, 3)
    roles[..., nats_79.SLIDING] = 1
    roles.requires_grad_()
    nats_79.mask_of(roles, 2).sum().backward()
    opened = [10 - 1 - j for j in range(10)]  # all later queries
    assert roles.grad[0, 0, :, nats_79.GLOBAL].tolist() == opened
    assert roles.grad[0, 0, :, nats_79.SLIDING].tolist() == [min(2, 9 - j) for j in range(10)]


def test_nats_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="window=0"):
        nats_79.NAtS(SHAPE, window=0)
    model, roles, memory = decoder(), nats_79.NAtS(SHAPE).eval(), {}
    model(TEXT, roles, memory)
    with pytest.raises(ValueError, match="1 token at a time, not 24"):
        model(TEXT, roles, memory, 24)
    assert math.isfinite(float(roles.visible[1].detach()))


def pod_by_definition(q, k, v, low_q, low_k, sinks, recent):
    """One pair after another, weighing near and distant parts by their sums of exponentials; (H, T, d) each."""
    out = torch.zeros_like(q)
    scale = q.shape[-1] ** -0.5
    for h in range(q.shape[0]):
        for i in range(q.shape[1]):
            near = [j for j in range(i + 1) if j < sinks or i - j < recent]
            far = [j for j in range(i + 1) if j not in near]
            parts, sums = [], []
            for places, keys, query in ((near, k, q), (far, low_k, low_q)):
                e = [math.exp(float(query[h, i] @ keys[h, j]) * scale) for j in places]
                sums.append(sum(e))
                parts.append(sum(w / sum(e) * v[h, j] for w, j in zip(e, places, strict=True)) if e else 0 * v[h, 0])
            gate = sums[0] / sum(sums)
            out[h, i] = gate * parts[0] + (1 - gate) * parts[1]
    return out


@pytest.mark.parametrize(("sinks", "recent", "block"), [(2, 3, 5), (0, 1, 256), (4, 40, 256)])
def test_pod_attends_by_its_definition(sinks, recent, block, monkeypatch):
    monkeypatch.setattr(pod_291, "BLOCK", block)
    torch.manual_seed(1)
    q, low_q = torch.randn(2, 1, 4, 12, 8)
    k, v, low_k = torch.randn(3, 1, 2, 12, 8)
    wide_k, wide_v, wide_low = (t[0].repeat_interleave(2, 0) for t in (k, v, low_k))
    told = pod_by_definition(q[0], wide_k, wide_v, low_q[0], wide_low, sinks, recent)
    torch.testing.assert_close(pod_291.shared(q, k, v, low_q, low_k, sinks, recent)[0], told, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prompt", [1, 4, 15])
def test_pod_decodes_what_it_reads_without_the_keys_of_distant_tokens(prompt):
    model, sharing = decoder(), pod_291.PoD([[0, 1]], sinks=2, recent=4)
    with torch.no_grad():
        logits, memory = singly(model, TEXT, sharing, prompt)
        torch.testing.assert_close(logits, model(TEXT, sharing), atol=1e-5, rtol=1e-5)
    assert memory[1].keys.shape[2] == 6
    assert memory[1].bytes() == (24 + 6) * 2 * 2 * 8 * 4
    assert memory[0].bytes() == 2 * 24 * 2 * 2 * 8 * 4
    sees_no_future(lambda ids: model(ids, sharing), TEXT)


def test_pod_is_plain_attention_where_blocks_are_single_or_all_tokens_are_near():
    model = decoder()
    with torch.no_grad():
        for sharing in (pod_291.PoD([[0], [1]], 1, 1), pod_291.PoD([[0, 1]], 0, 24)):
            torch.testing.assert_close(model(TEXT, sharing), model(TEXT), atol=1e-5, rtol=1e-5)
        assert (model(TEXT, pod_291.PoD([[0, 1]], 1, 2)) - model(TEXT)).abs().max() > 1e-3


def test_pod_trains_the_lowest_layer_s_keys_for_all():
    model = decoder()
    model.stack.layers[0].v.weight.data.zero_()  # the lowest layer's own output says nothing of its keys
    model(TEXT, pod_291.PoD([[0, 1]], 1, 2))[:, -1].sum().backward()
    assert model.stack.layers[0].k.weight.grad.abs().sum() > 0


def test_layers_form_blocks_where_all_are_alike():
    alike = torch.eye(5)
    for a, b in ((0, 1), (1, 2), (3, 4)):
        alike[a, b] = alike[b, a] = 0.9
    assert pod_291.blocks(alike) == [[0, 1], [2], [3, 4]]
    same, other = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0.5, 0.5])
    told = pod_291.similarity(torch.stack([same, same, other])[:, None])
    torch.testing.assert_close(told, torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]), atol=1e-6, rtol=0)


def test_pod_refuses_blocks_with_gaps():
    with pytest.raises(ValueError, match="every layer once and in order"):
        pod_291.PoD([[0], [2, 1]])
    with pytest.raises(ValueError, match="recent=0"):
        pod_291.PoD([[0, 1]], 0, 0)


def blocky(prefix=2):
    torch.manual_seed(0)
    token = tiny.Shape(width=16, layers=2, heads=2, groups=2, head=8, mlp=24)
    return block_transformer_184.BlockTransformer(50, SHAPE, token, length=4, prefix=prefix).eval()


@torch.no_grad()
def test_a_block_transformer_reads_as_three_parts_one_block_after_another():
    model = blocky()
    told = []
    for b in range(6):  # the definition: blocks before, then this block's tokens one by one
        before = [model.start[None]] + [model.embed(TEXT[:1, 4 * i : 4 * i + 4]).reshape(1, -1) for i in range(b)]
        prefix = model.unfold(model.blocks(torch.stack(before, 1))[:, -1]).reshape(1, 2, 16)
        for i in range(4):
            x = torch.cat([prefix, model.embed_token(TEXT[:1, 4 * b : 4 * b + i])], 1)
            told.append(model.head(model.tokens(x)[:, -1]))
    torch.testing.assert_close(model(TEXT)[:1], torch.stack(told, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix", [1, 2])
@torch.no_grad()
def test_a_block_transformer_writes_what_it_reads_and_holds_what_its_ledger_says(prefix):
    model = blocky(prefix)
    memory = model.open(TEXT[:, :8])
    written = torch.cat([model.write(memory) for _ in range(3)], 1)
    ids = torch.cat([TEXT[:, :8], written], 1)
    assert model(ids)[:, 8:].argmax(-1).tolist() == written.tolist()
    assert sum(memory[i].bytes() for i in range(2)) == 2 * model.ledger(20)["block decoder"]
    vanilla = {}
    decoder()(ids, None, vanilla)
    saved = sum(layer.bytes() for layer in vanilla.values()) / (2 * model.ledger(20)["block decoder"])
    assert saved == 20 / 6  # blocks of 4, and the embedding in front


def test_a_block_transformer_does_not_see_what_it_writes():
    model = blocky()
    changed = TEXT.clone()
    changed[:, 14] = (changed[:, 14] + 1) % 50
    with torch.no_grad():
        a, b = model(TEXT), model(changed)
    torch.testing.assert_close(a[:, :15], b[:, :15], atol=1e-5, rtol=1e-5)
    assert ((a - b)[:, 15:].abs().amax(-1) > 1e-5).all()  # the block's next token, and later blocks


def test_a_block_transformer_refuses_parts_of_blocks():
    with pytest.raises(ValueError, match="pad them on the left to 24"):
        blocky()(TEXT[:, :22])
    with pytest.raises(ValueError, match="length=3"):
        block_transformer_184.BlockTransformer(50, SHAPE, SHAPE, length=3)
