"""Systems of several stages: their plans, and the mean over the layers that they reach together."""

import itertools

import pytest
import torch

import tokensieve as ts
from tests.models import llava, prompt
from tokensieve.catalog import table
from tokensieve.core import method_registry
from tokensieve.core.plan import plan, stages_of
from tokensieve.core.signals import Signals
from tokensieve.parts import budget
from tokensieve.parts.attention import rows
from tokensieve.planner.drift import drift, tune
from tokensieve.sites.cost import cost
from tokensieve.sites.visual.layer_budgets import solve

SYSTEMS = [
    name
    for name in ts.list_methods()
    if (stages := stages_of(method_registry.get_method(name), 0.5))
    and not any(s.method.restores_dropped for s in stages)  # those: test_focus
]
EXACT = [name for name in SYSTEMS if not method_registry.get_method(name).adaptive]
EARLY = [name for name in SYSTEMS if method_registry.method_class(name).site == "handoff"]
N, LAYERS = 64, 4


@pytest.fixture(scope="module")
def model():
    return llava()


def run(model, plan, images=(1,)):
    with ts.sieve(model, plan) as s, torch.no_grad():
        model(**prompt(images))
    return s.last


def test_the_systems_are_there():
    by_entry = {287: "star", 90: "vscan", 150: "visiondrop", 10: "aim", 66: "vflowopt", 53: "mustdrop", 141: "catp"}
    assert {*by_entry.values(), "pyramiddrop", "sparsevlm"} <= set(SYSTEMS)
    for system, name in {**by_entry, 305: "flowcut"}.items():
        assert name in table.entries(system)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("keep", [40, 0.25, ts.Keep(tokens=24, per="prompt"), ts.Keep(average=0.5)])
def test_a_system_goes_through_json(name, keep, tmp_path):
    made = method_registry.get_method(name)
    whole = plan(name, keep)
    assert whole.stages[0].method == made
    assert len(whole.stages) > 1
    late = [s for s in whole.stages if s.site == "prefill"]
    assert all(isinstance(layer, float) for s in late for layer in s.layers)
    assert [s.layer for s in late] == sorted({s.layer for s in late})
    assert late[-1].keep.steps == 1
    assert {s.keep.per for s in late} == {getattr(keep, "per", "image")}
    whole.save(tmp_path / "plan.json")
    assert ts.Plan.load(tmp_path / "plan.json") == whole


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("keep", [20, 40, 0.5, 0.9, ts.Keep(average=33)])
def test_the_mean_over_the_layers_is_what_was_asked_for(model, name, keep):
    tokens = run(model, plan(name, keep), images=(1, 2)).layer_tokens
    want = keep.average if isinstance(keep, ts.Keep) else keep
    want = want * N if want <= 1 else want
    # The last stage rounds, and stands in front of at most three of the four layers.
    assert abs(sum(tokens) / LAYERS - want) <= 0.5 * 3 / 4
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[-1] < tokens[0]


@pytest.mark.parametrize("name", EXACT)
def test_the_cost_of_a_system_is_what_it_runs_at(model, name):
    whole = plan(name, 30)
    assert cost(model, whole, tokens=N, text=9).mean == sum(run(model, whole).layer_tokens) / LAYERS


@pytest.mark.parametrize("name", EARLY)
def test_one_token_is_one_token_everywhere(model, name):
    assert run(model, plan(name, 1)).layer_tokens == [1.0] * LAYERS


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("keep", [N, N + 9, 1.0])
def test_keeping_all_changes_nothing(model, name, keep):
    trace = run(model, plan(name, keep))
    assert trace.layer_tokens == [N] * LAYERS
    assert all(stage.reduction.is_identity for stage in trace.stages)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_share_of_flops_is_refused(name):
    with pytest.raises(ValueError, match="takes the mean over the layers"):
        plan(name, ts.Keep(flops=0.3))


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_row_does_not_change_another(model, name):
    """Two prompts of different length, one of them left-padded, against each of them alone."""
    inputs = prompt((1, 1))
    with ts.sieve(model, plan(name, 30)), torch.no_grad():
        both = model(**inputs).logits[:, -1]
        for b in range(2):
            real = inputs["attention_mask"][b].bool()
            alone = {k: inputs[k][b : b + 1, real] for k in ("input_ids", "attention_mask")}
            one = model(**alone, pixel_values=inputs["pixel_values"][b : b + 1]).logits[:, -1]
            torch.testing.assert_close(both[b : b + 1], one, rtol=1e-4, atol=1e-4)


