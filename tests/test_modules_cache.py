"""Trainable parts that spend less cache: their definitions as plain loops, no leaks, and caches equal to masks."""

import math

import pytest
import torch
from torch.nn import functional as F

from tokensieve.modules import block_transformer, longcoder, mta, nats, pod, tiny, tree
from tokensieve.testbed import lm

SHAPE = tiny.Shape(width=32, layers=2, heads=4, groups=2, head=8, mlp=48)
TEXT = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(3))


def decoder(seed=0):
    torch.manual_seed(seed)
    return tiny.Decoder(50, SHAPE).eval()


def singly(model, ids, attend=None, prompt=1):
    """Logits of a prompt in one call and of the tokens after it one by one, and the memory they leave."""
    memory = {}
    parts = [model(ids[:, :prompt], attend, memory)]
    parts += [model(ids[:, i : i + 1], attend, memory, i) for i in range(prompt, ids.shape[1])]
    return torch.cat(parts, 1), memory


def sees_no_future(logits_of, ids):
    """Changing a token changes no logits before it, and changes its own."""
    changed = ids.clone()
    changed[:, 15] = (changed[:, 15] + 1) % 50
    with torch.no_grad():
        a, b = logits_of(ids), logits_of(changed)
    torch.testing.assert_close(a[:, :15], b[:, :15], atol=1e-5, rtol=1e-5)
    assert (a[:, 15] - b[:, 15]).abs().max() > 1e-4


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
    drawn[..., 0] = nats.GLOBAL
    return F.one_hot(drawn, 3).float()


def seen(roles, i, j, window):
    """One pair by the definition; roles (T,)."""
    if j > i:
        return False
    if j == i or roles[j] == nats.GLOBAL:
        return True
    if roles[j] == nats.SLIDING:
        return i - j <= window
    return not any(roles[n] == nats.GLOBAL for n in range(j + 1, i))


@pytest.mark.parametrize("window", [1, 5])
def test_nats_masks_by_its_definition(window):
    roles = one_hot_roles()
    mask = nats.mask_of(roles, window)
    for b in range(2):
        for g in range(2):
            names = roles[b, g].argmax(-1).tolist()
            told = [[float(seen(names, i, j, window)) for j in range(20)] for i in range(20)]
            assert mask[b, g].tolist() == told


