"""Tiny random models of real architectures in vLLM answer as transformers does, without a plan and under `tokensieve.sieve`."""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.vllm import tiny
from tests.vllm.serving import Prompt, differing, engine, expected, kept, request, said

SIZES = {"square": (168, 168), "wide": (252, 84), "tall": (84, 252)}
PLANS = {
    "divprune at 16": {"method": "divprune", "keep": 16},
    "divprune at a quarter": {"method": "divprune", "keep": 0.25},
    "compact": {"method": "divprune", "keep": 16, "positions": "compact"},
    "attention": {"method": "fastervlm", "keep": 16},
    "merged": {"method": "visionzip", "keep": 0.25},
}
CI = "qwen25"
TOKENS = 8


def image(kind, seed):
    """Patches that differ: blurred noise."""
    wide, high = SIZES[kind]
    noise = np.random.default_rng(seed).random((high // 6, wide // 6, 3)) * 255
    return Image.fromarray(noise.astype("uint8")).resize((wide, high))


FILM = {"fps": 2.0, "duration": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3], "video_backend": "none"}


def clip():
    return np.stack([np.asarray(image("square", 10 + i).resize((112, 112))) for i in range(4)])


def prompts(name):
    shown = tiny.picture(name)
    every = [("square",), ("wide",), ("tall",), ("square", "tall"), ("wide", "square", "tall"), ()]
    return [
        Prompt(shown * len(kinds) + "what is it?", tuple(image(k, i) for i, k in enumerate(kinds))) for kinds in every
    ]


@pytest.fixture(
    scope="module", params=[pytest.param(n, marks=[] if n == CI else pytest.mark.slow) for n in tiny.MODELS]
)
def pair(request, tmp_path_factory):
    """An engine, and the model and processor of transformers."""
    name = request.param
    folder = tiny.save(name, tmp_path_factory.mktemp(name))
    # A picture is cut in the middle: prompts are read in chunks.
    chunks = (
        {"max_num_batched_tokens": 24, "max_num_seqs": 2, "enable_chunked_prefill": True} if name == "qwen2" else {}
    )
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with engine(folder, {}, max_model_len=4096, distributed_executor_backend="uni", **chunks) as llm:
        yield name, llm, model, AutoProcessor.from_pretrained(folder)


def test_without_a_plan_it_is_the_model(pair):
    name, llm, model, processor = pair
    asked = prompts(name)
    wrong, close = differing(said(llm, asked, TOKENS), expected(model, processor, asked, TOKENS, 1))
    print(name, "no plan", len(asked) - len(wrong) - len(close), close)
    assert wrong == []


@pytest.mark.parametrize("plan", PLANS)
def test_answers_are_those_of_the_sieve(pair, plan):
    name, llm, model, processor = pair
    asked = prompts(name)
    own = said(llm, asked, TOKENS, **PLANS[plan])
    wrong, close = differing(own, expected(model, processor, asked, TOKENS, 1, **PLANS[plan]))
    print(name, plan, len(asked) - len(wrong) - len(close), "of", len(asked), close)
    assert wrong == []


@torch.no_grad()
def filmed(model, processor, prompt, places, tokens):
    """The greedy answer about a picture and a video, where of the picture's tokens those at ``places`` are there, and all of the
    video's, each at its own position; each token anew from all before it."""
    shown = {"images": list(prompt.images), "videos": [clip()], "video_metadata": [FILM], "do_sample_frames": False}
    inputs = processor(text=[prompt.text], **shown, return_tensors="pt")
    ids = inputs["input_ids"]
    base = model.model
    embedded = model.get_input_embeddings()(ids)
    for kind, token in (("image", model.config.image_token_id), ("video", model.config.video_token_id)):
        pixels = inputs["pixel_values" if kind == "image" else "pixel_values_videos"]
        made = getattr(base, f"get_{kind}_features")(pixels, inputs[f"{kind}_grid_thw"], return_dict=True).pooler_output
        embedded[ids == token] = torch.cat(list(made))
    names = set(inspect.signature(base.get_rope_index).parameters) & set(inputs)
    at, ahead = base.get_rope_index(**{name: inputs[name] for name in names})
    slots = (ids[0] == model.config.image_token_id).nonzero()[:, 0]
    stay = torch.ones_like(ids[0], dtype=torch.bool)
    stay[slots] = False
    stay[slots[places]] = True
    embedded, at = embedded[:, stay], at[:, :, stay]
    out = []
    for i in range(tokens):
        states = base.language_model(inputs_embeds=embedded, position_ids=at).last_hidden_state
        out.append(int(model.lm_head(states[:, -1]).argmax()))
        following = torch.full((3, 1, 1), ids.shape[1] + i + int(ahead))
        embedded = torch.cat([embedded, model.get_input_embeddings()(torch.tensor([[out[-1]]]))], 1)
        at = torch.cat([at, following], 2)
    return out


def test_a_video_beside_a_picture_passes_whole(pair):
    name, llm, model, processor = pair
    if name != CI:
        pytest.skip("one model with videos")
    from vllm import SamplingParams

    shown = tiny.picture(name) + "<|vision_start|><|video_pad|><|vision_end|>what is it?"
    prompt = Prompt(shown, (image("tall", 3),))
    for plan, left in (({}, None), ({"method": "divprune", "keep": 9}, 9)):
        asked = request(prompt, **plan)
        asked["multi_modal_data"]["video"] = [(clip(), FILM | {"do_sample_frames": False})]
        sampling = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
        made = llm.generate([asked], sampling, use_tqdm=False)[0]
        held = sum(made.prompt_token_ids.count(t) for t in (model.config.image_token_id,))
        places = list(range(held)) if left is None else kept(llm)[0]
        assert held == len(places)
        assert list(made.outputs[0].token_ids) == filmed(model, processor, prompt, places, TOKENS)
