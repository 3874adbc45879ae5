"""Meta-tokens: where they are put, and attention between them by its definition."""

from __future__ import annotations

import pytest
import torch

from benchmarks.reference.meta_tokens_243 import MetaAttention, MetaTokens, inject
from benchmarks.systems import meta
from tests.frames import TEXT, decoder

DRAW = 5


def strewn(ids=TEXT, share=0.25):
    return inject(ids, share, torch.Generator().manual_seed(DRAW))


def test_meta_tokens_leave_the_text_as_it_is():
    ids, where = strewn()
    assert ids.shape == (2, 30)
    assert where.sum(1).tolist() == [6, 6]
    assert torch.equal(ids[~where].view(2, 24), TEXT)
    assert not where[:, -1].any()
    assert not torch.equal(where[0], where[1])


@torch.no_grad()
def test_meta_attention_is_causal_attention_of_meta_tokens_alone():
    torch.manual_seed(0)
    made = MetaAttention(16, 2, 100.0)
    torch.nn.init.normal_(made.o.weight)
    _, where = strewn()
    x = torch.randn(2, 30, 16)
    y = made.norm(x)
    q, k, v = made.qkv(y).chunk(3, -1)

    def turned(vector, place):
        speed = 100.0 ** (-torch.arange(0, 8, 2) / 8)
        out = []
        for a, b in vector.view(2, 2, 4):
            cos, sin = (place * speed).cos(), (place * speed).sin()
            out.append(torch.cat([a * cos - b * sin, b * cos + a * sin]))
        return torch.stack(out)

    told = torch.zeros_like(x)
    for row in range(2):
        places = where[row].nonzero()[:, 0].tolist()
        for i in places:
            seen = [j for j in places if j <= i]
            keys = torch.stack([turned(k[row, j], j) for j in seen], 1)
            scores = (keys * turned(q[row, i], i)[:, None]).sum(-1) * 8**-0.5
            values = torch.stack([v[row, j].view(2, 8) for j in seen], 1)
            told[row, i] = made.o((scores.softmax(-1)[..., None] * values).sum(1).flatten())
    torch.testing.assert_close(made(x, where), told, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_it_begins_as_the_decoder_with_one_more_token():
    model = decoder()
    ids, where = strewn()
    plain = MetaTokens(model, attend_meta=False)
    both = MetaTokens(model)
    both.meta.data = plain.meta.data
    torch.testing.assert_close(both(ids, where), plain(ids, where), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        both(TEXT, torch.zeros_like(TEXT, dtype=torch.bool)), plain(TEXT, TEXT < 0), atol=1e-6, rtol=1e-6
    )
    none = torch.zeros_like(TEXT, dtype=torch.bool)
    torch.testing.assert_close(model.head(plain(TEXT, none)), model(TEXT), atol=1e-5, rtol=1e-5)


def test_no_future_is_seen_rows_are_alone_and_all_of_it_learns():
    model = MetaTokens(decoder())
    for attention in model.between:
        torch.nn.init.normal_(attention.o.weight, std=0.1)
    ids, where = strewn()
    at = int((~where[0]).nonzero()[12, 0])
    changed = ids.clone()
    changed[0, at] = (changed[0, at] + 1) % 50
    with torch.no_grad():
        a, b = model(ids, where), model(changed, where)
        torch.testing.assert_close(a[0, :at], b[0, :at], atol=1e-6, rtol=1e-6)
        assert (a[0, at:] - b[0, at:]).abs().max() > 1e-3
        torch.testing.assert_close(a[:1], model(ids[:1], where[:1]), atol=1e-5, rtol=1e-5)
    model(ids, where).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None and "head" not in n] == []
    assert model.meta.grad.abs().sum() > 0


def test_questions_ask_for_what_the_lists_hold():
    ids = meta.lists(3, 0, 4, 2)
    lines = ids.view(6, 7)
    assert len({*lines[:4, [0, 2, 3, 4, 5]].flatten().tolist()}) == 20
    assert all(line.tolist() in lines[:4].tolist() for line in lines[4:])
    wide, where = inject(ids[None], 0.2, torch.Generator().manual_seed(0))
    at, gold = meta.answers(wide, where, 2)
    assert gold[0].tolist() == lines[4:, 2:6].flatten().tolist()
    assert torch.equal(wide.gather(1, at), gold)


@pytest.mark.parametrize("meta_gets", [0.0, 1.0])
def test_what_is_received_is_told_apart(meta_gets):
    where = torch.tensor([[False, False, True, False]])
    noted = meta.Received(where)
    q = torch.full((1, 1, 4, 2), 50.0)
    k = torch.zeros(1, 1, 4, 2)
    k[:, :, 2 if meta_gets else 0] = 50.0
    noted(0, k, q, k, k)
    assert noted.mean(True) == pytest.approx(meta_gets)