def test_nats_attends_to_what_is_visible_even_where_the_hidden_is_far_larger():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 20, 8), 40 * torch.randn(2, 2, 20, 8), torch.randn(2, 2, 20, 8)
    mask = nats.mask_of(one_hot_roles(), 3)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.bool().repeat_interleave(2, 1), enable_gqa=True)
    torch.testing.assert_close(nats.masked(q, k, v, mask), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prompt", [1, 9])
def test_nats_really_drops_what_its_mask_hides(prompt):
    model = decoder()
    roles = nats.NAtS(SHAPE, window=3).eval()
    with torch.no_grad():
        for m in roles.roles:
            m.weight.normal_(std=2.0)
        logits, memory = singly(model, TEXT, roles, prompt)
        torch.testing.assert_close(logits, model(TEXT, roles), atol=1e-5, rtol=1e-5)
        longer = torch.cat([TEXT, TEXT[:, :1]], 1)
        masks = {}
        model(longer, lambda i, x, *rest: roles(i, masks.setdefault(i, x), *rest))
    for i, layer in memory.items():
        mask = nats.mask_of(roles.role(i, masks[i], True), 3)
        living = mask[:, :, -1, :-1].sum(-1).flatten()  # what one more token would see
        assert layer.counts().tolist() == living.tolist()
        assert layer.bytes() == 2 * 8 * 4 * living.sum() < 2 * 2 * 2 * 24 * 8 * 4


def test_nats_sees_no_future_and_its_roles_learn():
    model = decoder()
    roles = nats.NAtS(SHAPE, window=3)
    sees_no_future(lambda ids: model(ids, roles.eval()), TEXT)
    F.cross_entropy(model(TEXT, roles.train()).flatten(0, 1), TEXT.flatten()).backward()
    assert all(m.weight.grad.abs().sum() > 0 for m in roles.roles)
    roles.zero_grad()
    model(TEXT, roles)
    torch.stack(list(roles.visible.values())).mean().backward()
    assert all(m.weight.grad.abs().sum() > 0 for m in roles.roles)
    assert 0 < float(roles.visible[0]) < 1


def test_a_global_token_s_gradient_counts_the_pairs_it_would_open():
    roles = torch.zeros(1, 1, 10, 3)
    roles[..., nats.SLIDING] = 1
    roles.requires_grad_()
    nats.mask_of(roles, 2).sum().backward()
    opened = [10 - 1 - j for j in range(10)]  # all later queries
    assert roles.grad[0, 0, :, nats.GLOBAL].tolist() == opened
    assert roles.grad[0, 0, :, nats.SLIDING].tolist() == [min(2, 9 - j) for j in range(10)]


def test_nats_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="window=0"):
        nats.NAtS(SHAPE, window=0)
    model, roles, memory = decoder(), nats.NAtS(SHAPE).eval(), {}
    model(TEXT, roles, memory)
    with pytest.raises(ValueError, match="1 token at a time, not 24"):
        model(TEXT, roles, memory, 24)
    assert math.isfinite(float(roles.visible[1]))


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
    monkeypatch.setattr(pod, "BLOCK", block)
    torch.manual_seed(1)
    q, low_q = torch.randn(2, 1, 4, 12, 8)
    k, v, low_k = torch.randn(3, 1, 2, 12, 8)
    wide_k, wide_v, wide_low = (t[0].repeat_interleave(2, 0) for t in (k, v, low_k))
    told = pod_by_definition(q[0], wide_k, wide_v, low_q[0], wide_low, sinks, recent)
    torch.testing.assert_close(pod.shared(q, k, v, low_q, low_k, sinks, recent)[0], told, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prompt", [1, 4, 15])
def test_pod_decodes_what_it_reads_without_the_keys_of_distant_tokens(prompt):
    model, sharing = decoder(), pod.PoD([[0, 1]], sinks=2, recent=4)
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
        for sharing in (pod.PoD([[0], [1]], 1, 1), pod.PoD([[0, 1]], 0, 24)):
            torch.testing.assert_close(model(TEXT, sharing), model(TEXT), atol=1e-5, rtol=1e-5)
        assert (model(TEXT, pod.PoD([[0, 1]], 1, 2)) - model(TEXT)).abs().max() > 1e-3


def test_pod_trains_the_lowest_layer_s_keys_for_all():
    model = decoder()
    model.stack.layers[0].v.weight.data.zero_()  # the lowest layer's own output says nothing of its keys
    model(TEXT, pod.PoD([[0, 1]], 1, 2))[:, -1].sum().backward()
    assert model.stack.layers[0].k.weight.grad.abs().sum() > 0


def test_layers_form_blocks_where_all_are_alike():
    alike = torch.eye(5)
    for a, b in ((0, 1), (1, 2), (3, 4)):
        alike[a, b] = alike[b, a] = 0.9
    assert pod.blocks(alike) == [[0, 1], [2], [3, 4]]
    same, other = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0.5, 0.5])
    told = pod.similarity(torch.stack([same, same, other])[:, None])
    torch.testing.assert_close(told, torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]), atol=1e-6, rtol=0)


def test_pod_refuses_blocks_with_gaps():
    with pytest.raises(ValueError, match="every layer once and in order"):
        pod.PoD([[0], [2, 1]])
    with pytest.raises(ValueError, match="recent=0"):
        pod.PoD([[0, 1]], 0, 0)


def blocky(prefix=2):
    torch.manual_seed(0)
    token = tiny.Shape(width=16, layers=2, heads=2, groups=2, head=8, mlp=24)
    return block_transformer.BlockTransformer(50, SHAPE, token, length=4, prefix=prefix).eval()


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
        block_transformer.BlockTransformer(50, SHAPE, SHAPE, length=3)


def copier(branch=2):
    torch.manual_seed(0)
    return tree.TreeCrossAttention(16, heads=2, branch=branch).eval()


