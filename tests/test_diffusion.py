"""Sieves on denoisers of diffusers: the contract of the site, and what it refuses."""

import copy
import json
import re
import threading
from itertools import pairwise

import pytest
import torch

import tokensieve as ts
from tokensieve.sites.model import guards

pytest.importorskip("diffusers")
from diffusers import AutoencoderKL, DDIMScheduler, HeunDiscreteScheduler, PNDMScheduler

from tokensieve.bench.compat import denoiser_inputs, denoisers
from tokensieve.testbed.diffusion import pipeline

METHODS = ("tome", "dart", "divprune", "random", "uniform", "pool")
NAMES = (
    "UNet2DConditionModel", "DiTTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel",
    "FluxTransformer2DModel",
)  # fmt: skip


class Denoiser:
    def __init__(self, name):
        self.tiny, self.model = denoisers.TINY[name], denoisers.build(name)
        self.given = self.tiny.call()
        self.plain = self()

    @torch.no_grad()
    def __call__(self, row=None, **changed):
        given = {**self.given, **changed}
        return self.model(**(given if row is None else self.tiny.alone(given, row)), return_dict=False)[0]


@pytest.fixture(scope="module")
def models():
    return {name: Denoiser(name) for name in NAMES}


def pipe(scheduler=DDIMScheduler, seed=0):
    """With random weights, none of them zero."""
    model = pipeline.transformer(seed)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if not bool(p.any()):
                p.copy_(0.1 * torch.randn(p.shape, generator=g))
    made = pipeline.ScenePipeline(model.eval(), scheduler.from_config(pipeline.scheduler().config))
    made.set_progress_bar_config(disable=True)
    return made


def images(made, **more):
    told = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "pt", **more}
    return made([0, 3], generator=torch.Generator().manual_seed(0), **told).images


def state(model):
    return {
        name: (sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()
    }


# ---- the contract -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_keeping_all_is_the_model_and_nothing_is_left_behind(models, name):
    of, before = models[name], state(models[name].model)
    with ts.sieve(of.model, "tome", keep=1.0) as s:
        assert torch.equal(of(), of.plain)
        assert all(stage.reduction.is_identity for stage in s.last.stages)
    with ts.sieve(of.model, "tome", keep=0.5):
        assert not torch.equal(of(), of.plain)
    assert state(of.model) == before
    assert torch.equal(of(), of.plain)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_half_of_the_tokens_enter_attention(models, name, method):
    of = models[name]
    with ts.sieve(of.model, method, keep=0.5) as s:
        got = of()
        assert torch.equal(of(), got)
    assert got.shape == of.plain.shape
    assert bool(got.isfinite().all())
    assert len(s.last.modules) == len(s.last.stages) >= 3
    for stage, tokens in zip(s.last.stages, s.last.layer_tokens, strict=True):
        assert tokens == stage.reduction.m == stage.reduction.n // 2
        assert stage.grid[0] * stage.grid[1] == stage.reduction.n
        assert bool((stage.reduction.owner >= 0).all())  # every token has an answer


@pytest.mark.parametrize("name", NAMES)
def test_what_the_modules_get_is_that_short(models, name):
    """Queries and keys, counted where they are made."""
    of, seen = models[name], []
    with ts.sieve(of.model, "uniform", keep=0.25) as s:
        of()
        modules = [of.model.get_submodule(m).to_q for m in s.last.modules]
        hooks = [m.register_forward_hook(lambda m, a, out: seen.append(out.shape[1])) for m in modules]
        of()
    for hook in hooks:
        hook.remove()
    extra = denoiser_inputs.TEXT if name.startswith("Flux") else 0
    assert set(seen) <= {n + e for n in (16, 4) for e in (0, extra)}
    rows = (
        denoiser_inputs.ROWS if name.startswith("Flux") else 1
    )  # one table of angles for rows that keep the same tokens
    assert len(seen) in (len(s.last.modules), rows * len(s.last.modules))


def close(a, b):
    return float((a - b).abs().max())


@pytest.mark.parametrize("method", ["tome", "divprune", "dart"])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_alone_is_what_it_is_in_a_batch(models, name, method):
    of = models[name]
    noise = close(torch.cat([of(i) for i in range(2)]), of.plain)
    with ts.sieve(of.model, method, keep=0.5):
        assert close(torch.cat([of(i) for i in range(2)]), of()) <= max(10 * noise, 2e-6)


def test_choices_that_flip_were_ties_to_rounding(models):
    """Of 100 seeds, each a batch of two; in the first a flat image, whose tokens differ by their places alone."""
    of, flips, noise = models["DiTTransformer2DModel"], [], 0.0
    entering = []
    hook = of.model.transformer_blocks[0].attn1.register_forward_pre_hook(
        lambda m, args, kwargs: entering.append(args[0]), with_kwargs=True
    )
    for seed in range(100):
        x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) * (seed > 0)
        noise = max(noise, close(of(0, hidden_states=x), of(hidden_states=x)[:1]))
        entering.clear()
        with ts.sieve(of.model, "tome", keep=0.5, layers=0, shared=False) as s:
            both = of(hidden_states=x)
            batch = s.last.stages[0].reduction
            alone = of(0, hidden_states=x)
            single = s.last.stages[0].reduction
        if torch.equal(single.owner[0], batch.owner[0]):
            assert close(alone, both[:1]) <= 10 * noise
        else:
            flips.append(seed)
            assert apart(entering[0][0], batch.kept[0][batch.owner[0]], single.kept[0][single.owner[0]]) < 1e-5
    hook.remove()
    assert flips in ([], [0])  # counted: of those that are not flat, none


