"""Methods for denoisers that go by what became of tokens in earlier steps."""

from dataclasses import dataclass

import pytest
import torch

import tokensieve as ts
from tokensieve.core.method import Method
from tokensieve.core.needs import Change, Staleness
from tokensieve.core.reduction import Reduction

pytest.importorskip("diffusers")

from tests.test_diffusion import images, pipe
from tokensieve.testbed.diffusion import pipeline


@dataclass(frozen=True)
class Turns(Method):
    """Notes what it is told, and keeps even and odd tokens in turns."""

    name = "turns"
    site = "diffusion"
    sites = ("diffusion",)
    denoises = {"form": "stream", "cached": True}  # noqa: RUF012
    seen = []  # noqa: RUF012

    @property
    def needs(self):
        return (Change, Staleness)

    def reduce(self, s, keep):
        self.seen.append((s.change, s.staleness))
        return Reduction.keep((torch.arange(s.n) % 2 == len(self.seen) % 2).expand(s.batch, -1))


def states(made):
    out = []
    return out, made.transformer.norm_out.register_forward_pre_hook(lambda m, a: out.append(a[0]))


def test_change_and_staleness_are_those_of_the_run():
    """One row, without guidance: two whole passes, then three that take every second token."""
    made = pipe()
    Turns.seen.clear()
    out, hook = states(made)
    with ts.sieve(made, Turns(), keep=0.5, steps=(0.5, 1.0)):
        made([0], num_inference_steps=5, generator=torch.Generator().manual_seed(0), output_type="pt")
    hook.remove()
    told = Turns.seen
    assert len(told) == 3
    for i, (change, staleness) in enumerate(told):
        torch.testing.assert_close(change, (out[1 + i] - out[0]).norm(dim=2))
        own = torch.arange(64) % 2
        assert staleness[0].tolist() == {0: 0 * own, 1: 1 - own, 2: own}[i].tolist()


def test_passes_of_one_step_have_their_own_states():
    """A pipeline that asks for the halves of guidance one after the other gets what it gets for both at once."""
    made, expected = pipe(), []
    how = {"keep": 0.5, "form": "stream", "cached": True, "shared": False}
    for apart in (False, True):
        denoiser = made.transformer
        with ts.sieve(made, "uniform", **how):

            def call(x, timestep, class_labels, denoiser=denoiser):
                rows = [denoiser(x[i : i + 1], timestep[i : i + 1], class_labels[i : i + 1]) for i in range(len(x))]
                return type("Said", (), {"sample": torch.cat([row.sample for row in rows])})

            call.dtype = denoiser.dtype
            object.__setattr__(made, "transformer", call if apart else denoiser)
            given = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "pt"}
            expected.append(made([3], generator=torch.Generator().manual_seed(0), **given).images)
            object.__setattr__(made, "transformer", denoiser)
    torch.testing.assert_close(*expected, atol=1e-4, rtol=0)


class Two(pipeline.ScenePipeline):
    """Hands over from one denoiser to another behind the second step."""

    def __init__(self, transformer, transformer_2, scheduler):
        super().__init__(transformer, scheduler)
        self.register_modules(transformer_2=transformer_2)

    def run(self, label):
        first, second = self.transformer, self.transformer_2

        def change(pipe, step, time, held):
            object.__setattr__(self, "transformer", second if step else first)

        g = torch.Generator().manual_seed(label)
        try:
            return self([label], 1.0, 5, g, output_type="pt", callback_on_step_end=change).images
        finally:
            object.__setattr__(self, "transformer", first)


def test_a_second_denoiser_begins_each_run_anew():
    one = pipe()
    made = Two(one.transformer, pipe(seed=1).transformer, one.scheduler)
    made.set_progress_bar_config(disable=True)
    with ts.sieve(made, "uniform", keep=0.5, form="stream", cached=True):
        alone = made.run(3)
        made.run(4)
        assert torch.equal(made.run(3), alone)


def test_cat_pruning_leaves_no_token_out_for_long():
    """Three quarters of half of 64 tokens go to those left out longest, so that each has its turn within three steps."""
    made, lengths = pipe(), []
    hook = made.transformer.transformer_blocks[2].register_forward_hook(lambda m, a, out: lengths.append(out.shape[1]))
    ages = torch.zeros(64)
    with ts.sieve(made, "cat-pruning", keep=0.5, steps=(0.3, 1.0)) as s:

        def note(pipe, step, time, held):
            nonlocal ages
            if s.last is not None and step > 2:
                ages = (ages + 1).scatter(0, s.last.stages[0].reduction.kept[0], 0.0)
                assert ages.max() < 3

        got = images(made, num_inference_steps=10, callback_on_step_end=note)
        assert torch.equal(images(made, num_inference_steps=10), got)
    hook.remove()
    assert lengths == ([64] * 3 + [32] * 7) * 2


def test_what_changes_most_is_chosen_cluster_by_cluster():
    """Four far groups of four, a budget of five of which none is for the stale: a fifth of it, one token, is a helping."""
    group = torch.arange(16) // 4
    x = torch.nn.functional.one_hot(group, 4).float()[None] * 100
    change = torch.tensor([[9.0, 8, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 5, 6, 0, 0]])
    method = ts.get_method("cat-pruning", stale=0.0, clusters=4)
    r = ts.reduce(x, method, keep=5, change=change, staleness=torch.zeros(1, 16))
    assert r.kept.tolist() == [[0, 1, 4, 8, 13]]  # 9, 7, 6, 1, and 8 in the second turn
    stale = torch.zeros(1, 16).index_fill(1, torch.tensor([3, 15]), 2.0)
    r = ts.reduce(x, ts.get_method("cat-pruning", stale=1.0), keep=4, change=change, staleness=stale)
    assert r.kept.tolist() == [[0, 1, 3, 15]]  # of those equally stale the ones that move more


def test_a_method_that_goes_by_steps_is_refused_where_none_are_known():
    made = pipe()
    with pytest.raises(ValueError, match="cat-pruning goes by change and staleness, which only form='stream'"):
        ts.sieve(made, "cat-pruning", keep=0.5, cached=False)
    with pytest.raises(ValueError, match="only in form='stream'"):
        ts.sieve(made, "cat-pruning", keep=0.5, form="attention")
    with pytest.raises(ValueError, match="pass the pipeline"):
        ts.sieve(made.transformer, "cat-pruning", keep=0.5)
