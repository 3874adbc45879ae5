"""Tokens in an encoder that go past blocks, exit, never enter, or come back as mixes of clusters."""

import pytest
import torch
from transformers import T5Config, T5EncoderModel, ViTConfig, ViTModel

import tokensieve as ts
from tests.models import llava, prompt

SIZE = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 64}
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
WORTH = torch.rand(2, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return ViTModel(ViTConfig(**SIZE, image_size=32, patch_size=4)).eval()


def run(model, **more):
    with torch.no_grad():
        return model(pixel_values=PIXELS, output_hidden_states=True, **more)


def blocks(model):
    return model.encoder.layer if hasattr(model, "encoder") else model.layers


def by_hand(model, chosen, leave, back):
    """The last block's states where the tokens outside ``chosen`` go past the blocks between."""
    with torch.no_grad():
        x = model.embeddings(PIXELS)
        rows = torch.cat([torch.ones(2, 1, dtype=torch.bool), chosen], 1)
        for i, block in enumerate(blocks(model)):
            if leave < i < back:
                x = x.clone()
                x[rows] = block(x[rows].view(2, -1, 32)).flatten(0, 1)
            else:
                x = block(x)
        return model.layernorm(x)


def test_tokens_go_past_blocks_and_come_back_to_their_places(vit):
    with ts.sieve(vit, "bavit", keep=32, site="encoder", layers=(1,), back=4, given={"foreground": WORTH}) as s:
        out = run(vit)
    chosen = torch.zeros(2, 64, dtype=torch.bool).scatter_(1, WORTH.topk(32).indices, True)
    assert torch.allclose(out.last_hidden_state, by_hand(vit, chosen, 1, 4), atol=1e-5)
    assert s.last.layer_tokens == [65.0, 65.0, 33.0, 33.0, 65.0, 65.0]
    assert [h.shape[1] for h in out.hidden_states] == [65] * 7
    assert torch.equal(s.last.left[:, 1:] == 1, ~chosen)


def test_tokens_never_enter(vit):
    with ts.sieve(vit, "bavit", keep=16, given={"foreground": WORTH}) as s:
        out = run(vit)
    chosen = torch.zeros(2, 64, dtype=torch.bool).scatter_(1, WORTH.topk(16).indices, True)
    whole = by_hand(vit, chosen, -1, 6)
    stays = torch.cat([torch.ones(2, 1, dtype=torch.bool), chosen], 1)
    assert torch.allclose(out.last_hidden_state[stays], whole[stays], atol=1e-5)
    assert s.last.layer_tokens == [17.0] * 6
    embedded = vit.layernorm(vit.embeddings(PIXELS))
    assert torch.allclose(out.last_hidden_state[~stays], embedded[~stays], atol=1e-5)


def test_what_is_given_may_be_a_function_of_the_states_and_the_block(vit):
    asked = []

    def worth(signals, block):
        asked.append((block, signals.n))
        return signals.features.norm(dim=2)

    with ts.sieve(vit, "bavit", keep=16, site="encoder", layers=(0, 2), given={"foreground": worth}):
        run(vit)
    assert asked == [(0, 64), (2, 40)]


def test_a_given_tensor_follows_the_tokens_that_are_left(vit):
    with ts.sieve(vit, "bavit", keep=16, site="encoder", layers=(0, 2), given={"foreground": WORTH[0]}) as s:
        run(vit)
    assert s.last.stages[0].reduction.kept[1].tolist() == sorted(WORTH[0].topk(16).indices.tolist())


@pytest.mark.parametrize("name", ["skipvit", "expedit", "bat", "tome"])
def test_methods_leave_and_return_by_their_papers_depth(vit, name):
    with ts.sieve(vit, name, keep=0.5) as s:
        run(vit)
    tokens = {
        "skipvit": [65, 65, 65, 33, 33, 65],
        "expedit": [65, 65, 65, 33, 33, 33],
        "bat": [65, 59, 52, 46, 39, 33],
        "tome": [65, 60, 54, 49, 44, 38],
    }
    assert s.last.layer_tokens == tokens[name]


@pytest.mark.parametrize("where", [{"back": 4}, {"site": "patch"}])
def test_keeping_all_changes_nothing(vit, where):
    plain = run(vit)
    given = {"given": {"foreground": WORTH}} if "site" in where else {}
    with ts.sieve(vit, "bavit" if given else "skipvit", keep=1.0, **where, **given):
        kept = run(vit)
    assert torch.equal(plain.last_hidden_state, kept.last_hidden_state)


def test_cost_counts_the_blocks_that_are_gone_past(vit):
    def share(**where):
        return ts.cost(vit, ts.Plan(ts.stage("fastervlm", 0.5, site="encoder", **where)), tokens=64).share

    past = share(layers=(1,), back=4, between=False)
    ever = share(layers=(1,), between=False)
    assert 1 - past == pytest.approx((1 - ever) / 2)
    patch = ts.cost(vit, ts.Plan(ts.stage("bavit", 0.5)), tokens=64)
    assert patch.share < ever


def test_gradients_reach_what_goes_past(vit):
    with ts.sieve(vit, "skipvit", keep=0.5) as s:
        out = vit(pixel_values=PIXELS.clone().requires_grad_()).last_hidden_state
        states = vit.embeddings.patch_embeddings.projection.weight
        gone = s.last.left[:, 1:] < 6
        out[:, 1:][gone].sum().backward()
    assert states.grad.abs().sum() > 0
    vit.zero_grad()


def test_a_plan_with_a_way_back_is_saved_and_loaded(vit, tmp_path):
    plan = ts.plan("tome", 0.5, site="encoder", back=4)
    plan.save(tmp_path / "plan.json")
    again = ts.Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert again.stages[0].back == 4


def test_tokens_exit_where_a_head_is_sure(vit):
    torch.manual_seed(4)
    head = torch.nn.Linear(32, 5)

    def classes(signals, block):
        return (head(signals.features) * 60).softmax(2).detach()

    with ts.sieve(vit, "dtop", keep=63, layers=(1, 3), context=1, given={"classes": classes}) as s:
        out = run(vit)
    left = s.last.left[:, 1:]
    assert set(left.unique().tolist()) == {1, 3, 6}
    with torch.no_grad():
        behind = (head(out.hidden_states[2][:, 1:]) * 60).softmax(2)
    likely, label = behind.max(2)
    assert bool((likely[left == 1] >= 0.95).all())
    for row in range(2):  # the surest of each class stays
        for c in label[row].unique():
            mine = (label[row] == c).nonzero()[:, 0]
            assert left[row, mine[likely[row, mine].argmax()]] > 1


def test_clusters_come_back_as_mixes(vit):
    with ts.sieve(vit, "expedit", keep=16, layers=(5,), between=False) as s:
        out = run(vit)
    reduction = s.last.stages[0].reduction
    assert reduction.expansion.k == 16
    assert torch.allclose(reduction.expansion.share.sum(2), torch.ones(2, 64), atol=1e-6)
    assert len(out.last_hidden_state[0, 1:].unique(dim=0)) == 64  # copies would be 16


def test_patches_never_enter_in_front_of_a_language_model():
    model = llava()
    given = prompt()
    with torch.no_grad():
        plain = model(**given)
        with ts.sieve(model, "bavit", keep=8, given={"foreground": lambda s, block: s.features.norm(dim=2)}) as s:
            fewer = model(**given)
    assert fewer.logits.shape == plain.logits.shape
    assert s.last.stages[0].reduction.m == 8


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"layers": (3,), "back": 4}, "back=4: tokens that leave in blocks"),
        ({"back": 2, "readout": "merged"}, "none is merged that could be read"),
        ({"back": 9}, "has layers 0 to 5"),
        ({"given": {"prior": WORTH}}, "what these methods read that can be given is cls_attention"),
        ({"given": {"nonsense": WORTH}}, "what these methods read"),
    ],
)
def test_what_makes_no_sense_is_refused(vit, where, message):
    with pytest.raises(ValueError, match=message):
        ts.sieve(vit, "skipvit", keep=0.5, **where)