def apart(x, one, other):
    """By how much the similarities differ at which two choices came apart: of each token that joins another one, or leaves in one
    of them alone and might have stayed for the last that left in the other."""
    unit = torch.nn.functional.normalize(x, dim=1)
    place = torch.arange(len(x))
    like = [(unit * unit[onto]).sum(1) for onto in (one, other)]
    cut = [value[onto != place].min() for value, onto in zip(like, (one, other), strict=True)]
    moved = (one != other) & (one != place) & (other != place)
    gaps = [(like[0] - like[1])[moved].abs()]
    for i, (a, b) in enumerate(((one, other), (other, one))):
        left = (a != place) & (b == place)
        gaps.append((like[i] - cut[1 - i])[left].abs())
    return float(torch.cat(gaps).max())


def test_of_equal_tokens_the_earlier_goes_first():
    """Every token is the same: the first of those that are no destination leave, and join the first destination."""
    x = torch.ones(1, 16, 8)
    r = ts.reduce(x, ts.get_method("tome", cell=2), keep=10, grid=(4, 4))
    assert r.kept.tolist() == [[0, 2, 8, 9, 10, 11, 12, 13, 14, 15]]
    assert r.owner[0, [1, 3, 4, 5, 6, 7]].tolist() == [0] * 6


def test_one_destination_a_cell_stays_and_the_rest_join_the_most_similar():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 36, 8, generator=g)
    r = ts.reduce(x, ts.get_method("tome", cell=3), keep=4, grid=(6, 6))
    heads = [0, 3, 18, 21]
    assert r.kept.tolist() == [heads] * 2
    like = torch.nn.functional.cosine_similarity(x[:, :, None], x[:, None, heads], dim=-1)
    like[:, heads] = 0
    rest = [i for i in range(36) if i not in heads]
    assert torch.equal(r.owner[:, rest], like.argmax(2)[:, rest])
    torch.testing.assert_close(r.apply(x)[0, 0], x[0, r.owner[0] == 0].mean(0))


def test_halves_for_guidance_keep_the_same_unless_they_are_told_not_to(models):
    of = models["DiTTransformer2DModel"]
    x = of.given["hidden_states"][:1].repeat(2, 1, 1, 1)
    kept = {}
    for shared in (True, False):
        with ts.sieve(of.model, "divprune", keep=0.5, shared=shared) as s:
            of(hidden_states=x)
        kept[shared] = [torch.equal(*stage.reduction.kept) for stage in s.last.stages]
    assert all(kept[True])
    assert not all(kept[False])


