"""Tiny random models of real architectures in vLLM answer as transformers does, without a plan and under `tokensieve.sieve`."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.vllm import tiny
from tests.vllm.serving import Prompt, differing, engine, expected, said

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
