"""The positions of thinned prompts in a model of vLLM whose rotary tables have several axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokensieve.integrations.vllm import hooks
from tokensieve.integrations.vllm.placeholders import runs_of
from tokensieve.integrations.vllm.positions import ThinnedRun, begun, filled, places, split
from tokensieve.integrations.vllm.server import Server
from tokensieve.integrations.vllm.told import FIELD, Told, unpack

RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
GATHER = "_gather_mm_embeddings"


class Positioned:
    """Gives a model the functions by which vLLM asks for positions, and for those of what pruning left.

    Args:
        model: of vLLM; where it has positions of several axes of its own, theirs are asked for.
    """

    def __init__(self, model: Any, server: Server):
        self.model, self.config = model, server.config
        self.own = None if server.one_axis else model.get_mrope_input_positions
        self.merge = getattr(getattr(self.config, "vision_config", None), "spatial_merge_size", 1)
        names = [f"{kind}_token_{end}" for kind in ("image", "video") for end in ("id", "index")]
        self.slots = torch.tensor([v for v in (getattr(self.config, n, None) for n in names) if v is not None])

    def install(self, vllm_config: Any) -> None:
        """Switch on, for pictures, what vLLM does for videos that were pruned."""
        model = self.model
        model.supports_mrope = model.supports_multimodal_pruning = True
        model.get_mrope_input_positions = self.begun
        model.recompute_mrope_positions = self.filled
        seen = vllm_config.model_config.multimodal_config
        object.__setattr__(seen, "is_multimodal_pruning_enabled", lambda: True)
        model.is_multimodal_pruning_enabled = False  # the model's own, which adds channels for videos
        _tell_runners()
        if self.own is None:
            _dynamic_tokens(model)

    def places(self, told: Told, kept: Tensor, given: Mapping[str, Any] | None) -> Tensor | None:
        """``(K, 3)``: where the kept tokens, ``(K,)`` places in their runs, lie; None where their slots say it already."""
        if told.stage.positions == "compact":
            return None
        grid = None
        if self.own is not None and given is not None:
            t, h, w = given["image_grid_thw"].flatten().tolist()
            grid = (t, h // self.merge, w // self.merge)
        most = max(n for n, _ in told.runs)
        return places(most, grid)[kept.cpu()]

    # ---- what vLLM asks ---------------------------------------------------------------------------------------------------

    def begun(self, input_tokens: Sequence[int], mm_features: Sequence[Any]) -> tuple[Tensor, int]:
        """Positions ``(3, L)`` of a prompt, and by how much what is written behind it is ahead of its length."""
        features = sorted(mm_features, key=lambda f: f.mm_position.offset)
        runs, full = self._runs(features)
        length = len(input_tokens)
        thins = any(run.kept < run.tokens for run in runs)
        told = next((f for f in features if f.data is not None and FIELD in f.data), None)
        if thins and told is not None and unpack(told.data[FIELD].data).stage.positions == "compact":
            return torch.arange(length).expand(3, -1).contiguous(), 0
        lost = sum(run.tokens - run.kept for run in runs)
        if self.own is None:
            every = torch.arange(length + lost).expand(3, -1)
        else:
            ids: list[int] = []
            at = 0
            for run in runs:
                ids += [*input_tokens[at : run.start + run.kept], *[input_tokens[run.start]] * (run.tokens - run.kept)]
                at = run.start + run.kept
            every = torch.as_tensor(self.own([*ids, *input_tokens[at:]], full)[0])
        return begun(every, runs, length)

    def filled(
        self,
        input_ids: Any,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[list[Tensor], Tensor, int]:
        """The embeddings of a chunk without their channels, and the positions with those of its kept tokens."""
        device, length = mrope_positions.device, mrope_positions.shape[1]
        positions = mrope_positions
        clean = []
        if len(multimodal_embeddings):
            each = [split(x) for x in multimodal_embeddings]
            clean = [x for x, _ in each]
            at = torch.cat([p for _, p in each]).to(device)
            ids = torch.as_tensor(input_ids, device=device)
            slots = torch.isin(ids, self.slots.to(device)).nonzero()[:, 0]
            slots = slots[slots >= num_computed_tokens][: len(at)]
            positions = filled(positions, at, slots)
        # A prompt ends with text, whose positions are known from the start.
        return clean, positions, int(positions[:, length - 1].max()) + 1 - length

    def _runs(self, features: Sequence[Any]) -> tuple[list[ThinnedRun], list[Any]]:
        """The runs of a thinned prompt's pictures, and the features as they would lie in the prompt that holds all tokens."""
        runs: list[ThinnedRun] = []
        full, ahead = [], 0
        for feature in features:
            where, lost = feature.mm_position, 0
            if feature.data is not None and FIELD in feature.data:
                mask = where.is_embed if where.is_embed is not None else torch.ones(where.length, dtype=torch.bool)
                told = unpack(feature.data[FIELD].data).runs
                mine = [ThinnedRun(where.offset + s, k, n) for (s, k), (n, _) in zip(runs_of(mask), told, strict=True)]
                runs += mine
                lost = sum(run.tokens - run.kept for run in mine)
            moved = dataclasses.replace(where, offset=where.offset + ahead, length=where.length + lost)
            full.append(dataclasses.replace(feature, mm_position=moved))
            ahead += lost
        return runs, full


def _dynamic_tokens(model: Any) -> None:
    """Positions have their tokens on the last axis: what compiles a language model of one axis is told so."""
    for module in model.modules():
        dims = getattr(module, "_dynamic_arg_dims", None)
        if dims is None or "positions" not in dims:
            continue
        named = dims["positions"]
        dims["positions"] = {-1: next(iter(named.values()))} if isinstance(named, dict) else -1


def _tell_runners() -> None:
    """vLLM's runners ask whether pruning is on when they have loaded the model, and some never do (that for processors)."""
    runner = hooks.found(RUNNER)
    own = getattr(runner, GATHER)
    if hasattr(own, "tokensieve"):
        return

    def gather(self: Any, *args: Any, **more: Any) -> Any:
        pruned = getattr(self.get_model(), "supports_multimodal_pruning", False)
        self.is_multimodal_pruning_enabled = self.is_multimodal_pruning_enabled or (
            pruned and self.model_config.multimodal_config.is_multimodal_pruning_enabled()
        )
        return own(self, *args, **more)

    gather.tokensieve = True  # type: ignore[attr-defined]
    setattr(runner, GATHER, gather)