def test_gradients_flow(models):
    of = models["DiTTransformer2DModel"]
    x = of.given["hidden_states"].clone().requires_grad_()
    with ts.sieve(of.model, "tome", keep=0.5):
        of.model(**{**of.given, "hidden_states": x}).sample.square().sum().backward()
    assert bool(x.grad.isfinite().all())
    assert float(x.grad.abs().sum()) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_what_it_is(dtype):
    model = denoisers.build("DiTTransformer2DModel").to(dtype)
    given = denoisers.TINY["DiTTransformer2DModel"].call()
    given["hidden_states"] = given["hidden_states"].to(dtype)
    with torch.no_grad(), ts.sieve(model, "tome", keep=0.5):
        out = model(**given).sample
    assert out.dtype == dtype
    assert bool(out.isfinite().all())


# ---- in a pipeline ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [DDIMScheduler, HeunDiscreteScheduler, PNDMScheduler])
def test_a_run_acts_in_its_steps_and_is_repeatable(scheduler):
    made, seen = pipe(scheduler), []
    plain = images(made)

    def keep(progress):
        seen.append(progress)
        return 1.0 - progress / 2

    with ts.sieve(made, "tome", keep=keep, steps=(0.2, 0.9)) as s:
        first = images(made)
        told, seen[:] = list(seen), []
        assert torch.equal(images(made), first)
        assert told == seen == sorted(seen)
        assert 0.2 <= seen[0] <= seen[-1] <= 0.9
        assert s.last.layer_tokens[0] < 64
    assert not torch.equal(first, plain)
    assert torch.equal(images(made), plain)


def test_progress_is_told_by_entries_of_the_schedule():
    made, seen = pipe(), []
    with ts.sieve(made, "uniform", keep=lambda p: seen.append(round(p, 6)) or 0.5):
        images(made, num_inference_steps=5)
        assert seen == [0, 0.25, 0.5, 0.75, 1]
        seen.clear()
        images(made, num_inference_steps=1)
        assert seen == [0]


def test_a_callback_that_raises_leaves_nothing():
    made = pipe()

    def stop(pipe, step, time, held):
        if step == 1:
            raise KeyError("enough")

    with ts.sieve(made, "tome", keep=0.5, steps=(0.5, 1.0)):
        right = images(made)
        with pytest.raises(KeyError):
            images(made, callback_on_step_end=stop)
        assert torch.equal(images(made), right)


@pytest.mark.parametrize("cached", [False, True])
def test_tokens_leave_the_stream_and_come_back(cached):
    made = pipe()
    plain, lengths = images(made), []
    blocks = made.transformer.transformer_blocks
    with ts.sieve(made, "divprune", keep=0.25, form="stream", cached=cached, layers=2):
        hooks = [b.register_forward_hook(lambda m, a, out: lengths.append(out.shape[1])) for b in blocks]
        got = images(made)
        [hook.remove() for hook in hooks]
        assert torch.equal(images(made), got)
    # The first step of a run has nothing to come back with, where that is what was cached.
    full, short = [64] * 6, [64] * 2 + [16] * 3 + [64]
    assert lengths == (full + short * 3 if cached else short * 4)
    assert not torch.equal(got, plain)


def test_cached_tokens_come_back_with_what_they_had_behind_the_last_block():
    made = pipe()
    out, last = [], made.transformer.transformer_blocks[-1]
    with ts.sieve(made, "uniform", keep=0.5, form="stream", cached=True) as s:
        hook = made.transformer.norm_out.register_forward_pre_hook(lambda m, a: out.append(a[0]))
        images(made)
        hook.remove()
    gone = torch.ones(64, dtype=torch.bool).scatter(0, s.last.stages[0].reduction.kept[0], False)
    for before, after in pairwise(out):
        assert torch.equal(before[:, gone], after[:, gone])
        assert not torch.equal(before[:, ~gone], after[:, ~gone])
    assert last is made.transformer.transformer_blocks[-1]


def test_pictures_of_two_sizes_in_one_run(models):
    of = models["UNet2DConditionModel"]
    small, large = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 16, 8)
    with ts.sieve(of.model, "tome", keep=0.5) as s:
        first = of(sample=small)
        of(sample=large)
        assert s.last.stages[0].grid == (16, 8)
        assert torch.equal(of(sample=small), first)


def test_two_pipelines_share_nothing():
    a, b = pipe(), pipe()
    plain = images(b)
    with ts.sieve(a, "tome", keep=0.5, steps=(0.5, 1.0)):
        under = images(a)
        assert torch.equal(images(b), plain)
        with ts.sieve(b, "uniform", keep=0.25):
            images(b, num_inference_steps=7)
            assert torch.equal(images(a), under)


