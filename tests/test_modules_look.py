"""Trainable parts that look for something: trees, bridges and definitions, neighbouring scores."""

import math

import pytest
import torch
from torch.nn import functional as F

from benchmarks.reference import longcoder_178, mta_348, tree_cross_attention_274
from tests.frames import SHAPE, TEXT, decoder, sees_no_future, singly


def copier(branch=2):
    torch.manual_seed(0)
    return tree_cross_attention_274.TreeCrossAttention(16, heads=2, branch=branch).eval()


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
    right, wrong = (tree_cross_attention_274.retreever_loss(logits, flat, torch.full((2, 5), g), walk) for g in (0, 1))
    told = F.cross_entropy(logits[0], torch.zeros(5).long()) + math.log(3) - walk.log_chance.mean()
    torch.testing.assert_close(right, told - 0.01 * walk.entropy.mean())
    torch.testing.assert_close(wrong - right, 1 + walk.log_chance.mean())  # a wrong answer earns nothing
    (walk.output.sum() + right).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_tree_refuses_what_does_not_branch():
    with pytest.raises(ValueError, match="branch=1"):
        tree_cross_attention_274.TreeCrossAttention(16, branch=1)


def coder(window=9, every=4, bridges=2, memory=3):
    return longcoder_178.LongCoder(decoder(), window, every, bridges, memory).eval()


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
    torch.testing.assert_close(longcoder_178.gathered(q, k, v, keys, seen), told, atol=1e-5, rtol=1e-5)


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
    assert [p for p, m in zip(pieces, longcoder_178.definitions(pieces), strict=True) if m] == [
        "import", " os", "    de", "f f(", "a):"
    ]  # fmt: skip


def test_longcoder_refuses_odd_rows_and_narrow_windows():
    with pytest.raises(ValueError, match="22 tokens are no multiple of every=4"):
        coder()(TEXT[:, :22], MARKED[:, :22])
    with pytest.raises(ValueError, match="window=3 must be at least 5"):
        coder(window=3)


def shaken(query=3, key=5):
    torch.manual_seed(2)
    attend = mta_348.MultiTokenAttention(SHAPE, query, key).eval()
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
    torch.testing.assert_close(model(TEXT, mta_348.MultiTokenAttention(SHAPE)), model(TEXT), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("prompt", "query"), [(1, 3), (2, 6), (9, 1)])
def test_mta_sees_no_future_and_decodes_what_it_reads(prompt, query):
    model, attend = decoder(), shaken(query)
    sees_no_future(lambda ids: model(ids, attend), TEXT)
    with torch.no_grad():
        logits, memory = singly(model, TEXT, attend, prompt)
        torch.testing.assert_close(logits, model(TEXT, attend), atol=1e-5, rtol=1e-5)
    assert memory[0][1].shape[2] == query - 1


def test_mta_s_kernels_and_mixes_learn():
    attend = mta_348.MultiTokenAttention(SHAPE)
    F.cross_entropy(decoder()(TEXT, attend).flatten(0, 1), TEXT.flatten()).backward()
    assert all(p.grad.abs().sum() > 0 for p in attend.parameters())


def test_mta_refuses_kernels_without_a_middle():
    with pytest.raises(ValueError, match="key=4 odd"):
        mta_348.MultiTokenAttention(SHAPE, 2, 4)
    with pytest.raises(ValueError, match="heads=3 must divide the 4"):
        mta_348.MultiTokenAttention(SHAPE, 2, 5, 3)