def test_a_missing_or_wrong_signal_names_the_way(vit):
    with pytest.raises(ValueError, match=r"bavit needs foreground.*given=\{'foreground'"):
        ts.sieve(vit, "bavit", keep=0.5)
    with (
        ts.sieve(vit, "bavit", keep=0.5, given={"foreground": WORTH[:, :9]}),
        pytest.raises(ValueError, match="needs batch 2 and 64 tokens"),
    ):
        run(vit)
    with (
        ts.sieve(vit, "bavit", keep=0.5, given={"foreground": lambda s, block: 3}),
        pytest.raises(ValueError, match="must be a tensor"),
    ):
        run(vit)
    with pytest.raises(ValueError, match="layers at site='patch'"):
        ts.stage("bavit", 0.5, layers=(2,))
    with pytest.raises(ValueError, match="r at site='patch'"):
        ts.stage("bavit", ts.Keep(r=3))


def test_blocks_that_hand_on_more_than_states_have_no_way_back():
    torch.manual_seed(0)
    config = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=4, num_heads=4, vocab_size=50)
    model = T5EncoderModel(config).eval()
    ids = torch.randint(2, 50, (1, 20))
    with ts.sieve(model, "divprune", keep=0.5, back=3), pytest.raises(ValueError, match="hand on more than states"):
        model(input_ids=ids)