def test_lora_works_under_a_sieve(models):
    peft = pytest.importorskip("peft")
    model = denoisers.build("UNet2DConditionModel")
    of = models["UNet2DConditionModel"]
    model.add_adapter(peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    with torch.no_grad():
        adapted = model(**of.given).sample
        with ts.sieve(model, "tome", keep=0.5) as s:
            sieved = model(**of.given).sample
            assert s.last.layer_tokens[0] == 32
        assert torch.equal(model(**of.given).sample, adapted)
        assert not torch.equal(sieved, adapted)
        model.disable_adapters()
        assert torch.equal(model(**of.given).sample, of.plain)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_compiled_denoiser_answers_as_the_plain_one(order):
    model = denoisers.build("DiTTransformer2DModel")
    given = denoisers.TINY["DiTTransformer2DModel"].call()
    with torch.no_grad():
        with ts.sieve(model, "tome", keep=0.5):
            expected = model(**given).sample
        plain = model(**given).sample
        torch.compiler.reset()
        compiled = torch.compile(model, backend="eager")
        if order == "before":
            torch.testing.assert_close(compiled(**given).sample, plain)
        with ts.sieve(compiled, "tome", keep=0.5) as s:
            torch.testing.assert_close(compiled(**given).sample, expected)
            assert s.last.layer_tokens == [32.0] * 3
        torch.testing.assert_close(compiled(**given).sample, plain)


def test_offloading_asks_for_a_device():
    """On a CPU diffusers refuses it; with a GPU it is to work under a sieve."""
    made = pipe()
    with ts.sieve(made, "tome", keep=0.5):
        if torch.cuda.is_available():
            made.enable_model_cpu_offload()
            assert bool(images(made).isfinite().all())
        else:
            with pytest.raises(RuntimeError, match="accelerator"):
                made.enable_model_cpu_offload()


def test_a_plan_is_saved_and_loaded(tmp_path):
    plan = ts.Plan(ts.stage("tome", 0.5, site="diffusion", steps=(0.2, 1.0), shared=False))
    plan.save(tmp_path / "plan.json")
    assert ts.Plan.load(tmp_path / "plan.json") == plan
    assert json.loads((tmp_path / "plan.json").read_text())["stages"][0]["denoising"]["steps"] == [0.2, 1.0]
    assert plan.stages[0].method.cell == 2
    with pytest.raises(ValueError, match="which no file can hold"):
        ts.Plan(ts.stage("tome", lambda p: 0.5, site="diffusion")).save(tmp_path / "other.json")


# ---- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"keep": 0.0}, "keep=0.0; it must be an int of at least 1"),
        ({"keep": 1.5}, "keep=1.5; it must be an int of at least 1"),
        ({"keep": 0.5, "steps": (0.5, 0.2)}, r"steps=\(0.5, 0.2\); it must be a pair"),
        ({"keep": 0.5, "steps": 3}, "steps=3; it must be a pair"),
        ({"keep": 0.5, "form": "mlp"}, "form='mlp'; it must be one of attention, stream"),
        ({"keep": 0.5, "cached": True}, "only in form='stream'"),
        ({"keep": 0.5, "layers": 9}, "there are 6 modules of self-attention, 0 to 5"),
        ({"keep": 0.5, "layers": (1, 2), "form": "stream"}, "tokens leave in front of one block"),
        ({"keep": 0.5, "positions": "compact"}, "at site='diffusion' tokens keep their places"),
        ({"keep": 0.5, "site": "encoder"}, "where site='diffusion' is the only one"),
        ({"keep": 0.5, "step": (0, 1)}, "tome has no option step, did you mean steps"),
    ],
)
def test_bad_input_is_refused_when_a_sieve_is_made(given, says):
    with pytest.raises(ValueError, match=says):
        ts.sieve(pipe(), "tome", **given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"keep": 0.1}, r"6 of 64 tokens are to stay; cell=2 has 16 destinations.*take a larger cell, or cell=None"),
        ({"keep": 0.5, "cell": 3}, r"cell=3 does not divide the grid \(8, 8\)"),
        ({"keep": lambda p: 2.0}, r"keep\(0\)=2.0; it must be"),
    ],
)
def test_bad_input_is_refused_when_it_is_met_and_the_next_call_is_right(given, says):
    made = pipe()
    plain = images(made)
    with ts.sieve(made, "tome", **given), pytest.raises(ValueError, match=says):
        images(made)
    assert torch.equal(images(made), plain)