def test_pyramiddrop_keeps_the_same_share_each_time():
    """(1 + r + r^2 + r^3) / 4 of the tokens on average, with the paper's r = 0.5."""
    model = llava(layers=8)
    tokens = run(model, plan("pyramiddrop", (1 + 0.5 + 0.25 + 0.125) / 4)).layer_tokens
    assert tokens == [64, 64, 32, 32, 16, 16, 8, 8]


def test_sparsevlm_prunes_where_the_public_code_does():
    """Behind its layers 2, 6 and 15 of 32, counted from 0; in four layers, the first two of these are one."""
    stages = plan("sparsevlm", 200).stages
    assert [stage.layer * 32 for stage in stages] == [3, 7, 16]
    trace = run(llava(layers=32), plan("sparsevlm", 20))
    assert [trace.layer_tokens[i] for i in (2, 6, 15)] == [64, trace.layer_tokens[3], trace.layer_tokens[7]]
    assert len({*trace.layer_tokens}) == 4
    assert [t.stage.layer * 32 for t in run(llava(), plan("sparsevlm", 20)).stages] == [7, 16]


@pytest.mark.parametrize(("keep", "want"), [(8, 8), (1, 1), (0.25, 16), (1.0, 64), (64, 64), (ts.Keep(tokens=27), 27)])
@pytest.mark.parametrize("layers", [4, 8])
def test_sparsevlm_ends_at_what_a_sieve_is_asked_for(keep, want, layers):
    """Each stage keeps the same share of what it meets; a plan speaks of the mean, and a stage alone of itself."""
    model, number = llava(layers=layers), {4: 2, 8: 3}[layers]
    with ts.sieve(model, "sparsevlm", keep=keep) as s, torch.no_grad():
        model(**prompt((1, 1)))
    met = [64.0, *dict.fromkeys(t.reduction.counts.float().mean().item() for t in s.last.stages)]
    assert s.last.layer_tokens[-1] == met[-1] == want
    assert len(s.last.stages) == number
    if len(met) == number + 1:
        assert all(abs(b - a * (want / 64) ** (1 / number)) <= 1 for a, b in itertools.pairwise(met))
    assert cost(model, s.plan, tokens=64).final == want
    with ts.sieve(model, "sparsevlm", keep=keep, layers=2) as s, torch.no_grad():
        model(**prompt((1,)))
    assert s.last.layer_tokens == [64] * 2 + [want] * (layers - 2)


def test_what_a_sieve_is_asked_for_is_the_mean_of_other_systems(model):
    for name in set(SYSTEMS) - {"sparsevlm"}:
        assert ts.sieve(model, name, keep=40).plan == plan(name, 40)
    assert ts.sieve(model, "sparsevlm", keep=ts.Keep(average=40)).plan == plan("sparsevlm", 40)
    assert ts.sieve(model, "sparsevlm", keep=40, positions="compact").plan.stages[0].positions == "compact"


