"""Engines of vLLM, and what transformers answers to the same prompts under a sieve."""

import gc
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import tokensieve as ts
from tokensieve import testbed

EXAMPLES = Path(testbed.__file__).parent / "examples"
CLOSE = 1e-4
"""How near the two best logits are where another answer is no error."""


@dataclass(frozen=True)
class Prompt:
    text: str
    images: tuple[Image.Image, ...]
    answer: str = ""


def questions() -> list[Prompt]:
    """The 82 of the packaged examples, about five pictures."""
    asked = json.loads((EXAMPLES / "questions.json").read_text())
    return [
        Prompt(testbed.prompt(q["text"]), (Image.open(EXAMPLES / name).convert("RGB"),), q["answer"])
        for name, several in asked.items()
        for q in several
    ]


@contextmanager
def engine(model: Path, tokensieve: dict[str, Any] | None = None, **more: Any) -> Iterator[Any]:
    """An engine in processes of its own; ``distributed_executor_backend="uni"``: all of it in this one."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    together = more.get("distributed_executor_backend") == "uni"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(not together))
    overrides = {} if tokensieve is None else {"tokensieve": tokensieve}
    options = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "limit_mm_per_prompt": {"image": 3},
    } | more
    llm = LLM(str(model), hf_overrides=overrides, **options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        if together:
            cleanup_dist_env_and_memory()


def request(prompt: Prompt, **plan: Any) -> dict[str, Any]:
    """A prompt as vLLM takes it; ``plan``: method, keep and options of this request."""
    out: dict[str, Any] = {"prompt": prompt.text}
    if prompt.images:
        out["multi_modal_data"] = {"image": list(prompt.images)}
        out["mm_processor_kwargs"] = {f"sieve_{name}": value for name, value in plan.items()}
    return out


def said(llm: Any, prompts: Sequence[Prompt], tokens: int = 4, **plan: Any) -> list[list[int]]:
    """The greedy answers of an engine, as token ids."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=tokens)
    made = llm.generate([request(p, **plan) for p in prompts], sampling, use_tqdm=False)
    return [list(one.outputs[0].token_ids) for one in made]


@dataclass(frozen=True)
class Expected:
    """What transformers answers: token ids, and at each of them how far the best logit is ahead of the next."""

    ids: list[int]
    lead: list[float]


@torch.no_grad()
def expected(
    model: Any, processor: Any, prompts: Sequence[Prompt], tokens: int = 4, batch: int = 16, **plan: Any
) -> list[Expected]:
    """The greedy answers of a transformers model under a sieve; ``plan``: method, keep and what `tokensieve.sieve` takes."""
    out: list[Expected] = []
    plan = dict(plan)
    sieve = ts.sieve(model, plan.pop("method"), **plan) if plan else None
    if sieve is not None:
        sieve.attach()
    try:
        for start in range(0, len(prompts), batch):
            group = prompts[start : start + batch]
            images = [i for p in group for i in p.images]
            given: dict[str, Any] = {"images": images} if images else {}
            inputs = processor(text=[p.text for p in group], padding=True, return_tensors="pt", **given)
            made = model.generate(
                **inputs, max_new_tokens=tokens, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            best = torch.stack(made.logits, 1).float().topk(2).values
            width = inputs["input_ids"].shape[1]
            out += [_until_end(model, row, lead) for row, lead in zip(made.sequences[:, width:], best, strict=True)]
    finally:
        if sieve is not None:
            sieve.detach()
    return out


def _until_end(model: Any, row: torch.Tensor, best: torch.Tensor) -> Expected:
    ids = row.tolist()
    ends = model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    length = next((i + 1 for i, one in enumerate(ids) if one in ends), len(ids))
    return Expected(ids[:length], (best[:length, 0] - best[:length, 1]).tolist())


def differing(got: Sequence[list[int]], wanted: Sequence[Expected]) -> tuple[list[str], list[str]]:
    """The answers that are others: those that are wrong, and those where two tokens were as good as each other."""
    wrong, close = [], []
    for i, (own, theirs) in enumerate(zip(got, wanted, strict=True)):
        if own == theirs.ids:
            continue
        at = next((j for j, (a, b) in enumerate(zip(own, theirs.ids, strict=False)) if a != b), -1)
        told = f"prompt {i}: {own} for {theirs.ids}, ahead by {theirs.lead[at]:.1e} at {at}"
        (close if theirs.lead[at] < CLOSE else wrong).append(told)
    return wrong, close


def kept(llm: Any) -> list[list[int]]:
    """The places of the tokens that the engine kept of the last batch of pictures, in their runs."""
    return llm.apply_model(_kept)[0]


def _kept(model: Any) -> list[list[int]]:
    return [places.tolist() for _, places in model.tokensieve.last]