@pytest.mark.parametrize(("length", "branch"), [(8, 2), (11, 2), (2, 2), (9, 3)])
@torch.no_grad()
def test_tree_attention_descends_by_its_definition(length, branch):
    model = copier(branch)
    context, queries = torch.randn(1, length, 16), torch.randn(1, 5, 16)
    levels, real = model.tree(context)
    for m in range(5):
        q = model.q(model.norm_query(queries[0, m])).view(2, 8)
        node, seen = 0, []
        for depth in range(1, len(levels)):
            children = [c for c in range(node * branch, node * branch + branch) if real[depth][c]]
            if depth == len(levels) - 1:
                seen += [levels[depth][0, c] for c in children]
                break
            keys = torch.stack([model.k(model.norm_node(levels[depth][0, c])).view(2, 8) for c in children])
            mean = (torch.einsum("hd,nhd->hn", q, keys) * 8**-0.5).softmax(-1).mean(0)
            node = children[int(mean.argmax())]
            seen += [levels[depth][0, c] for c in children if c != node]
        told = model.attend_all(queries[:, m : m + 1], torch.stack(seen)[None])
        torch.testing.assert_close(model(queries, context).output[:, m : m + 1], told, atol=1e-5, rtol=1e-5)
        assert len(seen) <= model(queries, context).nodes
    assert model(queries, torch.randn(1, 256, 16)).nodes == (9 if branch == 2 else 13)