def test_the_end_may_be_asked_for_by_name(model):
    assert run(model, plan("pyramiddrop", ts.Keep(last=8))).layer_tokens == [64, 32, 16, 8]
    assert run(model, plan("pyramiddrop", ts.Keep(last=0.125))).layer_tokens == [64, 32, 16, 8]
    assert run(model, plan("pyramiddrop", ts.Keep(last=1))).layer_tokens == [64, 16, 4, 1]
    with pytest.raises(ValueError, match="takes the mean over the layers"):
        plan("vscan", ts.Keep(last=8))
    with pytest.raises(ValueError, match="speaks of a model"):
        ts.reduce(torch.randn(1, 9, 4), "divprune", ts.Keep(last=8))


def test_the_counts_of_the_public_code_are_three_budgets_of_ours():
    """Of 576 tokens: 66, 30 and 17 that stay as they are, and its clusters beside them."""
    for held, keep, plain in ((576, 82, 66), (82, 32, 30), (32, 18, 17)):
        assert int(budget.recycle(torch.tensor([keep]), torch.tensor([held]), 0.3, 10)[0]) == plain


def test_visiondrop_falls_as_the_public_code():
    """48, 35, 26 and 19 tokens for a mean of 32, of 576; rounding may move one."""
    stages = plan("visiondrop", 32).stages
    now, before, met = 576, [], []
    for stage in stages:
        now = solve(stage.keep, before, 8, now, 576, 20, None)
        before += [now] * 2
        met.append(now)
    assert all(abs(a - b) <= 1 for a, b in zip(met, [48, 35, 26, 19], strict=True))


def test_visiondrop_asks_cls_in_front_of_the_language_model_and_visual_tokens_inside(model):
    whole = [s.method for s in plan("visiondrop", 24).stages]
    assert len(set(whole)) == 1
    inputs, seen = prompt((1,)), []

    class Watched(type(whole[0])):
        def reduce(self, s, keep):
            seen.append((s.has("cls_attention"), s.has("received_attention"), s.has("text")))
            return super().reduce(s, keep)

    made = Watched()
    with (
        ts.sieve(model, ts.Plan([ts.Stage(made, 30), ts.Stage(made, 20, site="prefill", layers=(2,))])),
        torch.no_grad(),
    ):
        model(**inputs)
    assert seen == [(True, False, False), (False, True, False)]


def test_stages_that_meet_in_a_shallow_model_are_one(model):
    """aim-l at 0.5, 0.625 and 0.75 of four layers: layers 2, 2 and 3."""
    trace = run(model, plan("aim", 24))
    assert [t.stage.layer for t in trace.stages if t.stage.site == "prefill"] == [0.625, 0.75]


@pytest.mark.parametrize(("mean", "now", "steps"), [(30, 64, 3), (1.5, 64, 3), (64, 64, 2), (10, 11, 4)])
def test_stages_that_share_a_mean_leave_room_for_those_behind(mean, now, steps):
    """Each step solved in turn: counts fall, hit the mean to rounding, and never below one token."""
    depth, before = steps * 5, []
    for i in range(steps):
        m = solve(ts.Keep(average=mean, steps=steps - i), before, depth, now, 64, 9, None)
        assert m >= 1
        now = min(m, now)
        before += [now] * 5
    assert abs(sum(before) / depth - mean) <= 0.5


def test_a_mean_below_the_first_layers_is_refused(model):
    with pytest.raises(ValueError, match=r"the least is 16\.75 tokens"):
        run(model, plan("pyramiddrop", 10))


@pytest.mark.parametrize(
    ("keep", "want"),
    [
        (10, 15),
        (1, 1),
        (0.5, 0.75),
        (0.9, 1.0),
        (ts.Keep(tokens=5), ts.Keep(tokens=8)),
        (ts.Keep(average=12.0, per="prompt"), ts.Keep(tokens=18, per="prompt")),
        (ts.Keep(average=0.5), ts.Keep(share=0.75)),
    ],
)
def test_times(keep, want):
    assert budget.times(keep, 1.5) == want


def test_steps_belong_to_an_average():
    with pytest.raises(ValueError, match="steps=2 goes with average"):
        ts.Keep(tokens=4, steps=2)
    with pytest.raises(ValueError, match="steps=0"):
        ts.Keep(average=4, steps=0)


