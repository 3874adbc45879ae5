"""The LLaVA around a real language model: its stages run, go on where they stopped, and leave the language model alone."""

import torch

from benchmarks.around import properties
from benchmarks.around.__main__ import asked, card, train
from benchmarks.around.model import IMAGE, VISUAL, build, prompt
from benchmarks.around.scenes import foreground, picture
from tests.models import decoder
from tests.vllm.tiny import tokenizer
from tokensieve.testbed.scenes import generate


def around():
    words = tokenizer([IMAGE, "<|im_start|>", "<|im_end|>"])
    language = decoder(layers=4, vocab_size=len(words), max_position_embeddings=1024)
    return build("micro", language=(language, words)), language


def test_stages_train_the_tower_and_leave_the_language_model_as_it_is(tmp_path):
    made, language = around()
    before = {k: v.clone() for k, v in language.state_dict().items()}
    fresh = {k: v.clone() for k, v in made.trained["tower"].state_dict().items()}
    records = train(made, tmp_path, 1.0, 1, "cpu", 0)
    assert [(n, r["step"], r["done"]) for n, r in records.items()] == [("contrast", 1, True), ("answer", 1, True)]
    after = made.model.model.language_model.state_dict()
    assert all(torch.equal(v, before[f"model.{k}"]) for k, v in after.items())
    assert any(not torch.equal(v, fresh[k]) for k, v in made.trained["tower"].state_dict().items())
    again, _ = around()
    assert train(again, tmp_path, 1.0, 1, "cpu", 0) == records
    trained = again.trained["projector"].state_dict()
    assert all(torch.equal(v, trained[k]) for k, v in made.trained["projector"].state_dict().items())

    items, scenes = asked(1)
    found = properties.properties(made, items, scenes)
    assert [p.name for p in found] == list(properties.GOALS)
    assert (found[0].value, found[0].holds) == (4, False)
    told = card(records, found, properties.right(made, items, scenes), 1, "here")
    assert "left out of tables" in told
    assert "**no**" in told


def test_pictures_have_clutter_where_no_thing_is():
    scene = generate(0, 3)
    plain, seen = scene.image.resize((256, 256)), picture(scene)
    assert seen.shape == (256, 256, 3)
    assert (abs(seen.astype(int) - torch.tensor(list(plain.getdata())).reshape(256, 256, 3).numpy()) > 60).any()
    things = foreground(scene, 16)
    assert 0 < things.mean() < 0.6
    assert prompt("what ?").count(IMAGE) == VISUAL == 256