X = torch.randn(2, 36, 8, generator=torch.Generator().manual_seed(6))
ATTENTION = torch.rand(2, 36, generator=torch.Generator().manual_seed(7))


def test_one_cluster_and_no_matching_is_one_fused_token():
    r = ts.reduce(X, ts.get_method("bat", clusters=1 / 9, matched=0.0), 9, cls_attention=ATTENTION, keys=X)
    y = r.apply(X)
    for row in range(2):
        top = ATTENTION[row].topk(8).indices
        rest = torch.ones(36, dtype=torch.bool).index_fill(0, top, False)
        fused = (X[row][rest] * ATTENTION[row][rest, None]).sum(0) / ATTENTION[row][rest].sum()
        slot = int(r.owner[row][rest].unique())
        assert torch.allclose(y[row, slot], fused, atol=1e-5)
        assert set(top.tolist()) < set(r.kept[row].tolist())


def test_alike_attentive_tokens_are_matched_and_the_others_clustered():
    x = X.clone()
    first = ATTENTION[0].topk(8).indices.sort().values
    x[0, first[1]] = x[0, first[0]]  # neighbours in the alternation, and equal
    r = ts.reduce(x, ts.get_method("bat", clusters=2 / 9, matched=1 / 7), 9, cls_attention=ATTENTION, keys=x)
    assert r.owner[0, first[0]] == r.owner[0, first[1]]
    assert bool((r.owner >= 0).all())


def test_background_never_enters_however_much_room_there_is():
    likely = torch.zeros(2, 36).index_fill(1, torch.tensor([3, 9]), 0.9)
    likely[1] *= 0.1
    r = ts.reduce(X, ts.get_method("bavit", least=0.5), 30, foreground=likely)
    assert r.counts.tolist() == [2, 1]
    assert r.kept[0].tolist() == [3, 9]


def test_places_and_detections_share_the_budget():
    prior, objects = torch.arange(36.0).flip(0).expand(2, -1), torch.arange(36.0).expand(2, -1)
    r = ts.reduce(X, ts.get_method("atf", static=0.25), 8, prior=prior, foreground=objects)
    assert r.kept[0].tolist() == [0, 1, 30, 31, 32, 33, 34, 35]
