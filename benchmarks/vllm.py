"""Requests per second of vLLM under plans, and what the plugin costs a server without one.

`python -m benchmarks.vllm` in the environment of `make vllm` (`out/vllm/.venv/bin/python`). A random LLaVA of 214 million
parameters, 576 visual tokens a picture; 12 requests at once, each about a picture of its own, 32 tokens out, no prefix cache. The
plans come in turns within one server, three rounds; ratios are of the medians. `--plain` compares two servers of that model
without a plan, with the plugin and without it, in ten rounds in turns.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tokensieve import testbed
from tokensieve.bench.results import environment
from tokensieve.core.files import write_json
from tokensieve.testbed.saved import hub_names
from tokensieve.testbed.words import SPECIAL, VOCABULARY

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}  # fmt: skip
PLANS: dict[str, dict[str, Any]] = {
    "no plan": {},
    "divprune at 64": {"method": "divprune", "keep": 64},
    "fastervlm at 64": {"method": "fastervlm", "keep": 64},
}
REQUESTS, OUT, ROUNDS, BLOCK, SLOTS = 12, 32, 3, 128, 16384
QUESTION = testbed.prompt("how many digits are there ?")


def build(folder: Path) -> Path:
    """A random LLaVA with the packaged processor."""
    token = {name: VOCABULARY.index(name) for name in SPECIAL}
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=8, image_size=336, patch_size=14
        ),
        text_config=LlamaConfig(
            hidden_size=1024, intermediate_size=2816, num_hidden_layers=16, num_attention_heads=16, num_key_value_heads=16,
            vocab_size=len(VOCABULARY), max_position_embeddings=2048, pad_token_id=token["<pad>"], bos_token_id=token["<s>"],
            eos_token_id=token["</s>"],
        ),
        image_token_index=token["<image>"], vision_feature_layer=-2, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    testbed.build_processor().save_pretrained(folder)
    hub_names(folder)
    return folder


def engine(model: Path, overrides: dict[str, Any], **more: Any) -> Any:
    from vllm import LLM

    return LLM(
        str(model), hf_overrides=overrides, enforce_eager=True, max_model_len=1024, enable_prefix_caching=False, **more
    )


def requests(seed: int, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Pictures that no round before had."""
    rng = np.random.default_rng(seed)
    pictures = [Image.fromarray((rng.random((336, 336, 3)) * 255).astype("uint8")) for _ in range(REQUESTS)]
    own = {f"sieve_{name}": value for name, value in plan.items()}
    more = {"mm_processor_kwargs": own} if own else {}
    return [{"prompt": QUESTION, "multi_modal_data": {"image": p}} | more for p in pictures]


def speed(llm: Any, seed: int, plan: dict[str, Any]) -> tuple[float, int]:
    """Requests per second, and the tokens of a prompt."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=OUT, ignore_eos=True)
    asked = requests(seed, plan)
    began = perf_counter()
    made = llm.generate(asked, sampling, use_tqdm=False)
    return REQUESTS / (perf_counter() - began), len(made[0].prompt_token_ids)


def under_plans(folder: Path) -> list[dict[str, Any]]:
    llm = engine(build(folder), {"tokensieve": {}}, dtype="bfloat16", max_num_seqs=REQUESTS)
    seed, rates, length = 0, {name: [] for name in PLANS}, {}
    for turn in range(ROUNDS + 1):
        for name, plan in PLANS.items():
            seed += 1
            rate, length[name] = speed(llm, seed, plan)
            if turn:  # the first round warms up
                rates[name].append(rate)
    llm.llm_engine.engine_core.shutdown()
    plain = statistics.median(rates["no plan"])
    return [
        {
            "plan": name,
            "prompt": length[name],
            "requests per second": rates[name],
            "ratio": statistics.median(rates[name]) / plain,
            "blocks": -(-(length[name] + OUT) // BLOCK),
            "concurrent": SLOTS // (-(-(length[name] + OUT) // BLOCK) * BLOCK),
        }
        for name in PLANS
    ]


def without_a_plan(folder: Path, rounds: int = 10) -> dict[str, Any]:
    """Two servers in turns: one that has the plugin, and one that is told to load none."""
    model = build(folder)
    llms = {}
    for name, plugins in (("with the plugin", None), ("without", "")):
        os.environ.pop("VLLM_PLUGINS", None)
        if plugins is not None:
            os.environ["VLLM_PLUGINS"] = plugins
            from vllm import plugins as loaded

            _forgotten(loaded)
        llms[name] = engine(model, {}, dtype="bfloat16", max_num_seqs=REQUESTS)
    ratios, seed = [], 1000
    for turn in range(rounds + 1):
        rates = {}
        order = list(llms) if turn % 2 else list(llms)[::-1]
        seed += 1
        for name in order:
            rates[name], _ = speed(llms[name], seed, {})
        if turn:
            ratios.append(rates["with the plugin"] / rates["without"])
    for llm in llms.values():
        llm.llm_engine.engine_core.shutdown()
    gc.collect()
    return {"ratios": ratios, "median": statistics.median(ratios)}


def _forgotten(loaded: Any) -> None:
    """What the plugin registered in this process is as it was."""
    from vllm import ModelRegistry

    from tokensieve.integrations.vllm import architectures, configure, hooks

    loaded.plugins_loaded = False
    for name, plain in architectures.PLAIN.items():
        ModelRegistry.models[name] = plain
        hooks.found(configure.TABLE).pop(name, None)


def main(out: Path, plain: bool) -> None:
    os.environ |= SETTINGS
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        if plain:
            result: Any = without_a_plan(Path(folder))
            console.print(f"with the plugin for without it: {result['median']:.2f} ({min(result['ratios']):.2f} to "
                          f"{max(result['ratios']):.2f} in {len(result['ratios'])} rounds)")  # fmt: skip
        else:
            result = under_plans(Path(folder))
            table = Table("plan", "prompt", "requests/s", "ratio", "blocks", "concurrent")
            for row in result:
                rates = ", ".join(f"{r:.2f}" for r in row["requests per second"])
                table.add_row(
                    row["plan"],
                    str(row["prompt"]),
                    rates,
                    f"{row['ratio']:.2f}",
                    str(row["blocks"]),
                    str(row["concurrent"]),
                )
            console.print(table)
    write_json(out, {"environment": environment(), "result": result})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain", action="store_true", help="compare servers without a plan")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/vllm.json"))
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    main(given.out, given.plain)