# ---- what a language-model layer tells


class Seen(ts.Method):
    """Remembers what it was given to score."""

    name = "seen"
    site = "prefill"
    sites = ("prefill",)

    def __init__(self, *names):
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "given", [])

    @property
    def needs(self):
        from tokensieve.core.needs import Need

        return tuple(Need(n) for n in self.names)

    def score(self, s: Signals):
        self.given.append(s)


@pytest.mark.parametrize("images", [(1,), (2, 1)])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_attention_among_visual_tokens(attn, images):
    """Against the whole attention map of the layer in front of the stage, with left padding."""
    model, inputs = llava("eager"), prompt(images)
    with torch.no_grad():
        a = model(**inputs, output_attentions=True).attentions[1]
    model.set_attn_implementation(attn)
    seen = Seen("received_attention", "pagerank")
    with ts.sieve(model, ts.Stage(seen, N, layers=(2,)), scores=True) as s, torch.no_grad():
        model(**inputs)
    (given,) = seen.given
    visual = inputs["input_ids"] == 5
    for image, row in enumerate(s.last.rows):
        place = visual[row].nonzero()[:, 0].view(-1, N)[sum(r == row for r in s.last.rows[:image])]
        want = a[row][:, place][:, :, place].mean(1)
        torch.testing.assert_close(given.received_attention[image], want)
        sharp = sharpened(model, inputs, row)
        torch.testing.assert_close(given.pagerank[image], sharp[:, place], rtol=1e-4, atol=1e-6)


