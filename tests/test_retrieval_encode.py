"""Encoders: token vectors, spans, words and markers, from folders of all the kinds that can be read."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.nn.functional import normalize
from transformers import (
    AutoModel,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    ColPaliConfig,
    ColPaliForRetrieval,
    ColPaliProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    T5Config,
    T5EncoderModel,
    T5Model,
    ViTConfig,
    ViTModel,
)  # fmt: skip

from tokensieve.core.plan import plan
from tokensieve.retrieval.encoders import encoded as encode
from tokensieve.retrieval.encoders import loading
from tokensieve.retrieval.encoders.encoded import Encoded, Precomputed, ends, join
from tokensieve.retrieval.encoders.loading import load_encoder
from tokensieve.retrieval.encoders.pages import PageEncoder
from tokensieve.retrieval.encoders.reading import Reading
from tokensieve.retrieval.encoders.text import TextEncoder

TEXTS = [
    "Open a file and read it, line by line. Don't!",
    "x",
    "The file of the reader, re-opened: a File.",
    "naïve Œuvre",
    "",
]


@pytest.fixture(scope="module")
def minilm():
    return load_encoder()


@pytest.fixture
def folder(tmp_path):
    """A small BERT under MiniLM's tokenizer, as transformers saves it."""
    source = loading._minilm()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(source / name, tmp_path / name)
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    BertModel(config).save_pretrained(tmp_path)
    return tmp_path


def write(file: Path, value) -> None:
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(json.dumps(value))


def dense(folder: Path, width: int, activation="Identity", **more) -> torch.Tensor:
    folder.mkdir()
    weight = torch.randn(width, 32, generator=torch.Generator().manual_seed(1))
    save_file({"linear.weight": weight}, folder / "model.safetensors")
    activation = f"torch.nn.modules.activation.{activation}"
    write(
        folder / "config.json",
        {"in_features": 32, "out_features": width, "bias": False, "activation_function": activation, **more},
    )
    return weight


def modules(folder: Path, *kinds: tuple[str, str]) -> None:
    write(folder / "modules.json", [{"idx": i, "name": str(i), "path": p, "type": t} for i, (t, p) in enumerate(kinds)])


def pieces(encoder, encoded, i):
    return encoder.tokenizer.convert_ids_to_tokens(
        encoded.signals["ids"][encoded.offsets[i] : encoded.offsets[i + 1]].tolist()
    )


# ---- MiniLM


