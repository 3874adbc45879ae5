"""Prefill over the floor: a randomly initialised LLaVA of about 300 M parameters, 576 -> 64 visual tokens.

The floor is the same prompt given only 64 visual tokens, with no selection. Ours is the language model's prefill under the
sieve plus selection, attention rows included. Ratios of medians within one run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import tokensieve as ts
from tokensieve.bench.clocks import Watchmaker, now
from tokensieve.bench.floor import Free
from tokensieve.bench.results import environment
from tokensieve.registry import card
from tokensieve.sites.anatomy import find

KEEP, TEXT, IMAGE, REPEATS = 64, 32, 9, 5
LIMITS = {True: 1.10, False: 1.15}
"""Over the floor, for methods at the handoff and for those inside the language model."""


def build() -> LlavaForConditionalGeneration:
    """CLIP-L geometry at half width in front of a Llama of 16 layers; SDPA throughout."""
    vision = CLIPVisionConfig(
        hidden_size=512,
        num_hidden_layers=12,
        num_attention_heads=8,
        intermediate_size=2048,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=1024, num_hidden_layers=16, num_attention_heads=16, num_key_value_heads=16, intermediate_size=2752,
        vocab_size=16000, max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, attn_implementation="sdpa")
    return LlavaForConditionalGeneration(config).eval()


def inputs(device: str) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 16000, (1, TEXT + 576), generator=g)
    ids[:, 8 : 8 + 576] = IMAGE
    pixels = torch.randn(1, 3, 336, 336, generator=g)
    return {
        "input_ids": ids.to(device),
        "attention_mask": torch.ones_like(ids).to(device),
        "pixel_values": pixels.to(device),
    }


@torch.no_grad()
def floor(model: Any, given: dict[str, torch.Tensor]) -> float:
    short = torch.randn(
        1, TEXT + KEEP, model.config.text_config.hidden_size, device=given["input_ids"].device, dtype=model.dtype
    )
    mask = torch.ones(short.shape[:2], dtype=torch.long, device=short.device)
    began = now(model.device)
    model.model.language_model(inputs_embeds=short, attention_mask=mask, use_cache=True)
    return now(model.device) - began


@torch.no_grad()
def ours(model: Any, given: dict[str, torch.Tensor], stage: ts.Stage) -> tuple[float, float]:
    """(prefill, selection) in seconds."""
    watch, sieve = Watchmaker(find(model)), ts.sieve(model, stage)
    with watch.attached(), sieve, watch.watching(sieve) as split:
        model(**given, use_cache=True, logits_to_keep=1)
    return split.prefill, split.selection


def main(out: Path | None = None, names: Sequence[str] = ()) -> dict[str, Any]:
    """Some methods, or all."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, given = build().to(device), inputs(device)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    rows: dict[str, dict[str, float]] = {}
    handoff = {name: card(name).site == "handoff" for f in ("baseline", "vlm") for name in ts.methods(family=f)}
    names = names or [name for name in handoff if card(name).site not in ("encoder", "focus", "cross")]
    stages = {name: ts.method(name, keep=KEEP) for name in names}
    free = {name: ts.Stage(Free(), KEEP, "prefill", (s.layer,)) for name, s in stages.items() if not handoff[name]}
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in stages}
    # Floor and ours take turns, so that a slow spell of the machine meets both.
    for turn in track(range(REPEATS + 1), description="rounds", console=Console(stderr=True)):
        for name, stage in stages.items():
            base = floor(model, given) if handoff[name] else ours(model, given, free[name])[0]
            prefill, selection = ours(model, given, stage)
            if turn:
                times[name].append((base, prefill, selection))
    for name, taken in times.items():
        base, prefill, selection = (1000 * median(t[i] for t in taken) for i in range(3))
        ratio = median((p + s) / b for b, p, s in taken)
        rows[name] = {"floor ms": base, "prefill ms": prefill, "selection ms": selection, "over floor": ratio}
    table = Table(
        "method",
        "floor ms",
        "prefill ms",
        "selection ms",
        "over floor",
        title=f"{size:.0f} M parameters, 576 -> {KEEP}, {device}",
    )
    for name, row in rows.items():
        limit = LIMITS[handoff[name]]
        mark = " ok" if row["over floor"] <= limit else f" above {limit}"
        table.add_row(name, *(f"{v:.2f}" for v in list(row.values())[:3]), f"{row['over floor']:.3f}{mark}")
    table.caption = "in-LM methods: over the same counts per layer given free"
    Console().print(table)
    result = {"benchmark": "prefill", "environment": environment(), "parameters_m": size, "seed": 0, "rows": rows}
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None, sys.argv[2:])