def sharpened(model, inputs, row):
    """PageRank in five steps over softmax(logits / 0.1) of layer 1, from the layer's own queries and keys."""
    calls = []
    from tokensieve.sites.model import taps

    undo = taps.attach(model.model.language_model.layers[1].self_attn, observe=calls.append)
    with torch.no_grad():
        model(**inputs)
    undo()
    (call,) = calls
    q, k = call.query[row].double(), call.key[row].double()
    k = k.repeat_interleave(q.shape[0] // k.shape[0], 0)
    logits = q @ k.transpose(1, 2) * call.scale
    real = inputs["attention_mask"][row].bool()
    allowed = torch.ones(len(real), len(real)).tril().bool() & real
    m = (logits / 0.1).masked_fill(~allowed, -1e300).softmax(-1)
    held = (real / real.sum()).double().expand(q.shape[0], 1, -1)
    for _ in range(5):
        held = held @ m
    return held[:, 0].float()


@pytest.mark.parametrize("held", [0, 1 << 24])
def test_pagerank_in_blocks(held, monkeypatch):
    monkeypatch.setattr(rows, "HELD", held)
    m = torch.randn(2, 3, 50, 50, generator=torch.Generator().manual_seed(0)).softmax(-1)
    start = torch.rand(2, 50, generator=torch.Generator().manual_seed(1))
    got = rows.spread(lambda i, j: m[:, :, i:j], start, 4, block=7)
    torch.testing.assert_close(got, (start[:, None, None] @ m @ m @ m @ m)[:, :, 0])


def test_keys_of_mustdrop_survive_every_stage(model):
    """The tokens protected at the last stage are those of highest CLS attention in the image, and they are all there."""
    inputs = prompt((1, 1))
    with ts.sieve(model, "fastervlm", keep=63, scores=True) as s, torch.no_grad():
        model(**inputs)
    cls = s.last.stages[0].score
    with ts.sieve(model, plan("mustdrop", 24)) as s, torch.no_grad():
        model(**inputs)
    last = s.last.stages[-1].reduction
    count = int(0.25 * last.m + 0.5)
    assert count > 1
    for b in range(2):
        assert set(cls[b].topk(count).indices.tolist()) <= set(last.kept[b].tolist())


# ---- the drift of the answering state


def test_nothing_drifts_where_all_is_kept(model):
    assert drift(model, plan("vflowopt", 1.0), [prompt((1, 1))]) == pytest.approx(0, abs=1e-12)


def test_fewer_tokens_drift_further(model):
    far, near = (drift(model, plan("vflowopt", keep), [prompt((1, 1))]) for keep in (8, 60))
    assert far > near > 0


def test_tuned_options_drift_no_further_than_the_defaults(model):
    prompts = [prompt((1, 1)), prompt((2, 1), seed=1)]
    spans = {"entropy": (0.0, 0.5, 1.0, 4.0), "threshold": (0.0, 1.0, 2.0), "cell": (2, 4), "first": (1.2, 1.5, 2.0)}
    before = drift(model, plan("vflowopt", 12), prompts)
    best, least = tune(model, "vflowopt", 12, prompts, spans, trials=6)
    assert least == drift(model, best, prompts) < before
    assert tune(model, "vflowopt", 12, prompts, spans, trials=6) == (best, least)


def test_the_entropy_of_patches_reaches_the_method(model):
    """A picture that is flat but for one corner: the corner's patches are the ones that stay."""
    inputs = prompt((1,))
    inputs["pixel_values"][:, :, 8:] = inputs["pixel_values"][:, :, :, 8:] = 0.5
    with ts.sieve(model, "vflowopt", keep=8, site="handoff", entropy=1e6, cell=8) as s, torch.no_grad():
        model(**inputs)
    reduction = s.last.stages[0].reduction
    assert {0, 1, 8, 9} <= set(reduction.kept[0].tolist())


def test_what_the_first_stage_ranked_by_reaches_the_later_ones(model):
    """Two stages in front of the language model, images of several rows; the last ranking before it goes on."""
    inputs = prompt((2, 1))
    seen = Seen("ranking")
    stages = [ts.stage("uniform", keep=32), ts.stage("fastervlm", keep=20), ts.Stage(seen, 20, layers=(2,))]
    with ts.sieve(model, ts.Plan(stages), scores=True) as s, torch.no_grad():
        model(**inputs)
    (given,) = seen.given
    first, second = (t.reduction.kept for t in s.last.stages[:2])
    for image in range(3):
        met = dict(zip(first[image].tolist(), s.last.stages[1].score[image].tolist(), strict=True))
        assert given.ranking[image].tolist() == pytest.approx([met[i] for i in second[image].tolist()])


def test_a_later_stage_alone_goes_by_the_text(model):
    with ts.sieve(model, "vflowopt-l", keep=9) as s, torch.no_grad():
        model(**prompt((1,)))
    with ts.sieve(model, "fastv", keep=9) as other, torch.no_grad():
        model(**prompt((1,)))
    assert torch.equal(s.last.stages[0].reduction.kept, other.last.stages[0].reduction.kept)


def test_each_image_is_paired_with_the_text_behind_it():
    """Prompts of two and one images: two tokens follow each image, six more the last."""
    model, inputs = llava(), prompt((2, 1))
    seen = Seen("text", "paired")
    object.__setattr__(seen, "sites", ("handoff",))
    with ts.sieve(model, ts.Stage(seen, N, site="handoff"), scores=True) as s, torch.no_grad():
        model(**inputs)
    (given,) = seen.given
    embed = model.get_input_embeddings()(inputs["input_ids"])
    ids = inputs["input_ids"]
    assert s.last.rows == [0, 0, 1]
    for image, (row, nth) in enumerate([(0, 0), (0, 1), (1, 0)]):
        ends = (ids[row] == 5).nonzero()[:, 0].view(-1, N)
        last = int(ends[nth, -1])
        stop = int(ends[nth + 1, 0]) if nth + 1 < len(ends) else ids.shape[1]
        torch.testing.assert_close(
            given.text[image][given.paired[image] & given.text_mask[image]], embed[row, last + 1 : stop]
        )