def test_what_is_no_denoiser_is_refused():
    made = pipe()
    for model, says in (
        (torch.nn.Linear(2, 2), "Linear is no denoiser of diffusers"),
        (AutoencoderKL(), "AutoencoderKL is an autoencoder"),
        (made.transformer, r"steps=\(0.2, 1.0\) needs to know how far a run is"),
    ):
        with pytest.raises(ValueError, match=says):
            ts.sieve(model, "tome", keep=0.5, steps=(0.2, 1.0), site="diffusion")
    with pytest.raises(ValueError, match="has no self-attention"):
        ts.sieve(denoisers.diffusers.UNet1DModel(), "tome", keep=0.5)
    with pytest.raises(ValueError, match="visionzip runs at handoff"):
        ts.sieve(made, "visionzip", keep=0.5)
    with pytest.raises(ValueError, match="stands alone"):
        ts.sieve(made, ts.Plan([ts.stage("tome", 0.5, site="diffusion")] * 2))


@pytest.mark.parametrize(
    ("name", "form", "error", "guard"),
    [
        ("PriorTransformer", "attention", ValueError, "unpictured"),
        ("StableAudioDiTModel", "attention", ValueError, "unpictured"),
        ("UNet2DModel", "attention", RuntimeError, "untouched"),
        ("SanaTransformer2DModel", "stream", RuntimeError, "unfit"),
    ],
)
def test_nothing_is_done_in_silence(name, form, error, guard):
    model, call = denoisers.build(name), denoisers.TINY[name].call()
    says = re.escape(guards.GUARDS[guard].says.split("}")[1 if guard != "untouched" else 0].split("{")[0])
    with torch.no_grad(), ts.sieve(model, "uniform", keep=0.5, form=form), pytest.raises(error, match=says):
        model(**call)


def test_a_second_sieve_is_refused_for_what_it_is():
    made = pipe()
    right = images(made)
    with ts.sieve(made, "tome", keep=0.5):
        under = images(made)
        with pytest.raises(ValueError, match="2 stages; a stage at site='diffusion' stands alone"):
            ts.sieve(made, "uniform", keep=0.5).attach()
        assert torch.equal(images(made), under)
    assert torch.equal(images(made), right)


def test_a_scheduler_that_was_replaced_is_noticed():
    made = pipe()
    with ts.sieve(made, "tome", keep=0.5, steps=(0.5, 1.0)):
        made.scheduler = PNDMScheduler()
        with pytest.raises(RuntimeError, match="scheduler was replaced"):
            images(made)


def test_what_holds_at_every_site_holds_here():
    """The guards of copies, of weights that are not there, and of a forward that was compiled in its place."""
    model = denoisers.build("DiTTransformer2DModel")
    with ts.sieve(model, "tome", keep=0.5), pytest.raises(RuntimeError, match="a copy of DiTTransformer2DModel"):
        copy.deepcopy(model)
    copy.deepcopy(model)
    with pytest.raises(ValueError, match="weights on the meta device"):
        ts.sieve(copy.deepcopy(model).to("meta"), "tome", keep=0.5)
    model.transformer_blocks[0].compile(backend="eager")
    with pytest.raises(RuntimeError, match=r"holds a forward that torch\.compile made"):
        ts.sieve(model, "tome", keep=0.5)


def test_another_thread_is_told_to_wait():
    model, call = denoisers.build("DiTTransformer2DModel"), denoisers.TINY["DiTTransformer2DModel"].call()
    said = []

    def other(*_):
        def run():
            try:
                model(**call)
            except RuntimeError as error:
                said.append(str(error))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    with torch.no_grad(), ts.sieve(model, "tome", keep=0.5):
        hook = model.norm_out.register_forward_pre_hook(other)
        first = model(**call).sample
        hook.remove()
        assert torch.equal(model(**call).sample, first)
    assert said
    assert "running in another thread" in said[0]
