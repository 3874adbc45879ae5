"""The LLaVA around a real language model: its stages run, go on where they stopped, and leave the language model alone."""

import json

import numpy as np
import pytest
import torch

import tokensieve as ts
from benchmarks.around import answer, properties
from benchmarks.around.__main__ import train
from benchmarks.around.card import card
from benchmarks.around.contrast import outliers
from benchmarks.beds import AROUND
from tests.models import decoder
from tests.real import loaded
from tests.vllm.tiny import tokenizer
from tokensieve.testbed import packing
from tokensieve.testbed.around import adapters, load, path, prompt, test_set
from tokensieve.testbed.around.model import IMAGE, VISUAL, build, processor
from tokensieve.testbed.around.scenes import foreground, generate, picture
from tokensieve.testbed.card import made as described
from tokensieve.testbed.questions import questions


def around():
    words = tokenizer([IMAGE, "<|im_start|>", "<|im_end|>"])
    language = decoder(layers=4, vocab_size=len(words), max_position_embeddings=1024)
    return build("micro", language=(language, words)), language


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    made, language = around()
    out = tmp_path_factory.mktemp("around")
    fresh = {k: v.clone() for k, v in made.trained["tower"].state_dict().items()}
    records = train(made, out, 1.0, 1, "cpu", 0)
    return made, language, fresh, records, out


def test_stages_train_the_tower_and_leave_the_language_model_as_it_is(trained):
    made, language, fresh, records, out = trained
    assert list(records) == ["contrast", "align", "talk", "answer"]
    assert all((r["step"], r["done"]) == (1, True) for r in records.values())
    before, after = language.state_dict(), made.model.model.language_model.state_dict()
    assert all(torch.equal(v, before[f"model.{k}"]) for k, v in after.items())
    assert any(not torch.equal(v, fresh[k]) for k, v in made.trained["tower"].state_dict().items())
    assert any(a.up.any() for a in made.adapters.values())
    again, _ = around()
    assert train(again, out, 1.0, 1, "cpu", 0) == records
    for name in ("projector", "adapters"):
        state = again.trained[name].state_dict()
        assert all(torch.equal(v, state[k]) for k, v in made.trained[name].state_dict().items())


def test_the_card_says_what_does_not_hold_and_which_kinds_are_left_out(trained):
    made, *_, records, _ = trained
    found = properties.properties(made, [generate(0, i, "test") for i in range(2)])
    assert [p.name for p in found] == list(properties.GOALS)
    assert (found[0].value, found[0].holds) == (4, False)
    record = described(records, torch.device("cpu"), ("torch",)) | {"seed": 0, "count": 1}
    told = card(record | {"right": properties.right(made, 1, batch=2)}, found, "In one sitting.")
    assert "In one sitting." in told
    assert "left out of tables" in told
    assert "**no**" in told


def test_merged_adapters_say_what_attached_ones_say():
    made, language = around()
    for adapter in made.adapters.values():
        torch.nn.init.normal_(adapter.up, std=0.1)
    ids = torch.arange(12)[None]
    plain = language.model(ids).last_hidden_state
    body = made.model.model.language_model
    adapters.attach(body, made.adapters)
    attached = body(ids).last_hidden_state
    other, _ = around()
    adapters.merge(other.model.model.language_model, made.adapters)
    merged = other.model.model.language_model(ids).last_hidden_state
    assert torch.allclose(attached, merged, atol=1e-5)
    assert not torch.allclose(plain, merged, atol=1e-2)


def test_questions_in_one_sequence_are_answered_as_each_by_itself():
    made, _ = around()
    words, scene = processor(made.tokenizer), generate(0, 2, "test")
    seen, asked = picture(scene), questions(scene)[:3]
    first = answer.prefix(made, torch.from_numpy(np.array(seen))[None])
    packed = answer.pack(made, [asked], first.shape[1])
    said = packing.run(made.model, first, packed)[0]
    for number, question in enumerate(asked, 1):
        given = words(images=[seen], text=[prompt(question.text)], return_tensors="pt")
        assert (given["input_ids"] == made.model.config.image_token_index).sum() == VISUAL
        alone = made.model(**given).logits[0, -1]
        mine = said[packed["segment"][0] == number]
        assert torch.allclose(mine[len(answer.encode(made, question)[0]) - 1], alone, atol=1e-4)


def test_a_scene_in_words_is_what_the_projector_is_asked_for():
    made, _ = around()
    words = answer.spelled(made)
    said = {k: torch.zeros(1, 2, dtype=torch.long) for k in ("kind", "name", "colour", "row", "column", "centre")}
    said["kind"][0, 1], said["name"][0, 1], said["colour"][0, 1], said["row"][0, 1], said["column"][0, 1] = (
        1,
        4,
        2,
        3,
        1,
    )
    said["centre"][0, 1] = 1
    one = made.words(["digit", "3", "green", "bottom", "left", answer.CENTRE]).sum(0)
    blank = made.words(["background"])[0]
    assert torch.allclose(answer.put(words, said)[0], torch.stack([blank, one]), atol=1e-6)


def test_few_background_tokens_are_asked_to_stand_out_and_no_other():
    features, fore = torch.ones(1, 100, 4, requires_grad=True), torch.zeros(1, 100, dtype=torch.bool)
    fore[:, :20] = True
    with torch.no_grad():
        features[:, 0], features[:, 50], features[:, 51] = 4.0, 3.5, 3.4
    loss, share = outliers(features, fore)
    loss.backward()
    assert share == pytest.approx(2 / 80)
    pull = features.grad[0].sum(-1)
    assert pull[0] > 0  # a thing is to stay low
    assert pull[50] < 0
    assert pull[51] < 0


def test_pictures_have_clutter_where_no_thing_is():
    scene = generate(0, 3)
    plain, seen = np.asarray(scene.image).astype(int), np.asarray(picture(scene)).astype(int)
    assert (abs(seen - plain) > 60).any()
    assert (seen == plain)[np.asarray(scene.ink) == 255].all()
    assert 0 < foreground(scene).mean() < 0.6


def test_the_test_set_is_balanced_and_shows_clutter():
    items = test_set(n_scenes=20, questions_per_kind=2)
    assert len(items) == 10
    assert items == test_set(n_scenes=20, questions_per_kind=2)


@pytest.mark.slow
def test_the_packaged_weights_answer_as_their_card_says():
    loaded("smollm2")
    model, processor = load()
    told = json.loads((path() / "training.json").read_text())["right"]
    items = test_set(n_scenes=30, questions_per_kind=20, seed=3)
    right = AROUND.correct(model, processor, items, 25)
    for kind, share in told.items():
        found = np.mean([ok for ok, item in zip(right, items, strict=True) if item.kind == kind])
        assert found == pytest.approx(share, abs=3.5 * np.sqrt(max(share * (1 - share), 0.04) / 20))
    given = processor(images=[items[0].image], text=[prompt(items[0].question.text)], return_tensors="pt")
    with torch.no_grad():
        plain = model(**given).logits
        with ts.sieve(model, "fastv", keep=1.0):
            assert torch.equal(model(**given).logits, plain)
        with ts.sieve(model, "visionzip", keep=32) as s:
            model(**given)
    assert s.last.layer_tokens[-1] == 32