def test_texts_are_read_as_in_a_padded_batch(minilm):
    """Vectors and single vectors against the model called on one padded batch with its mask."""
    given = minilm.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = minilm.model(**given).last_hidden_state
    encoded = minilm.documents(TEXTS)
    real = given["attention_mask"]
    assert encoded.lengths.tolist() == real.sum(1).tolist()
    for i in range(len(TEXTS)):
        torch.testing.assert_close(encoded[i], normalize(hidden[i, real[i].bool()], dim=-1), atol=2e-5, rtol=1e-4)
    pooled = (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    torch.testing.assert_close(encoded.single, normalize(pooled, dim=-1), atol=2e-5, rtol=1e-4)


def test_a_text_does_not_depend_on_its_neighbours(minilm):
    together = minilm.documents(TEXTS)
    for i, text in enumerate(TEXTS):
        torch.testing.assert_close(together[i], minilm.documents([text])[0], atol=2e-5, rtol=1e-4)


def test_spans_are_the_characters_of_the_tokens(minilm):
    encoded = minilm.documents(TEXTS)
    for i, text in enumerate(TEXTS):
        for piece, (a, b) in zip(
            pieces(minilm, encoded, i), encoded.spans[encoded.offsets[i] : encoded.offsets[i + 1]].tolist(), strict=True
        ):
            if a < 0:
                assert piece in ("[CLS]", "[SEP]")
            else:
                plain = text[a:b].casefold().translate(str.maketrans({"ï": "i"}))
                assert plain == piece.removeprefix("##")


def test_words_and_stop_words(minilm):
    encoded = minilm.documents(["The readers re-open readers' FILES, the files"])
    tokens = pieces(minilm, encoded, 0)
    word, stop = encoded.signals["word"].tolist(), encoded.signals["stop"].tolist()
    by_piece = {}
    for piece, w in zip(tokens, word, strict=True):
        by_piece.setdefault(piece, set()).add(w)
    assert by_piece["[CLS]"] == by_piece["[SEP]"] == {-1}
    assert all(len(found) == 1 for found in by_piece.values())
    assert len(by_piece["files"] | by_piece["the"] | by_piece["readers"]) == 3
    assert [t for t, s in zip(tokens, stop, strict=True) if s] == ["the", "re", "-", "'", ",", "the"]


def test_subwords_share_a_word(minilm):
    encoded = minilm.documents(["tokensieve sieves tokens"])
    tokens, word = pieces(minilm, encoded, 0), encoded.signals["word"].tolist()
    first = [w for t, w in zip(tokens, word, strict=True) if w == 0]
    assert len(first) > 1
    assert tokens[1 + len(first)] not in (t for t in tokens if t.startswith("##"))


def test_received_attention_is_that_of_the_last_layer(minilm):
    text = TEXTS[0]
    model = AutoModel.from_pretrained(loading._minilm(), attn_implementation="eager")
    given = minilm.tokenizer([text], return_tensors="pt")
    with torch.no_grad():
        last = model(**given, output_attentions=True).attentions[-1]
    got = minilm.documents([text], needs=["received_attention"]).signals["received_attention"]
    torch.testing.assert_close(got, last[0].mean((0, 1)), atol=1e-5, rtol=1e-4)
    assert "received_attention" not in minilm.documents([text]).signals
    assert not hasattr(minilm.model.encoder.layer[-1].attention.self, "_tokensieve_taps")


def test_tokens_leave_inside_the_encoder(minilm):
    inside = TextEncoder(
        minilm.model, minilm.tokenizer, minilm.reading, plan=plan("divprune", 0.5, site="encoder", layers=(2,))
    )
    whole, fewer = minilm.documents(TEXTS), inside.documents(TEXTS)
    # The first and the last token of a text stay.
    assert fewer.lengths.tolist() == [2 + int((n - 2) * 0.5 + 0.5) for n in whole.lengths.tolist()]
    assert inside.identity != minilm.identity
    torch.testing.assert_close(inside.queries(TEXTS).vectors, minilm.queries(TEXTS).vectors)
    # Where every token stays, nothing changes.
    all_ = TextEncoder(
        minilm.model, minilm.tokenizer, minilm.reading, plan=plan("divprune", 1.0, site="encoder", layers=(2,))
    )
    torch.testing.assert_close(all_.documents(TEXTS).vectors, whole.vectors, atol=2e-5, rtol=1e-4)


def test_like_texts_are_alike(minilm):
    s = minilm.queries(["a cat sits on the mat", "the cat is on a rug", "open a network socket"]).single
    assert float(s[0] @ s[1]) > float(s[0] @ s[2]) + 0.3


def test_the_identity_is_of_weights_and_reading(minilm):
    assert load_encoder().identity == minilm.identity
    assert load_encoder(reading=Reading(document_length=64)).identity.digest != minilm.identity.digest
    assert minilm.identity.dim == minilm.documents(["a"]).vectors.shape[1] == 384


def test_no_text_at_all(minilm):
    assert len(minilm.documents([])) == 0
    assert minilm.documents([]).vectors.shape == (0, 384)


def test_long_texts_lose_their_end(minilm):
    assert minilm.documents(["word " * 5000]).lengths.tolist() == [256]


def test_only_strings_are_read(minilm):
    with pytest.raises(ValueError, match="text 1 is a bytes; this encoder reads strings"):
        minilm.documents(["a", b"b"])
    with pytest.raises(ValueError, match="text 0 is no Unicode"):
        minilm.queries(["caf\udce9"])


# ---- folders


def test_a_plain_transformers_encoder(folder):
    encoder = load_encoder(folder)
    assert encoder.documents(TEXTS).single is None
    assert encoder.identity.name == folder.name
    assert encoder.identity.dim == 32


@pytest.mark.parametrize("attend", [False, True])
def test_pylate(folder, attend):
    """Markers behind [CLS], queries filled with mask tokens, punctuation left out of documents, a linear layer per token."""
    modules(folder, ("sentence_transformers.models.Transformer", ""), ("pylate.models.Dense.Dense", "1_Dense"))
    weight = dense(folder / "1_Dense", 8)
    how = {"query_prefix": "[unused0]", "document_prefix": "[unused1]", "query_length": 12, "document_length": 10}
    write(
        folder / "config_sentence_transformers.json",
        {**how, "attend_to_expansion_tokens": attend, "skiplist_words": list(string.punctuation)},
    )
    encoder = load_encoder(folder)
    assert encoder.identity.dim == 8
    queries = encoder.queries(["read a file", "x"])
    assert queries.lengths.tolist() == [12, 12]
    ids = encoder.tokenizer("read a file")["input_ids"]
    ids = [ids[0], encoder.tokenizer.convert_tokens_to_ids("[unused0]"), *ids[1:]]
    real = len(ids)
    ids += (12 - real) * [encoder.tokenizer.mask_token_id]
    assert queries.signals["ids"][:12].tolist() == ids
    mask = torch.tensor([[1] * (12 if attend else real) + [0] * (0 if attend else 12 - real)])
    with torch.no_grad():
        hidden = BertModel.from_pretrained(folder)(torch.tensor([ids]), attention_mask=mask).last_hidden_state[0]
    torch.testing.assert_close(queries[0], normalize(hidden @ weight.T, dim=-1), atol=2e-5, rtol=1e-4)

    documents = encoder.documents(["a, b. c!", "...", "word " * 50])
    assert pieces(encoder, documents, 0) == ["[CLS]", "[unused1]", "a", "b", "c", "[SEP]"]
    assert pieces(encoder, documents, 1) == ["[CLS]", "[unused1]", "[SEP]"]
    assert documents.lengths[2] == 10
    assert documents.spans[:6].tolist() == [[-1, -1], [-1, -1], [0, 1], [3, 4], [6, 7], [-1, -1]]


def test_colbert(folder):
    """The original layout: BERT under a prefix, with the linear layer in one file."""
    tensors = {f"bert.{k}": v for k, v in load_file(folder / "model.safetensors").items()}
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    plain = load_encoder(folder).documents(["a b"])
    save_file({**tensors, "linear.weight": weight}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", {**config, "architectures": ["HF_ColBERT"]})
    write(folder / "artifact.metadata", {"query_maxlen": 9, "doc_maxlen": 20, "mask_punctuation": False})
    encoder = load_encoder(folder)
    assert encoder.queries(["a"]).lengths.tolist() == [9]
    documents = encoder.documents(["a . b"])
    assert pieces(encoder, documents, 0) == ["[CLS]", "[unused1]", "a", ".", "b", "[SEP]"]
    bare = TextEncoder(encoder.model, encoder.tokenizer, Reading(), heads=encoder.heads)
    with torch.no_grad():
        hidden = encoder.model(torch.tensor([encoder.tokenizer("a b")["input_ids"]])).last_hidden_state[0]
    torch.testing.assert_close(normalize(hidden, dim=-1), plain[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(bare.documents(["a b"])[0], normalize(hidden @ weight.T, dim=-1), atol=2e-5, rtol=1e-4)


def test_sentence_transformers_with_prompts_pooling_and_dense(folder):
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3_Normalize")]
    modules(folder, *((f"sentence_transformers.models.{t}", p) for t, p in kinds))
    write(folder / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    weight = dense(folder / "2_Dense", 8, "Tanh")
    write(folder / "sentence_bert_config.json", {"max_seq_length": 20})
    write(folder / "config_sentence_transformers.json", {"prompts": {"query": "query: ", "passage": "passage: "}})
    encoder = load_encoder(folder)
    encoded = encoder.documents(["a file"])
    assert pieces(encoder, encoded, 0) == ["[CLS]", "passage", ":", "a", "file", "[SEP]"]
    assert encoded.spans.tolist() == [[-1, -1], [-1, -1], [-1, -1], [0, 1], [2, 6], [-1, -1]]
    assert encoded.signals["word"].tolist() == [-1, -1, -1, 0, 1, -1]
    with torch.no_grad():
        hidden = encoder.model(torch.tensor([encoder.tokenizer("passage: a file")["input_ids"]])).last_hidden_state[0]
    torch.testing.assert_close(encoded[0], normalize(hidden, dim=-1), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(
        encoded.single[0], normalize((hidden[0] @ weight.T).tanh(), dim=-1), atol=2e-5, rtol=1e-4
    )
    assert pieces(encoder, encoder.queries(["a"]), 0)[1] == "query"
    assert encoder.documents(["word " * 50]).lengths.tolist() == [20]


def test_pooling_by_the_largest_value(folder):
    model = load_encoder(folder)
    encoder = TextEncoder(model.model, model.tokenizer, Reading(pooling="max"))
    with torch.no_grad():
        hidden = model.model(torch.tensor([model.tokenizer("a b")["input_ids"]])).last_hidden_state[0]
    torch.testing.assert_close(
        encoder.documents(["a b"]).single[0], normalize(hidden.amax(0), dim=-1), atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    "said", [{"pooling_mode_lasttoken": True, "pooling_mode_cls_token": False}, {"pooling_mode": "lasttoken"}]
)
def test_pooling_by_the_last_token(folder, said):
    modules(
        folder, ("sentence_transformers.models.Transformer", ""), ("sentence_transformers.models.Pooling", "1_Pooling")
    )
    write(folder / "1_Pooling" / "config.json", said)
    encoded = load_encoder(folder).documents(["a b", "a file"])
    torch.testing.assert_close(encoded.single, encoded.vectors[encoded.offsets[1:] - 1])
    write(folder / "1_Pooling" / "config.json", {"pooling_mode_weightedmean_tokens": True})
    again = load_encoder(folder).documents(["a b", "a file"])
    assert again.single is None
    assert torch.equal(again.vectors, encoded.vectors)


T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [
        lambda **size: T5Model(T5Config(**T5, **size)),
        lambda **size: T5EncoderModel(T5Config(**T5, **size)),
        lambda **size: BartModel(BartConfig(**BART, **size)),
    ],
)
def test_of_encoders_with_decoders_the_encoder_reads(folder, make):
    torch.manual_seed(0)
    model = make(vocab_size=30522, pad_token_id=0).eval()
    model.save_pretrained(folder)
    encoder = load_encoder(folder)
    with torch.no_grad():
        hidden = model.get_encoder()(torch.tensor([encoder.tokenizer("a b")["input_ids"]])).last_hidden_state[0]
    torch.testing.assert_close(encoder.documents(["a b"])[0], normalize(hidden, dim=-1), atol=2e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="received_attention cannot be read from"):
        encoder.documents(["a b"], ["received_attention"])


def test_what_reads_no_texts_is_refused(folder):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**size)).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"ViTModel in .* encodes no texts by themselves"):
        load_encoder(folder)


def test_no_code_of_a_folder_is_run(folder, monkeypatch):
    ran = folder / "ran"
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    mine = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    write(folder / "config.json", config | mine)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match="no code of a folder is run"):
        load_encoder(folder)
    assert not ran.exists()


def test_pickled_weights_are_refused(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights in safetensors"):
        load_encoder(folder)


def test_what_cannot_be_read_is_said(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is no folder and no name on the Hugging Face hub"):
        load_encoder("/nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"config.json is missing"):
        load_encoder(tmp_path / "empty")
    model = load_encoder(folder)
    with pytest.raises(ValueError, match=r"the marker '\[Q\]' is not in the vocabulary"):
        TextEncoder(model.model, model.tokenizer, Reading(query_marker="[Q]"))
    with pytest.raises(ValueError, match="other sites than 'encoder'"):
        TextEncoder(model.model, model.tokenizer, plan=plan("kmeans", 0.5))
    with pytest.raises(ValueError, match="query_length=3; a text needs at least 4 tokens"):
        Reading(query_length=3)
    with pytest.raises(ValueError, match="pooling='first'"):
        Reading(pooling="first")
    modules(folder, ("sentence_transformers.models.Transformer", ""), ("pylate.models.Dense.Dense", "1_Dense"))
    dense(folder / "1_Dense", 8, use_residual=True)
    with pytest.raises(ValueError, match="asks for a residual"):
        load_encoder(folder)
    monkeypatch.setattr(loading, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(ValueError, match=r"in the checkout of tokensieve: pip install '\.\[retrieval\]'"):
        load_encoder()


# ---- pages


class Pages:
    """Stands for a processor: 4 image tokens and a prompt in front of text, left-padded."""

    def process_images(self, images):
        ids = torch.tensor([[9] * 4 + [2, 3]] * len(images))
        pixels = torch.stack([torch.as_tensor(np.asarray(i)).permute(2, 0, 1).float() / 255 for i in images])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}

    def process_queries(self, texts):
        ids = torch.tensor([[0, 0, 4 + len(t)] for t in texts])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def colpali(image_token):
    torch.manual_seed(0)
    text = {
        "model_type": "gemma",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text |= {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 2000}
    sight = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    sight |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    vlm = {
        "model_type": "paligemma",
        "text_config": text,
        "vision_config": sight,
        "image_token_index": image_token,
        "projection_dim": 16,
    }
    return ColPaliForRetrieval(ColPaliConfig(vlm_config=vlm, embedding_dim=8))


def test_pages_of_a_colpali():
    encoder = PageEncoder(colpali(9), Pages())
    pages = [np.full((8, 8, 3), v, dtype=np.uint8) for v in (0, 90, 200, 40, 250)]
    encoded = encoder.documents(pages)
    assert encoded.lengths.tolist() == [6] * 5
    assert encoder.identity.dim == encoded.vectors.shape[1] == 8
    torch.testing.assert_close(encoded[3], encoder.documents(pages[3:4])[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.linalg.vector_norm(encoded.vectors, dim=1), torch.ones(30))
    assert encoder.queries(["a", "bc"]).lengths.tolist() == [1, 1]
    assert len(encoder.documents([])) == 0
    with pytest.raises(ValueError, match="page 1 is a str; ColPaliForRetrieval reads images"):
        encoder.documents([pages[0], "https://example.org/page.png"])
    with pytest.raises(ValueError, match="a query is a string"):
        encoder.queries([pages[0]])


def test_a_colpali_from_its_folder(tmp_path):
    names = ["<unk>", "<pad>", "<bos>", "<eos>", "<image>", "read", "a", "file"]
    words = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, **{f"{n}_token": f"<{n}>" for n in ("unk", "pad", "bos", "eos")}
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = SiglipImageProcessorPil(size={"height": 8, "width": 8})
    images.image_seq_length = 4
    processor = ColPaliProcessor(image_processor=images, tokenizer=tokenizer)
    model = colpali(4)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    encoder, pages = load_encoder(tmp_path), [Image.new("RGB", (30, 20), (v, v, 99)) for v in (0, 90, 200, 40, 250)]
    encoded = encoder.documents(pages)
    with torch.no_grad():
        direct = model.eval()(**processor.process_images(pages[1:2])).embeddings[0]
    torch.testing.assert_close(encoded[1], normalize(direct, dim=-1), atol=1e-5, rtol=1e-4)
    assert encoder.queries(["read a file"]).vectors.shape[1] == 8


# ---- arrays


def test_precomputed_arrays():
    x = np.arange(6.0).reshape(2, 3) + 1
    encoder = Precomputed({"a": x, 7: 2 * x[:1]}, {"q": x[1:]})
    encoded = encoder.documents([7, "a"])
    assert encoded.lengths.tolist() == [1, 2]
    torch.testing.assert_close(encoded[1], normalize(torch.tensor(x).float(), dim=-1))
    torch.testing.assert_close(encoder.queries(["q"])[0], encoded[1][1:])
    with pytest.raises(ValueError, match="no vectors are known for the query 'r'"):
        encoder.queries(["r"])
    for bad in (np.zeros(3), np.full((1, 3), np.nan), np.zeros((0, 3))):
        with pytest.raises(ValueError, match="pass finite values of shape"):
            Precomputed({"a": bad})
    with pytest.raises(ValueError, match="pass real numbers"):
        Precomputed({"a": x * 1j})
    with pytest.raises(ValueError, match="all must have the same width"):
        Precomputed({"a": x, "b": x[:, :2]})


# ---- encoded texts


def some(lengths, seed=0):
    draw = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    signals = {"ids": torch.arange(total), "idf": torch.rand(total, generator=draw)}
    spans = torch.arange(2 * total).view(-1, 2)
    return Encoded(
        torch.randn(total, 3, generator=draw),
        ends(torch.tensor(lengths)),
        spans,
        signals,
        torch.randn(len(lengths), 2, generator=draw),
    )


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_rows_of_encoded_texts(lengths, data):
    x = some(lengths)
    index = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6))
    y = x.rows(index)
    assert len(y) == len(index)
    for i, source in enumerate(index):
        assert torch.equal(y[i], x[source])
        a, b = x.offsets[source : source + 2].tolist()
        c, d = y.offsets[i : i + 2].tolist()
        assert torch.equal(y.spans[c:d], x.spans[a:b])
        assert torch.equal(y.signals["idf"][c:d], x.signals["idf"][a:b])
        assert torch.equal(y.single[i], x.single[source])


def test_joined_saved_and_loaded(tmp_path):
    a, b = some([2, 0, 3]), some([1], seed=5)
    both = join([a, b.with_signals(more=torch.ones(1))])
    assert set(both.signals) == {"ids", "idf"}
    both.save(tmp_path / "x.safetensors")
    back = Encoded.load(tmp_path / "x.safetensors")
    assert back.lengths.tolist() == [2, 0, 3, 1]
    for name in ("vectors", "spans", "single"):
        assert torch.equal(getattr(back, name), getattr(both, name))
    assert torch.equal(back.signals["idf"], both.signals["idf"])
    save_file({"a": torch.zeros(1)}, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="does not hold encoded texts"):
        Encoded.load(tmp_path / "y.safetensors")


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must speak of the same tokens"):
        Encoded(torch.zeros(3, 2), torch.tensor([0, 3]), torch.zeros(2, 2))
    for offsets in ([0, 2], [1, 3], [0, 4, 3]):
        with pytest.raises(ValueError, match="offsets must ascend"):
            Encoded(torch.zeros(3, 2), torch.tensor(offsets), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="nothing to join"):
        encode.join([])
