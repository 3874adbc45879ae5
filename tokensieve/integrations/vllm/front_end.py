"""The front end: a request's plan is read, and its pictures take as many slots of the prompt as tokens of them will stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

from tokensieve.core.stage import Stage
from tokensieve.integrations.vllm import hooks
from tokensieve.integrations.vllm.placeholders import mask_of, thinned
from tokensieve.integrations.vllm.refusals import Unserved, reads_encoder
from tokensieve.integrations.vllm.server import Server
from tokensieve.integrations.vllm.stages import KEY, PREFIX, count, digest
from tokensieve.integrations.vllm.told import FIELD, Told, unpack

NOW: ContextVar[Stage | None] = ContextVar("tokensieve_stage", default=None)
"""The stage of the request that is being read in this thread."""
MEASURES = "tokensieve_measures"
"""What marks the inputs by which vLLM measures the largest picture."""
REMEMBERED = 65536
UNASKED = (
    f"{PREFIX}... in mm_processor_kwargs: this server thins no pictures; start it with "
    f"--hf-overrides '{{\"{KEY}\": {{}}}}', or with a plan of its own in there"
)


def attach(processor: Any) -> Any:
    """Have a processor read plans, where its server was started for that; otherwise requests that bring one are refused.

    Raises:
        Unserved: this vLLM cannot run plans, and the server was started with one.
    """
    config = processor.info.ctx.model_config.hf_config
    if getattr(config, KEY, None) is None:
        processor.apply = partial(_refuse, processor.apply)
        return processor
    why = hooks.refusal(hooks.FRONT)
    if why is not None:
        raise Unserved(why)
    front = FrontEnd(Server(config))
    processor.apply = partial(front.apply, processor.apply)
    processor._get_mm_prompt_updates = partial(front.updates, processor._get_mm_prompt_updates)
    for holder, name in ((processor, hooks.DUMMY), (processor.dummy_inputs, hooks.OLDER_DUMMY)):
        if hasattr(holder, name):
            setattr(holder, name, partial(_measuring, getattr(holder, name)))
    processor.info.get_mm_max_tokens_per_item = partial(front.most, processor.info.get_mm_max_tokens_per_item)
    return processor


class FrontEnd:
    """Stands around what vLLM does with a request. ``own`` is always vLLM's function."""

    def __init__(self, server: Server):
        self.server = server
        self._spans: dict[str, int] = {}

    def apply(self, own: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        """Read a request.

        Raises:
            ValueError: its plan cannot be read or served; that request is refused, and no other.
        """
        given, measures = inputs.hf_processor_mm_kwargs, hasattr(inputs, MEASURES)
        stage = self.server.of_request(given)
        plain = {name: value for name, value in given.items() if not name.startswith(PREFIX)}
        inputs = dataclasses.replace(inputs, hf_processor_mm_kwargs=plain)
        if stage is not None:
            inputs.get_mm_hashes = partial(_hashes, inputs.get_mm_hashes, digest(stage))
        before = NOW.set(stage)
        try:
            out = own(inputs, *rest, **more)
        finally:
            NOW.reset(before)
        if stage is not None and not measures:
            self._check(stage, out)
        return out

    def updates(self, own: Any, items: Any, given: Mapping[str, Any], out: Any) -> Any:
        """What stands in the prompt for each picture that is not known yet: fewer slots, and the plan goes into its item."""
        updates, stage = own(items, given, out), NOW.get()
        if stage is None or "image" not in updates:
            return updates
        known = out.get("image", ())  # vLLM asks for what it does not have in its cache
        pictures = [self._picture(stage, item, several) for item, several in zip(known, updates["image"], strict=True)]
        return {**updates, "image": pictures}

    def most(self, own: Any, *args: Any, **more: Any) -> Any:
        """None where pictures are thinned: vLLM then counts the slots of the largest, which come from :meth:`updates`."""
        return own(*args, **more) if self.server.stage is None else None

    def _picture(self, stage: Stage, item: Any, updates: Any) -> list[Any]:
        if any("embeds" in name for name in item) and reads_encoder(stage.method, self.server.tower):
            raise ValueError(f"{stage.method.name} reads the encoder's attention, and the request brings embeddings")
        out: list[Any] = []
        runs: tuple[tuple[int, int], ...] = ()
        for update in updates:
            content = update.content
            full = content.full
            embedded = [True] * len(full) if content.is_embed is None else content.is_embed(full).tolist()
            left = thinned(full, embedded, partial(count, stage))
            runs = left.runs
            mask = None if all(left.embedded) else partial(mask_of, left.embedded)
            out.append(update.with_content(dataclasses.replace(content, full=list(left.full), is_embed=mask)))
        told = Told(stage, runs, self._span(item, runs))
        field = hooks.found("vllm.multimodal.inputs:MultiModalBatchedField")(keep_on_cpu=True)
        item[FIELD] = hooks.found("vllm.multimodal.inputs:MultiModalFieldElem")(data=told.pack(), field=field)
        return out

    def _span(self, item: Any, runs: tuple[tuple[int, int], ...]) -> int:
        if self.server.one_axis:
            return sum(n for n, _ in runs)
        if "image_grid_thw" not in item:
            raise ValueError("a plan needs the grids of this model's pictures, and its processor makes none")
        merge = getattr(self.server.config.vision_config, "spatial_merge_size", 1)
        t, h, w = item["image_grid_thw"].data.tolist()
        return max(t, h // merge, w // merge)

    def _check(self, stage: Stage, out: Any) -> None:
        ids, ranges = out["prompt_token_ids"], out["mm_placeholders"].get("image", ())
        for last in ranges:
            ends = last.offset + last.length == len(ids)
            if ends and (last.is_embed is None or bool(last.is_embed[-1])):
                raise ValueError("the prompt ends with a picture, some of whose tokens leave; end it with text")
        for known, item in zip(out["mm_hashes"].get("image", ()), out["mm_kwargs"].get("image", ()), strict=True):
            if item is not None and FIELD in item:
                if len(self._spans) >= REMEMBERED:
                    self._spans.clear()
                self._spans[known] = unpack(item[FIELD].data).span
        if stage.positions == "original":
            spans = sum(self._spans.get(known, 0) for known in out["mm_hashes"].get("image", ()))
            text = len(ids) - sum(r.get_num_embeds() for r in ranges)
            limit = getattr(self.server.config.get_text_config(), "max_position_embeddings", None)
            if limit is not None and text + spans > limit:
                raise ValueError(
                    f"the prompt's positions reach {text + spans}, and the model has {limit}; pass {PREFIX}positions='compact', "
                    "or smaller pictures"
                )


def _measuring(own: Any, *args: Any, **more: Any) -> Any:
    out = own(*args, **more)
    setattr(out, MEASURES, True)
    return out


def _refuse(own: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
    if any(name.startswith(PREFIX) for name in inputs.hf_processor_mm_kwargs):
        raise ValueError(UNASKED)
    return own(inputs, *rest, **more)


def _hashes(own: Any, mark: str, *args: Any, **more: Any) -> Any:
    """The hashes of a request's items, those of pictures with the plan's digest."""
    out = own(*args, **more)
    return out if "image" not in out else {**out, "image": [f"{one}-{mark}" for one in out["image"]]}
