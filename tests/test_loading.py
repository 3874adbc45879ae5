"""Plans beside the weights, and transformers' pipelines over a model under one."""

import json
import shutil

import pytest
import torch
import transformers
from PIL import Image

import tokensieve as ts
from tests.models import decoder
from tokensieve import testbed
from tokensieve.testbed import lm

TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %} {{ c['text'] }}"
    "{% endif %}{% endfor %}{% endfor %} answer :"
)
TEXT = "def add(a, b):\n    return a + b\n\n" * 12


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "model"
    shutil.copytree(lm.path(), folder, ignore=shutil.ignore_patterns("heldout*", "training*"))
    return folder


@pytest.fixture(scope="module")
def picture_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    model, processor = testbed.load()
    processor.chat_template = TEMPLATE
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_plan_lies_beside_the_weights(text_folder):
    plan = ts.Plan(ts.stage("snapkv", keep=64))
    plan.save(text_folder)
    assert ts.Plan.load(text_folder) == plan == ts.Plan.load(text_folder / "tokensieve.json")
    model, tokenizer = ts.load_model(text_folder, dtype=torch.float32)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    assert {layer.keys.shape[2] for layer in out.past_key_values.layers} == {64 + 2}
    (one,) = ts.attached(model)
    assert one.plan == plan
    assert set(one.last.layer_tokens) == {64}
    one.detach()
    assert ts.attached(model) == ()
    own = ts.load_model(text_folder, ts.Plan(ts.stage("random", keep=32, site="cache")), seed=5)[0]
    assert [(s.plan.stages[0].method.name, s.seed) for s in ts.attached(own)] == [("random", 5)]


def test_a_sieved_model_writes_text_in_a_pipeline(text_folder):
    model, tokenizer = ts.load_model(text_folder, ts.Plan(ts.stage("snapkv", keep=64)), dtype=torch.float32)
    asked = [TEXT, TEXT[: len(TEXT) // 2]]
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    said = pipe(asked, max_new_tokens=5, do_sample=False, batch_size=2, return_full_text=False)
    inputs = tokenizer(asked, padding=True, padding_side="left", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert [one[0]["generated_text"] for one in said] == tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert set(ts.attached(model)[0].last.layer_tokens) == {64}


def test_a_sieved_model_answers_about_pictures_in_a_pipeline(picture_folder):
    ts.Plan(ts.stage("visionzip", keep=64)).save(picture_folder)
    model, processor = ts.load_model(picture_folder)
    item = testbed.test_set(10, 2)[0]
    turn = {
        "role": "user",
        "content": [{"type": "image", "image": item.image}, {"type": "text", "text": item.question.text}],
    }
    pipe = transformers.pipeline("image-text-to-text", model=model, processor=processor)
    (said,) = pipe(text=[[turn]], max_new_tokens=4, return_full_text=False)
    inputs = processor(images=item.image, text=testbed.prompt(item.question.text), return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=4)[:, inputs["input_ids"].shape[1] :]
    said = said[0] if isinstance(said, list) else said
    assert said["generated_text"].split() == processor.decode(ids[0], skip_special_tokens=True).split() == [item.answer]
    assert set(ts.attached(model)[0].last.layer_tokens) == {64}


def test_an_encoder_has_an_image_processor(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=4
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    model, processor = ts.load_model(tmp_path, ts.Plan(ts.stage("tome", keep=0.5)))
    model(**processor(Image.new("RGB", (40, 40)), return_tensors="pt"))
    assert ts.attached(model)[0].last.stages[0].reduction.counts.tolist() == [32]


def test_what_cannot_be_loaded_is_said(tmp_path, text_folder):
    with pytest.raises(FileNotFoundError, match=r"tokensieve\.json: no such file; put a plan there"):
        ts.load_model(tmp_path)
    (tmp_path / "tokensieve.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"tokensieve\.json: not a plan: format is None"):
        ts.load_model(tmp_path)
    (tmp_path / "tokensieve.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokensieve\.json: Expecting"):
        ts.Plan.load(tmp_path)
    ts.Plan([]).save(tmp_path)
    with pytest.raises(ValueError, match="cannot load"):
        ts.load_model(tmp_path)
    with pytest.raises(ValueError, match="the plan does not fit LlamaForCausalLM: "):
        ts.load_model(text_folder, ts.Plan(ts.stage("visionzip", keep=64)))


def test_the_sieves_on_a_model_are_told_outermost_first():
    model = decoder()
    assert ts.attached(model) == ()
    with ts.sieve(model, "snapkv", keep=0.5) as outer, ts.sieve(model, "keydiff", keep=0.5) as inner:
        assert ts.attached(model) == (outer, inner)
