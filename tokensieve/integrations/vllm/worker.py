"""The worker: behind vLLM's encoder the pictures of a batch lose the tokens that their plans do not keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.core.stage import Stage
from tokensieve.integrations.vllm import choice, hooks, looks, positions
from tokensieve.integrations.vllm.batches import batches, part
from tokensieve.integrations.vllm.eyes import Eyes, Heard, shares
from tokensieve.integrations.vllm.positioned import Positioned
from tokensieve.integrations.vllm.ranks import of_first
from tokensieve.integrations.vllm.refusals import Unserved, reads_encoder
from tokensieve.integrations.vllm.server import Server
from tokensieve.integrations.vllm.stages import count
from tokensieve.integrations.vllm.told import FIELD, Told, unpack
from tokensieve.sites.visual.layout import side_of

ATTENTION = "vllm.model_executor.layers.attention.mm_encoder_attention:MMEncoderAttention"


def install(model: Any, vllm_config: Any) -> None:
    """Have a model of vLLM thin pictures; its config asks for that.

    Raises:
        ValueError: this vLLM or this model cannot, with the reason.
    """
    why = hooks.refusal(hooks.WORKER) or _both_ways(model)
    if why is not None:
        raise Unserved(f"{type(model).__name__} cannot be served under a plan: {why}")
    model.tokensieve = worker = Worker(model, Server(vllm_config.model_config.hf_config), vllm_config)
    model.embed_multimodal = partial(worker.embed, model.embed_multimodal)
    if worker.positioned is not None:
        worker.positioned.install(vllm_config)


class Worker:
    """Thins what an encoder makes of pictures.

    Attributes:
        positioned: the positions of thinned prompts; None where they follow from their length.
        last: what was kept of the last batch of pictures: what was told of each, and the places of its tokens in their runs.
    """

    def __init__(self, model: nn.Module, server: Server, vllm_config: Any):
        self.server, self.anatomy = server, server.anatomy
        parallel = vllm_config.parallel_config.tensor_parallel_size
        self.group = hooks.found("vllm.distributed:get_tp_group")().device_group if parallel > 1 else None
        self.width = vllm_config.model_config.get_inputs_embeds_size()
        scheduler = vllm_config.scheduler_config
        self.most = min(scheduler.max_num_encoder_input_tokens, scheduler.encoder_cache_size)
        self.eyes = self._eyes(model, parallel)
        self.last: list[tuple[Told, Tensor]] = []
        self.positioned = Positioned(model, server) if server.axes else None

    def embed(self, own: Any, **given: Any) -> Any:
        """What vLLM asks of the model for the pictures, or videos, of a batch; ``own`` is the model's function."""
        packed = given.pop(FIELD, None)
        if packed is None:
            plain = own(**given)
            return [self._placed(x, None) for x in plain] if self.positioned is not None else plain
        told = [unpack(one.cpu()) for one in packed]
        self.last = []
        out: list[Tensor] = []
        for start, stop in batches([count(self.server.stage, t.tokens) for t in told], self.most):
            some = part(given, len(told), start, stop)
            if some is None:  # they cannot be told apart
                return self._embed(own, given, told)
            out += self._embed(own, some, told[start:stop])
        return out

    def _embed(self, own: Any, given: Mapping[str, Any], told: Sequence[Told]) -> list[Tensor]:
        stages = [t.stage for t in told if self.eyes is not None and reads_encoder(t.stage.method, self.server.tower)]
        if self.eyes is None or not stages:
            heard: dict[Stage, Heard] = {}
            rows = list(own(**given))
        else:
            with self.eyes.looking(stages) as heard:
                rows = list(own(**given))
        out = []
        for i, (one, x) in enumerate(zip(told, rows, strict=True)):
            signals = partial(self._signals, i, given, told, heard.get(one.stage, {}))
            kept, places = self._agreed(one, x, signals)
            self.last.append((one, places))
            out.append(self._placed(kept, self._channels(one, places, part(given, len(told), i, i + 1))))
        return out

    def _agreed(self, one: Told, x: Tensor, signals: Any) -> tuple[Tensor, Tensor]:
        """The choice of the first rank, on all of them."""
        like = [x.new_empty(one.kept, x.shape[1]), torch.empty(one.kept, dtype=torch.long, device=x.device)]

        def choose() -> list[Tensor]:
            return [t.contiguous() for t in choice.thinned(one.stage, x, self.width, one.runs, signals)]

        kept, places = of_first(choose, like, self.group)
        return kept, places

    def _signals(self, i: int, given: Mapping[str, Any], told: Sequence[Told], heard: Heard) -> list[dict[str, Any]]:
        """What is known of the runs of picture ``i`` of a batch."""
        runs = [n for n, _ in told[i].runs]
        mine = part(given, len(told), i, i + 1)
        if self.anatomy is None or mine is None:
            return [{} for _ in runs]
        parts: dict[str, dict[int, list[Tensor]]] = {}
        rows: list[int] = []
        for name, layers in heard.items():
            for layer, every in layers.items():
                rows = self._rows(given, told, sum(p.shape[1] for p in every))
                each = shares(every, rows)
                if each is None:
                    raise ValueError(
                        f"the encoder's {sum(p.shape[1] for p in every)} rows are not of {len(told)} pictures"
                    )
                parts.setdefault(name, {})[layer] = each[i]
        own = rows[i] if rows else self._patches(mine)
        if own is None:
            return [{} for _ in runs]
        return looks.signals_of(looks.look_of(self.anatomy, mine, runs, parts, own), told[i].stage.method.needs)

    def _rows(self, given: Mapping[str, Any], told: Sequence[Told], total: int) -> list[int]:
        """How many of the encoder's rows are of each picture."""
        each = [part(given, len(told), i, i + 1) for i in range(len(told))]
        if all(one is not None and looks.joins(self.anatomy, one) for one in each):
            images = [looks.images_of(one) for one in each if one is not None]
            return [total * n // sum(images) for n in images]
        return [total * t.tokens // sum(t.tokens for t in told) for t in told]

    def _patches(self, given: Mapping[str, Any]) -> int | None:
        """The encoder's rows of one picture, where nothing was read of them."""
        grid = given.get("image_grid_thw")
        if grid is not None:
            return int(grid.prod())
        patch = side_of(getattr(self.anatomy.vision.config, "patch_size", None))
        pixels = looks.pixels_of(given)
        if pixels is None or patch is None:
            return None
        return len(pixels) * (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)

    def _channels(self, one: Told, places: Tensor, given: Mapping[str, Any] | None) -> Tensor | None:
        return None if self.positioned is None else self.positioned.places(one, places, given)

    def _placed(self, x: Tensor, at: Tensor | None) -> Tensor:
        return x if self.positioned is None else torch.cat([x, positions.channels(at, x)], 1)

    def _eyes(self, model: nn.Module, parallel: int) -> Eyes | None:
        """What looks at the encoder's attention; None where no plan may read it.

        Raises:
            Unserved: the server's plan reads it, and vLLM's encoder is not laid out as was thought.
        """
        stage, tower = self.server.stage, self.server.tower
        blocks = [m for n, m in model.named_modules() if isinstance(m, hooks.found(ATTENTION)) and "audio" not in n]
        why = tower.blind or _odd(blocks, self.anatomy, tower.built, parallel)
        if not why:
            return Eyes(self.anatomy, blocks, self.group)
        if stage is not None and reads_encoder(stage.method, tower):
            raise Unserved(f"{stage.method.name} reads the encoder's attention: {why}")
        return None


def _odd(blocks: Sequence[Any], anatomy: Any, built: int, parallel: int) -> str | None:
    """Why the attention layers that vLLM built cannot be read; None where they can."""
    if not built <= len(blocks) <= len(anatomy.vision.layers):
        return (
            f"vLLM built {len(blocks)} layers of attention where {built} to {len(anatomy.vision.layers)} were expected"
        )
    if anatomy.vision.ragged and getattr(blocks[0].attn_backend, "name", "") == "FLASHINFER":
        return "FlashInfer is not told where pictures begin in a way that can be read; pass --mm-encoder-attn-backend TORCH_SDPA"
    config = anatomy.vision.config
    heads = getattr(config, "num_attention_heads", None) or getattr(config, "num_heads", None)
    if parallel > 1 and blocks[0].num_heads * parallel != heads:
        return f"its {heads} heads are not shared out over {parallel} ranks"
    return None


def _both_ways(model: nn.Module) -> str | None:
    """Why a model whose pictures attend both ways cannot lose tokens; None where its kernels let them."""
    for module in model.modules():
        backend: Any = getattr(module, "attn_backend", None)
        if getattr(module, "use_mm_prefix", False) and not backend.supports_mm_prefix():
            return f"its pictures attend both ways, which {backend.get_name()} does not do; choose another --attention-backend"
    return None
