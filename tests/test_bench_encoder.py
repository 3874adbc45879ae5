"""The bench of encoders: on a folder, from the search to the page."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile
from typer.testing import CliRunner

import tokensieve as ts
from tests.tiny_encoders import made
from tokensieve.bench.sound import read_sound
from tokensieve.cli.main import app
from tokensieve.planner.encoders import trees
from tokensieve.planner.encoders.asking import AskingEncoder
from tokensieve.planner.encoders.bench import bench_encoder
from tokensieve.planner.encoders.fidelity import Neighbours, word_errors
from tokensieve.planner.encoders.items import EncoderInput, read_items
from tokensieve.planner.encoders.shown import examples
from tokensieve.planner.encoders.subject import EncoderSubject


def processor(images, return_tensors):
    stacked = np.stack([np.asarray(i.resize((32, 32))) for i in images])
    return {"pixel_values": torch.tensor(stacked).permute(0, 3, 1, 2).float() / 255 - 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(out / f"{i:02}.png")
    (out / "notes.txt").write_text("no image")
    (out / "broken.png").write_text("no image either")
    return out


@pytest.fixture
def subject():
    return EncoderSubject("tiny", made("ViTModel").model, processor, "images")


def takes(monkeypatch, share):
    monkeypatch.setattr(AskingEncoder, "_timed", lambda self, sieve, inputs: [1.0, share])


SOME = {"fidelity": 0.5, "methods": ["tome"], "shares": (0.5,), "batch": 20, "minutes": 30.0}


def test_the_fastest_plan_that_keeps_the_fidelity_is_written(monkeypatch, folder, subject, tmp_path):
    takes(monkeypatch, 0.6)
    told = bench_encoder(subject, folder, out=tmp_path, **SOME)
    assert told.chosen in {"tome 0.5", "tome 0.5 decreasing", "tome 0.5 once", "pool 0.5", "random 0.5", "uniform 0.5"}
    assert {"random", "uniform", "pool"} <= {row.method for row in told.rows}
    assert all({"cosine", "tokens", "neighbours"} <= set(row.kept) for row in told.rows)
    assert told.rows[0].count == 32
    assert {row.packed for row in told.rows} == {0.0}  # all images have as many tokens
    assert "1.67 times as fast" in told.sentence
    assert [s.split(":")[0] for s in told.skipped][:1] == ["notes.txt"]
    with ts.sieve(subject.model, ts.Plan.load(tmp_path / "plan.json")) as s:
        subject.run(processor([Image.new("RGB", (32, 32))], "pt"))
    assert s.last is not None
    page = (tmp_path / "encoder.html").read_text()
    assert told.sentence in page.replace("&#39;", "'")
    assert page.count("tokens in front of each block") == 4
    assert page.count("data:image/png;base64,") >= 4
    assert "packed blocks" in page
    assert (tmp_path / "encoder.png").stat().st_size > 5000
    assert json.loads((tmp_path / "results.json").read_text())["measures"].keys() >= {"random 0.5"}

    def asked(*_):
        raise AssertionError("it was asked before")

    monkeypatch.setattr(AskingEncoder, "_under", asked)
    again = bench_encoder(subject, folder, out=tmp_path, **SOME)
    assert (again.chosen, again.sentence) == (told.chosen, told.sentence)
    with pytest.raises(ValueError, match=r"search"):
        bench_encoder(subject, folder, out=tmp_path, **{**SOME, "fidelity": 0.6})


def test_a_plan_that_is_not_faster_is_said_not_to_be(monkeypatch, folder, subject, tmp_path):
    takes(monkeypatch, 1.1)
    told = bench_encoder(subject, folder, out=tmp_path, **SOME)
    assert told.plan is None
    assert not (tmp_path / "plan.json").exists()
    assert told.sentence.startswith("Nothing is faster here")
    assert "tokens" in told.sentence
    assert "batches of 20" in told.sentence


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"measure": "taste"}, "cosine, neighbours, tokens, answer, wer"),
        ({"fidelity": 1.5}, r"lies in \(0, 1\]"),
        ({"batch": 0}, "at least 1"),
        (
            {"fidelity": 0.999},
            r"40 images \(2 others were left out: notes.txt.*\) are too few to tell a fidelity of 0.999; it takes .*lower",
        ),
        ({"labels": "labels.csv"}, "no label of '00.png' and 38 more"),
    ],
)
def test_what_cannot_be_told_is_refused(folder, subject, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.csv").write_text("01.png,cat\n")
    with pytest.raises(ValueError, match=said):
        bench_encoder(subject, folder, out=tmp_path / "out", **{**SOME, **options})


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    told = CliRunner().invoke(app, ["bench-encoder", "model", "--inputs", str(tmp_path / "none")])
    assert isinstance(told.exception, FileNotFoundError)
    assert "no such folder" in str(told.exception)


def test_steps_and_what_flows_together_are_shown(subject, folder):
    items = read_items(folder, limit=3)[0]
    seen = examples(subject, ts.Plan(ts.stage("tome", 0.25, site="encoder")), items)
    blocks = len(subject.stack.layers)
    for one in seen:
        assert [layer.name.split(":")[0] for layer in one.layers] == [f"block {i}" for i in range(blocks)]
        assert one.layers[-1].name == f"block {blocks - 1}: 16 of 64 patches"
        assert len({layer.picture for layer in one.layers}) == blocks
    assert [bool(one.tree) for one in seen] == [True, False, False]
    assert 2 <= seen[0].tree.count("<image") <= trees.LEAVES
    dropped = examples(subject, ts.Plan(ts.stage("random", 0.25, site="encoder")), items)
    assert all(one.layers and not one.tree for one in dropped)
    once = examples(subject, ts.Plan(ts.stage("tome", 0.5, site="encoder", schedule="once")), items)
    assert all(not one.layers and len(one.tree) > 0 for one in once[:1])


def test_texts_are_shown_with_the_words_that_are_left():
    encoder = made("BertModel")

    class Words:
        model_max_length = 32

        def __call__(self, texts, **_):
            ids = torch.tensor([[2, *range(5, 5 + len(t.split())), 3] for t in texts])
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

        def convert_ids_to_tokens(self, ids):
            return [f"<{i}>" for i in ids]

    item = EncoderInput("line 1", "texts", "a b c d e f g h")
    plan = ts.Plan(ts.stage("tome", 0.5, site="encoder"))
    shown = examples(EncoderSubject("bert", encoder.model, Words(), "texts"), plan, [item])[0]
    left = [sum(kept for _, kept in layer.words) for layer in shown.layers]
    assert left == [int(layer.name.split()[2]) + 2 for layer in shown.layers]
    assert left[-1] == 6
    assert shown.layers[-1].words == shown.words
    assert "&lt;5&gt;" in shown.tree or "&lt;6&gt;" in shown.tree or "&lt;7&gt;" in shown.tree


def test_a_tree_holds_what_met_in_the_step_in_which_it_did():
    owners = [torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 0, 1, 0, -1])]
    tree = trees.grown(owners)
    assert [(t.slot, t.leaves) for t in tree] == [(0, [0, 1, 3])]
    assert tree[0].levels == [[[0, 1], [2]], [[0, 1, 2]]]
    drawn = trees.drawn(tree, [1, 4], lambda token, x, y: f"<leaf {token}>", 20, "what")
    assert [drawn.index(f"<leaf {i}>") > 0 for i in (0, 1, 3)] == [True] * 3
    assert "block 1" in drawn
    assert "block 4" in drawn
    assert trees.grown([torch.arange(5)]) == []
    assert trees.drawn([], [0], str, 20, "what") == ""


# ---- parts --------------------------------------------------------------------------------------------------------------


def test_texts_are_lines_of_one_file_or_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert [(i.name, i.what) for i in read_items(tmp_path / "a.txt")[0]] == [("line 1", "one"), ("line 3", "two")]
    (tmp_path / "b.txt").write_text("three\nfour")
    assert [i.what for i in read_items(tmp_path)[0]] == ["one\n\ntwo", "three\nfour"]


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32])
def test_waves_of_all_rates_and_depths_are_read(tmp_path, rate, kind):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    if kind is np.uint8:
        x = (tone * 127 + 128).astype(kind)
    elif kind is np.float32:
        x = tone.astype(kind)
    else:
        x = (tone * np.iinfo(kind).max).astype(kind)
    wavfile.write(tmp_path / "a.wav", rate, np.stack([x, x], 1))
    wave = read_sound(tmp_path / "a.wav")
    assert wave.dtype == np.float32
    assert len(wave) == 16_000
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(wave - expected)[200:-200].max() < 0.02


def test_waves_of_24_bits_are_read(tmp_path):
    import wave

    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000) * (2**23 - 1)).astype(np.int32)
    with wave.open(str(tmp_path / "a.wav"), "wb") as out:
        out.setparams((1, 3, 16_000, 0, "NONE", ""))
        out.writeframes(tone.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes())
    assert np.abs(read_sound(tmp_path / "a.wav") - tone / 2**23).max() < 1e-6


def test_other_formats_are_read_by_soundfile(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8_000) / 8_000)
    soundfile.write(tmp_path / "a.flac", np.stack([tone, tone], 1), 8_000)
    wave = read_sound(tmp_path / "a.flac")
    assert len(wave) == 16_000
    assert np.abs(wave - 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000))[200:-200].max() < 0.02


def test_what_is_no_sound_is_said(tmp_path):
    (tmp_path / "a.wav").write_text("no sound")
    with pytest.raises(ValueError, match="cannot be read as wav"):
        read_sound(tmp_path / "a.wav")
    wavfile.write(tmp_path / "b.wav", 16_000, np.zeros(0, np.int16))
    with pytest.raises(ValueError, match="holds no sound"):
        read_sound(tmp_path / "b.wav")


def test_word_errors_are_counted_by_words():
    assert word_errors("The cat sat.", "the CAT sat") == 0
    assert word_errors("a b c d", "a x c") == 0.5
    assert word_errors("", "") == 0
    assert word_errors("a", "a a a") == 2


def test_neighbours_are_those_of_the_full_vectors():
    vectors = torch.nn.functional.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    near = Neighbours([str(i) for i in range(40)], vectors)
    assert near.count == 4
    assert near.agreement("3", vectors[3]) == 1.0
    assert near.agreement("3", -vectors[3]) == 0.0


def test_an_encoder_that_comes_inside_a_wheel_is_taken_by_its_short_name(monkeypatch, tmp_path):
    asked = []

    def load(where, kind, hears, device):
        asked.append(where)
        return made("ViTModel").model, processor

    monkeypatch.setattr("tokensieve.planner.encoders.subject.encoder_of", load)
    monkeypatch.setattr("tokensieve.testbed.real.get", lambda name: tmp_path / name)
    assert EncoderSubject.load("whisper", "images").name == "whisper"
    (tmp_path / "minilm").mkdir()
    monkeypatch.chdir(tmp_path)
    EncoderSubject.load("minilm", "images")  # a folder of that name comes first
    assert asked == [str(tmp_path / "whisper"), "minilm"]

    def away(name):
        raise OSError("the registry is out of reach")

    monkeypatch.setattr("tokensieve.testbed.real.get", away)
    with pytest.raises(ValueError, match="cannot load 'whisper': the registry is out of reach"):
        EncoderSubject.load("whisper", "images")
