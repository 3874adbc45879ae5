"""The check of system 200: patches merged in the midst of the packaged tower, in front of its frozen language model."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.descent import descend
from benchmarks.reference.laco_200 import PatchMerge
from benchmarks.systems.bed import CheckContext, Outcome, check
from tokensieve.sites.encoder import schedule
from tokensieve.sites.model.blocks import stack_of
from tokensieve.testbed import load, packing, probes, questions
from tokensieve.testbed.scenes import Scene, generate

SCENES, HELD, STEPS, BATCH, RATE = 320, 100, 250, 8, 1e-3
AT = 2
"""Blocks of the tower's five in front of the merge."""


@functools.cache
def model() -> Any:
    """The packaged model, of which nothing is trained but copies."""
    made = load()[0]
    return made.requires_grad_(False)


@functools.cache
def tower() -> Any:
    return probes.tower().requires_grad_(False)


@functools.cache
def scenes(split: str) -> list[Scene]:
    count, seed = (SCENES, 950) if split == "train" else (HELD, 5)
    return [generate(seed, index, split) for index in range(count)]


@functools.cache
def states(split: str, block: int) -> Tensor:
    """``(scenes, 577, D)``: what a block takes, class token included; the last are what the tower puts out."""
    out = []
    for start in range(0, len(scenes(split)), 8):
        given = probes.pixels(scenes(split)[start : start + 8])
        with torch.no_grad():
            out.append(tower()(pixel_values=given, output_hidden_states=True).hidden_states[block])
    return torch.cat(out)


class Arm(nn.Module):
    """A merge behind some of the tower's blocks, the frozen blocks behind it, and a projector of its own.

    Args:
        at: blocks in front of the merge.
    """

    def __init__(self, at: int, shortcut: bool):
        super().__init__()
        self.at = at
        self.merge = PatchMerge(tower().config.hidden_size, shortcut)
        self.projector = copy.deepcopy(model().model.multi_modal_projector).requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        """From states ``(B, 577, D)`` to what the language model reads, ``(B, 144, width)``."""
        x = torch.cat([x[:, :1], self.merge(x[:, 1:])], 1)
        for block in stack_of(tower()).layers[self.at :]:
            x = block(x, attention_mask=None)
            x = x[0] if isinstance(x, tuple) else x
        return self.projector(x[:, 1:])


def _logits(arm: Arm, split: str, index: list[int]) -> tuple[Tensor, dict[str, Any]]:
    m = model()
    batch = packing.pack([questions(scenes(split)[i]) for i in index], 145)
    first = m.get_input_embeddings()(torch.tensor([[m.config.text_config.bos_token_id]])).expand(len(index), -1, -1)
    prefix = torch.cat([first, arm(states(split, arm.at)[index])], 1)
    return packing.run(m, prefix, batch), batch


@torch.enable_grad()
def trained(at: int, shortcut: bool, seed: int = 0) -> Arm:
    torch.manual_seed(seed)
    arm = Arm(at, shortcut)

    def loss(step: int) -> Tensor:
        logits, batch = _logits(arm, "train", torch.randint(SCENES, (BATCH,)).tolist())
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=packing.IGNORE)

    descend(arm.parameters(), loss, STEPS, RATE)
    return arm.eval()


@torch.no_grad()
def right(arm: Arm) -> float:
    """The share of held-out questions that the language model answers right."""
    said: list[bool] = []
    for start in range(0, HELD, 10):
        logits, batch = _logits(arm, "test", list(range(start, start + 10)))
        said += [bool(r) for row in packing.right(logits, batch) for r in row]
    return round(sum(said) / len(said), 4)


@check(200)
def laco(_: CheckContext) -> Outcome:
    """Packaged model with a frozen tower and language model, a merge and the projector trained on answers in 250 steps each,
    576 patches to 144: merged behind the second block of five within two points of pixel shuffle behind the encoder, with
    fewer encoder FLOPs; and both without the shortcut past the merge."""
    depth = len(stack_of(tower()).layers)
    n: dict[str, Any] = {
        "in the midst": right(trained(AT, True)),
        "in the midst, no shortcut": right(trained(AT, False)),
        "behind the encoder, pixel shuffle": right(trained(depth, False)),
        "behind the encoder, with the shortcut": right(trained(depth, True)),
    }
    whole = schedule.Depth(stack_of(tower()), ())
    tokens = [577.0] * AT + [145.0] * (depth - AT)
    n["encoder FLOPs"] = round(whole.flops([(t, t) for t in tokens]) / whole.flops([(577.0, 577.0)] * depth), 4)
    best = max(n["behind the encoder, pixel shuffle"], n["behind the encoder, with the shortcut"])
    return n["in the midst"] >= best - 0.02 and n["encoder FLOPs"] < 1, n
