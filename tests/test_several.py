"""The model of several pictures: its prompts, how they are spelled and packed, its training, what the packaged one can do."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import tokensieve as ts
from tokensieve import testbed
from tokensieve.bench.data import SETS, from_testbed
from tokensieve.bench.measure import measure
from tokensieve.bench.subject import Subject, prepare
from tokensieve.sites.model.structure import find
from tokensieve.testbed import further, onevision, packing, spelled
from tokensieve.testbed.onevision import TOKENS
from tokensieve.testbed.train_several import PLAN, train
from tokensieve.testbed.words import COLOURS, EXTENDED, KINDS, NAMES, VOCABULARY

DRAWS = {"clip": testbed.clip_set, "pair": testbed.pair_set, "anyres": testbed.anyres_set}


@pytest.fixture(scope="module")
def micro():
    torch.manual_seed(0)
    return onevision.grown(testbed.build("micro")).eval(), testbed.ItemReader.fresh()


@pytest.fixture(scope="module")
def packaged():
    return testbed.load_several()


def test_a_grown_model_keeps_the_weights_it_has():
    old = testbed.build("micro")
    new = onevision.grown(old)
    for name, value in old.state_dict().items():
        assert torch.equal(new.state_dict()[name][: len(value)], value), name
    assert new.get_input_embeddings().num_embeddings == len(EXTENDED) > len(VOCABULARY)


@pytest.mark.parametrize("form", testbed.FORMS)
def test_prompts_hold_the_tokens_of_their_pictures(micro, form):
    model, reader = micro
    items = DRAWS[form](number=12, each=2)[1:3]
    inputs = reader(items)
    marks = find(model).placeholders(inputs["input_ids"], None)
    assert (marks["image"] | marks["video"]).sum(1).tolist() == [TOKENS[form]] * 2
    assert bool(marks["video"].any()) == (form == "clip")
    assert reader.tokenizer.unk_token_id not in inputs["input_ids"]
    pixels = inputs.get("pixel_values_videos", inputs.get("pixel_values"))
    assert pixels.shape[-3:] == (3, 336, 336)
    assert pixels[..., 0, 0, 0].numel() == 2 * testbed.PICTURES[form]


def test_a_batch_holds_one_form(micro):
    items = [testbed.clip_set(number=12, each=1)[0], testbed.pair_set(number=12, each=1)[0]]
    with pytest.raises(ValueError, match="one form; got clip, pair"):
        micro[1](items)


@torch.no_grad()
@pytest.mark.parametrize("form", testbed.FORMS)
def test_training_sees_what_the_model_sees(micro, form):
    """Pixels of the processor, and questions packed behind one prefix as if each were asked alone."""
    model, reader = micro
    drawn = further.drawn(form, 0, 1, "test")
    pictures = {
        "clip": lambda: testbed.clip(0, 1, "test").images,
        "pair": lambda: tuple(s.image for s in testbed.pair(0, 1, "test")),
        "anyres": lambda: (testbed.large(0, 1, "test").image,),
    }[form]()
    tiles = further.tiles(torch.from_numpy(drawn["tiles"])[None])
    asked = drawn["questions"][:3]
    prefix = onevision.prefix(model, form, tiles)
    assert prefix.shape[1] == TOKENS[form] + 1
    packed = packing.pack([asked], prefix.shape[1])
    together = packing.run(model, prefix, packed)
    for number, question in enumerate(asked, 1):
        inputs = reader([testbed.Several(pictures, question, form)])
        pixels = inputs.get("pixel_values_videos", inputs.get("pixel_values"))
        assert torch.allclose(tiles.flatten(), pixels.flatten(), atol=1e-5)
        after = torch.tensor([packing.encode(question)[1][:-1]])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], after], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        alone = model(**inputs).logits[0, prefix.shape[1] :]
        assert torch.allclose(together[0, packed["segment"][0] == number], alone, atol=1e-5)


@pytest.mark.parametrize("form", testbed.FORMS)
def test_spelled_tokens_stand_where_their_patches_would(form):
    made = spelled.spell(form, 5, 3)
    assert len(made["place"]) == spelled.SPOTS == len(set(made["place"].tolist()))
    assert bool((np.diff(made["place"]) > 0).all())
    assert made["place"][0] >= 1
    assert made["place"][-1] <= TOKENS[form]
    words = list(spelled._SUMMANDS)
    colours = set()
    for view, thing, box in spelled.draw(form, 5, 3)[0]:
        grid = spelled.VIEWS[form][view]
        inside = []
        for place, of in zip(made["place"].tolist(), made["thing"], strict=True):
            row, column = divmod(place - grid.first, grid.stride)
            named = {words[i] for i in of}
            if not 0 <= row < grid.side or not 0 <= column < grid.side or thing.colour not in named:
                continue
            y, x = ((n + 0.5) * grid.pixel for n in (row, column))
            assert box[0] - grid.pixel < x < box[2] + grid.pixel
            assert box[1] - grid.pixel < y < box[3] + grid.pixel
            third = tuple(int(3 * (at % grid.picture) / grid.picture) for at in (y, x))
            assert {f"row {third[0]}", f"column {third[1]}"} <= named
            assert thing.name in named or grid.blurred
            inside.append(place)
        colours.add(thing.colour)
        assert inside, (thing, view)
    assert {words[i] for of in made["thing"] for i in of} & set(testbed.spelled.COLOURS) == colours


def test_summands_say_most_of_what_projected_patches_hold():
    table, missed = spelled.summands(testbed.load()[0], further.pixels, 0, scenes=24)
    assert not bool(table[0].any())
    rng = np.random.default_rng(0)
    words = [[*(rng.choice(list(group)) for group in (KINDS, NAMES, COLOURS)), "thing"] for _ in range(300)]
    sums = torch.stack([table[[spelled._SUMMANDS[word] for word in one]].sum(0) for one in words])
    assert missed < 0.6 * float(sums.std(0).square().mean().sqrt())


@pytest.mark.parametrize("stage", list(PLAN))
def test_resumed_training_equals_uninterrupted(tmp_path, stage, monkeypatch):
    from tokensieve.testbed import train_several as module

    monkeypatch.setitem(module.PLAN, stage, (*PLAN[stage][:2], 1))
    monkeypatch.setattr(spelled, "summands", functools.partial(spelled.summands, scenes=4))
    same = {"steps": 4, "only": (stage,)}
    whole, records = train(tmp_path / "whole", start=testbed.build("micro"), **same)
    assert (records[stage]["done"], records[stage]["step"]) == (True, 4)
    _, records = train(tmp_path / "parts", start=testbed.build("micro"), **same, stop_at=2)
    assert (records[stage]["done"], records[stage]["step"]) == (False, 2)
    parts, _ = train(tmp_path / "parts", start=testbed.build("micro"), **same)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    tower = testbed.build("micro").state_dict()
    trained = {name for name, value in tower.items() if not torch.equal(whole.state_dict()[name][: len(value)], value)}
    assert trained
    assert not any("vision_tower" in name for name in trained)


def test_the_packaged_tower_is_the_first_models(packaged):
    first = testbed.load()[0].state_dict()
    mine = packaged[0].state_dict()
    assert all(torch.equal(mine[name], value) for name, value in first.items() if "vision_tower" in name)
    assert sum(f.stat().st_size for f in testbed.several_path().iterdir()) < 8e6


def test_the_packaged_model_answers(packaged):
    """Kinds that the card calls learned are above their priors here too."""
    tables = testbed.evaluate_several(packaged[0], number=4, seed=7)
    assert set(tables) == set(testbed.FORMS)
    for form, table in tables.items():
        assert table["all"]["accuracy"] > table["all"]["prior"] + 0.1, (form, table)


@pytest.mark.parametrize(("form", "name", "places"), [("clip", "framefusion", "frame"), ("anyres", "hired", "crop")])
def test_methods_learn_of_frames_and_crops(packaged, form, name, places):
    model, reader = packaged
    item = DRAWS[form](number=12, each=1)[0]
    seen = {}
    made = ts.get_method(name)

    class Spy(type(made)):
        def reduce(self, s, keep):
            seen.update({places: getattr(s, places)})
            return super().reduce(s, keep)

    with ts.sieve(model, Spy(), keep=100, site="handoff") as s:
        testbed.correct(model, reader, [item])
    assert s.last.stages[-1].reduction.counts.tolist() == [100]
    count = torch.bincount(seen[places][0][seen[places][0] >= 0]).tolist()
    assert count == ([144] * 8 if form == "clip" else [576, 144, 144, 144, 144])


@pytest.mark.parametrize("which", [name for name in SETS if name != "scenes"])
def test_the_bench_asks_about_several_pictures(packaged, which):
    samples = from_testbed(len(SETS[which]), 3, which)
    assert [s.kind for s in samples] == list(SETS[which])
    subject = Subject("testbed", *packaged)
    batches = prepare(subject, samples[:2], 2)
    _, full = measure(subject, batches, None, None, 4, 0)
    row, _ = measure(subject, batches, ts.Plan(ts.Stage(ts.get_method("random"), 40)), full, 4, 0)
    pictures = 2 if which == "pairs" else 1
    assert full.tokens == TOKENS[samples[0].several.form]
    assert row["mean_tokens"] == 40 * pictures
    assert row["kv_bytes"] < 400 * 4 * 2 * 160 * 4
    assert 0 < row["prefill_flops_share"] < row["flops_share"] < 1


def test_only_the_testbed_reads_its_clips():
    with pytest.raises(ValueError, match="the model 'testbed' alone"):
        Subject.load("some/model", several=True)
