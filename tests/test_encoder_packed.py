"""Rows that hold different numbers of tokens run one behind the other, and are what they are padded."""

import pytest
import torch

import tokensieve as ts
from tests.tiny_encoders import made
from tokensieve.core.method_registry import get_method
from tokensieve.sites.encoder import packed

WORTH = torch.rand(2, 64, generator=torch.Generator().manual_seed(3)) * torch.tensor([[1.0], [0.65]])
LEAST = get_method("bavit", least=0.4)


def run(encoder, plan, **more):
    with plan as s:
        out = encoder(output_hidden_states=True, **more)
    return [out.last_hidden_state, *out.hidden_states], s.last


def sieved(encoder, method):
    given = None if method == "tome" else {"foreground": WORTH}
    return ts.sieve(encoder.model, method, keep=0.5 if method == "tome" else 0.9, site="encoder", given=given)


def padded_text(encoder):
    mask = torch.ones_like(encoder.inputs["input_ids"])
    mask[1:, mask.shape[1] // 2 :] = 0
    return {"attention_mask": mask}


@pytest.mark.parametrize(
    "kind", ["ViTModel", "YolosModel", "Dinov2Model", "BertModel", "ModernBertModel", "CLIPTextModel"]
)
def test_packed_rows_are_what_they_are_padded(monkeypatch, kind):
    encoder = made(kind)
    text = "input_ids" in encoder.inputs
    method, more = ("tome", padded_text(encoder)) if text else (LEAST, {})
    monkeypatch.setattr(packed, "FILLED", 0.0)
    whole, trace = run(encoder, sieved(encoder, method), **more)
    assert trace.packed == 0
    monkeypatch.setattr(packed, "FILLED", 1.0)
    fewer, told = run(encoder, sieved(encoder, method), **more)
    assert told.packed >= 2
    assert told.layer_tokens == trace.layer_tokens
    for a, b in zip(whole, fewer, strict=True):
        assert torch.allclose(a, b, atol=2e-5)


def test_blocks_are_given_the_tokens_alone(monkeypatch):
    encoder, seen = made("ViTModel"), []
    network = [m for n, m in encoder.model.named_modules() if n.endswith("layernorm_after")]
    handles = [m.register_forward_hook(lambda m, args, out: seen.append(tuple(out.shape[:2]))) for m in network]
    monkeypatch.setattr(packed, "FILLED", 1.0)
    _, trace = run(encoder, ts.sieve(encoder.model, LEAST, keep=0.9, given={"foreground": WORTH}))
    for handle in handles:
        handle.remove()
    counts = trace.stages[-1].reduction.counts
    assert counts[0] != counts[1]
    assert seen == [(1, int(counts.sum()) + 2)] * 4


@pytest.mark.parametrize(
    ("kind", "why"),
    [("ViTModel", "gradients"), ("ViTModel", "eager"), ("T5EncoderModel", "places"), ("ViTModel", "full")],
)
def test_what_packing_would_change_runs_padded(monkeypatch, kind, why):
    monkeypatch.setattr(packed, "FILLED", 0.1 if why == "full" else 1.0)
    encoder = made(kind)
    if why == "eager":
        encoder.model.set_attn_implementation("eager")
    more = padded_text(encoder) if kind == "T5EncoderModel" else {}
    with sieved(encoder, "tome" if more else LEAST) as s, torch.set_grad_enabled(why == "gradients"):
        encoder.model(**{**encoder.inputs, **more})
    assert s.last.packed == 0


def test_rows_are_packed_where_it_was_faster():
    some = torch.arange(100) < torch.tensor([[100], [60]])
    assert packed.Rows(some).pays
    assert not packed.Rows(torch.arange(100) < torch.tensor([[100], [90]])).pays
    x = torch.randn(2, 100, 3)
    rows = packed.Rows(some)
    assert torch.equal(rows.close(x)[0], torch.cat([x[0], x[1, :60]]))
    assert torch.equal(rows.open(rows.close(x)), x * some[..., None])


def test_an_argument_of_unknown_kind_keeps_a_block_padded():
    rows = packed.Rows(torch.arange(4) < torch.tensor([[4], [2]]))
    table = torch.randn(2, 4, 8)
    made = rows.arguments(
        {"position_embeddings": (table, table), "attention_mask": torch.ones(2, 1, 1, 4), "causal": False}
    )
    assert made is not None
    assert made["position_embeddings"][0].shape == (1, 6, 8)
    assert rows.arguments({"bias": torch.randn(7, 7)}) is None


def test_ragged_rows_take_rotary_tables_of_patches_alone():
    encoder = made("DINOv3ViTModel")
    both, _ = run(encoder, sieved(encoder, LEAST))
    for row in range(2):
        inputs = {k: v[row : row + 1] for k, v in encoder.inputs.items()}
        given = {"foreground": WORTH[row : row + 1]}
        with ts.sieve(encoder.model, LEAST, keep=0.9, site="encoder", given=given), torch.no_grad():
            alone = encoder.model(**inputs).last_hidden_state
        assert torch.allclose(alone[0], both[0][row], atol=1e-5)


def test_states_in_the_midst_of_a_block_are_held_as_it_was_entered():
    real = torch.arange(4) < torch.tensor([[4], [2]])
    x, now = torch.randn(2, 4, 3) * real[..., None], packed.Packing()
    held, _ = now.enter(x, real, {})
    assert held.shape == (1, 6, 3)
    fewer = now.close(x[:, :2], None)
    assert fewer.shape == (1, 4, 3)
    assert torch.equal(now.open(fewer), x[:, :2])
    assert torch.equal(now.open(held), x)
    assert torch.equal(now.as_entered(x), held)
    now.leave()
    assert now.open(x) is x
    assert now.close(x, real) is x


def test_a_pass_that_is_over_holds_no_states_of_what_left_and_is_told_when_asked():
    encoder = made("ViTModel")
    with ts.sieve(encoder.model, "random", keep=0.5) as s:
        encoder()
        (site,) = s._sites.sites
        assert sum(states.numel() for _, _, states in site._last.parcels) == 0
        assert site._last._trace is None
        first = s.last
    assert s.last is first
    assert [block for block, _ in first.steps] == [0, 1, 2]
    assert torch.equal(first.steps[-1][1].kept, first.stages[0].reduction.kept)
    assert [r.m for _, r in first.steps] == [int(n) - 1 for n in first.layer_tokens[1:]]
    assert torch.equal(first.places, torch.arange(1, 65).expand(2, -1))
