"""Cross-encoders: they rank the best again, and where they fail nothing is lost."""

from __future__ import annotations

import pytest
import torch
from fastapi.testclient import TestClient
from tokenizers import Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
from typer.testing import CliRunner

from tests.shelf import Words
from tokensieve.cli.main import app
from tokensieve.retrieval.encoders import loading
from tokensieve.retrieval.encoders.cross import load_cross_encoder
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.service import application
from tokensieve.retrieval.sources.texts import Text

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "file", "read", "open", "sat", "the", "note", "number"]


class Longest:
    """Likes long passages."""

    def scores(self, query, passages):
        return [float(len(p)) for p in passages]


class Broken:
    def scores(self, query, passages):
        raise RuntimeError("out of memory")


@pytest.fixture
def shelf(tmp_path):
    made = Library.create(tmp_path / "my.index", Recipe(keep=1.0, codec="float32"), Words())
    made.put([Text(f"n{i:02}", "note " + "cat " * (i % 7) + f"number {i}") for i in range(30)])
    made.close()
    return made


@pytest.fixture
def model(tmp_path):
    """A folder as sentence-transformers saves a cross-encoder, with random weights."""
    torch.manual_seed(0)

    def save(labels=1, name="model"):
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = BertConfig(
            vocab_size=len(WORDS), max_position_embeddings=64, num_labels=labels, initializer_range=0.5, **shape
        )
        BertForSequenceClassification(config).save_pretrained(tmp_path / name)
        tokens = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
        tokens.pre_tokenizer = Whitespace()
        tokens.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
        )
        PreTrainedTokenizerFast(
            tokenizer_object=tokens, pad_token="[PAD]", unk_token="[UNK]", model_max_length=512
        ).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def test_scores_are_those_of_each_pair_alone(model):
    cross = load_cross_encoder(model())
    assert cross.longest == 64
    passages = ["the cat sat", "a dog", "read the file " * 40, "", *(f"note {'cat ' * i}" for i in range(20))]
    got = cross.scores("open a file", passages)
    for passage, score in zip(passages, got, strict=True):
        given = cross.tokenizer(["open a file"], [passage], truncation=True, max_length=64, return_tensors="pt")
        assert score == pytest.approx(float(cross.model(**given).logits.detach()), abs=1e-5)
    assert len({round(s, 4) for s in got}) > 10


def test_it_ranks_the_best_again(shelf):
    plain = shelf.search("cat number", 50)
    got = shelf.search("cat number", 5, cross=Longest())
    want = sorted(plain, key=lambda r: (-len(r.text), r.id))
    assert [r.id for r in got] == [r.id for r in want[:5]]
    assert [r.cross for r in got] == [float(len(r.text)) for r in got]
    assert {r.id: r.score for r in got}.items() <= {r.id: r.score for r in plain}.items()
    assert [r.id for r in shelf.search("cat number", 5, cross=Longest(), offset=5)] == [r.id for r in want[5:10]]
    both = shelf.search(["cat", "note"], 3, cross=Longest(), fuse="rrf", per_document=True)
    assert [[r.cross for r in one] == sorted((r.cross for r in one), reverse=True) for one in both] == [True, True]
    with pytest.raises(ValueError, match="leave out fuse, offset, per_document and the cross-encoder"):
        shelf.search("cat", keep=0.5, cross=Longest())


def test_one_that_fails_is_said_and_loses_nothing(shelf):
    (answered,) = shelf.answer(["cat number"], 5, cross=Broken(), offset=1)
    assert [r.id for r in answered.results] == [r.id for r in shelf.search("cat number", 5, offset=1)]
    assert answered.notes == ("the cross-encoder failed, and ranked nothing (RuntimeError: out of memory)",)
    assert answered.results[0].notes == answered.notes


def test_over_http(shelf):
    client = TestClient(application(shelf, hosts=None, cross=Longest()))
    hits = client.post("/search", json={"query": "cat", "k": 3, "cross": True}).json()["hits"]
    assert [h["cross"] for h in hits] == [float(len(h["text"])) for h in hits]
    assert client.post("/search", json={"query": "cat"}).json()["hits"][0]["cross"] is None
    assert client.get("/about").json()["cross"] is True
    got = TestClient(application(shelf, hosts=None)).post("/search", json={"query": "cat", "cross": True})
    assert "has no cross-encoder" in got.json()["notes"][0]
    assert got.json()["hits"][0]["cross"] is None
    broken = TestClient(application(shelf, hosts=None, cross=Broken())).post(
        "/search", json={"query": "cat", "cross": True}
    )
    assert "cross-encoder failed" in broken.json()["notes"][0]
    assert broken.json()["hits"]


def test_by_command(shelf, model, monkeypatch):
    monkeypatch.setattr(loading, "load_encoder", lambda source=None, **_: Words())
    at = model()
    done = CliRunner().invoke(
        app, ["search", str(shelf.folder), "cat", "-k", "30", "--cross-encoder", str(at), "--json"]
    )
    assert done.exit_code == 0, done.exception
    cross = load_cross_encoder(at)
    want = sorted(shelf.search("cat", 30), key=lambda r: -cross.scores("cat", [r.text])[0])
    assert done.stdout.index(want[0].id) < done.stdout.index(want[-1].id)


def test_what_is_no_cross_encoder_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="has 3 outputs; a cross-encoder that ranks has one"):
        load_cross_encoder(model(3, "three"))
    with pytest.raises(ValueError, match="is no folder and no name"):
        load_cross_encoder("/no/such/folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no cross-encoder that can be read"):
        load_cross_encoder(tmp_path / "empty")
    at = model(1, "pickled")
    (at / "model.safetensors").rename(at / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        load_cross_encoder(at)