@torch.no_grad()
def test_padding_a_tree_changes_no_node():
    model, context = copier(), torch.randn(2, 6, 16)
    levels, real = model.tree(context)
    two, four = (model.tree(context[:, part])[0] for part in (slice(4, 6), slice(0, 4)))
    torch.testing.assert_close(levels[1][:, 0], four[0][:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(levels[2][:, 2], two[0][:, 0], atol=1e-5, rtol=1e-5)
    assert real[3].tolist() == [True] * 6 + [False] * 2
    assert real[2].tolist() == [True, True, True, False]


def test_tree_attention_learns_by_what_it_found():
    model = copier().train()
    context, queries = torch.randn(2, 8, 16), torch.randn(2, 5, 16)
    walk = model(queries, context)
    assert (walk.log_chance < 0).all()
    assert walk.entropy.shape == (2, 5)
    logits = F.one_hot(torch.zeros(2, 5, dtype=torch.long), 3).float()
    flat = torch.zeros_like(logits)
    right, wrong = (tree.retreever_loss(logits, flat, torch.full((2, 5), g), walk) for g in (0, 1))
    told = F.cross_entropy(logits[0], torch.zeros(5).long()) + math.log(3) - walk.log_chance.mean()
    torch.testing.assert_close(right, told - 0.01 * walk.entropy.mean())
    torch.testing.assert_close(wrong - right, 1 + walk.log_chance.mean())  # a wrong answer earns nothing
    (walk.output.sum() + right).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_tree_refuses_what_does_not_branch():
    with pytest.raises(ValueError, match="branch=1"):
        tree.TreeCrossAttention(16, branch=1)


def coder(window=9, every=4, bridges=2, memory=3):
    return longcoder.LongCoder(decoder(), window, every, bridges, memory).eval()


MARKED = torch.rand(2, 24, generator=torch.Generator().manual_seed(5)) < 0.3


def test_longcoder_sees_a_window_the_latest_bridges_and_the_latest_memory_before_a_block():
    model = coder()
    memory = F.pad(MARKED.unflatten(1, (-1, 4)), (0, 1)).flatten(1)
    keys, seen = model.plan(memory)
    for b in range(2):
        for i in range(30):
            told = {j for j in range(30) if 0 <= i - j < 9}
            begin = i // 9 * 9
            for kind, most in ((lambda j: j % 5 == 4, 2), (lambda j, b=b: bool(memory[b, j]), 3)):
                latest = [j for j in range(begin) if kind(j)][-most:]
                told |= {j for j in latest if i - j >= 9}
            block, row = divmod(i, 9)
            found = keys[b, block][seen[b, block, row]].tolist()
            assert sorted(found) == sorted(told)
        assert not seen[b, 3, 3:].any()  # places 30 to 35 are not there


@torch.no_grad()
def test_longcoder_attends_as_its_mask_says():
    model = coder()
    memory = F.pad(MARKED.unflatten(1, (-1, 4)), (0, 1)).flatten(1)
    keys, seen = model.plan(memory)
    dense = torch.zeros(2, 36, 30, dtype=torch.bool)
    for b in range(2):
        for i in range(30):
            dense[b, i, keys[b, i // 9][seen[b, i // 9, i % 9]]] = True
    q, (k, v) = torch.randn(2, 4, 30, 8), torch.randn(2, 2, 2, 30, 8)
    told = F.scaled_dot_product_attention(q, k, v, attn_mask=dense[:, None, :30], enable_gqa=True)
    torch.testing.assert_close(longcoder.gathered(q, k, v, keys, seen), told, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_longcoder_is_the_plain_model_where_the_window_is_wide_and_bridges_say_nothing():
    model = coder(window=40)
    for layer in model.decoder.stack.layers:
        layer.o.weight.zero_()  # what is attended to does not matter: positions and order alone are compared
    torch.testing.assert_close(model(TEXT, MARKED), model.decoder(TEXT), atol=1e-5, rtol=1e-5)


def test_longcoder_sees_no_future_and_its_bridges_learn():
    model = coder()
    sees_no_future(lambda ids: model(ids, MARKED), TEXT)
    model(TEXT, MARKED)[:, -1].sum().backward()
    assert model.bridge.grad.abs().sum() > 0


@torch.no_grad()
def test_longcoder_s_pairs_grow_with_the_length_and_no_faster():
    model = coder()
    counts = []
    for repeat in (4, 8, 16):
        model(TEXT.repeat(1, repeat), MARKED.repeat(1, repeat))
        counts.append(model.pairs)
    assert counts[2] - counts[1] == pytest.approx(2 * (counts[1] - counts[0]), rel=0.02)


def test_definitions_are_whole_lines():
    pieces = ["import", " os", "\n", "x", " = ", "def", "\n", "    de", "f f(", "a):", "\n", "class", "y", "\n"]
    assert [p for p, m in zip(pieces, longcoder.definitions(pieces), strict=True) if m] == [
        "import", " os", "    de", "f f(", "a):"
    ]  # fmt: skip


def test_longcoder_refuses_odd_rows_and_narrow_windows():
    with pytest.raises(ValueError, match="22 tokens are no multiple of every=4"):
        coder()(TEXT[:, :22], MARKED[:, :22])
    with pytest.raises(ValueError, match="window=3 must be at least 5"):
        coder(window=3)


def shaken(query=3, key=5):
    torch.manual_seed(2)
    attend = mta.MultiTokenAttention(SHAPE, query, key).eval()
    for p in attend.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return attend


@torch.no_grad()
def test_mta_convolves_and_mixes_by_its_definition():
    attend = shaken()
    q, (k, v) = torch.randn(1, 4, 7, 8), torch.randn(2, 1, 2, 7, 8)
    kernel, mix = attend.kernels[1], attend.mixes[1]
    weights = torch.zeros(4, 7, 7)
    for h in range(4):
        for i in range(7):
            row = []
            for j in range(i + 1):
                total = 0.0
                for di in range(3):
                    for dj in range(-2, 3):
                        a, b = i - di, j + dj
                        if 0 <= b <= a:
                            score = float(q[0, h, a] @ k[0, h // 2, b]) * 8**-0.5
                            total += float(kernel[h, 0, 2 - di, 2 + dj]) * score
                row.append(total)
            weights[h, i, : i + 1] = torch.tensor(row).softmax(-1)
    pairs = weights.unflatten(0, (2, 2))  # two groups of two heads
    mixed = torch.stack([mix[g, 0, o] * pairs[g, 0] + mix[g, 1, o] * pairs[g, 1] for g in range(2) for o in range(2)])
    told = mixed @ v[0].repeat_interleave(2, 0)
    torch.testing.assert_close(attend(1, q, q, k, v)[0], told, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_mta_begins_as_plain_attention():
    model = decoder()
    torch.testing.assert_close(model(TEXT, mta.MultiTokenAttention(SHAPE)), model(TEXT), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("prompt", "query"), [(1, 3), (2, 6), (9, 1)])
def test_mta_sees_no_future_and_decodes_what_it_reads(prompt, query):
    model, attend = decoder(), shaken(query)
    sees_no_future(lambda ids: model(ids, attend), TEXT)
    with torch.no_grad():
        logits, memory = singly(model, TEXT, attend, prompt)
        torch.testing.assert_close(logits, model(TEXT, attend), atol=1e-5, rtol=1e-5)
    assert memory[0][1].shape[2] == query - 1


def test_mta_s_kernels_and_mixes_learn():
    attend = mta.MultiTokenAttention(SHAPE)
    F.cross_entropy(decoder()(TEXT, attend).flatten(0, 1), TEXT.flatten()).backward()
    assert all(p.grad.abs().sum() > 0 for p in attend.parameters())


def test_mta_refuses_kernels_without_a_middle():
    with pytest.raises(ValueError, match="key=4 odd"):
        mta.MultiTokenAttention(SHAPE, 2, 4)
    with pytest.raises(ValueError, match="heads=3 must divide the 4"):
        mta.MultiTokenAttention(SHAPE, 2, 5, 3)
