"""Eyes: what the encoder's attention in vLLM says of pictures, in the shapes in which a sieve on transformers reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from tokensieve.core.stage import Stage
from tokensieve.integrations.vllm.choice import said
from tokensieve.integrations.vllm.ranks import all_heads
from tokensieve.sites.encoder.watch import Watch
from tokensieve.sites.model import taps
from tokensieve.sites.model.structure import Anatomy
from tokensieve.sites.visual.layout import rowwise

Heard = dict[str, dict[int, list[Tensor]]]
"""By signal and layer, one ``(1, rows, ...)`` for each of the encoder's images, or windows."""


class Eyes:
    """Looks at the blocks of an encoder that a stage reads, while :meth:`looking`.

    Args:
        anatomy: of the transformers model with the same config.
        blocks: vLLM's attention layers of the encoder, in order.
        group: of the ranks that share the heads; None where each has all.
    """

    def __init__(self, anatomy: Anatomy, blocks: Sequence[nn.Module], group: Any = None):
        self.anatomy, self.blocks, self.group = anatomy, blocks, group
        self._watches: dict[Stage, Watch] = {}
        self._hooked: set[int] = set()
        self._now: list[Watch] = []

    def watch(self, stage: Stage) -> Watch:
        """What records the signals of a stage; the blocks that it reads are hooked from then on."""
        assert self.anatomy.vision is not None
        if stage not in self._watches:
            clock = cast(Any, nullcontext())  # vLLM times its own
            made = Watch(self.anatomy.vision, stage.method.needs, clock, (self.anatomy.feature_layer,))
            for block in set(made.blocks) - self._hooked:
                self.blocks[block].register_forward_pre_hook(partial(self._see, block), with_kwargs=True)
                self._hooked.add(block)
            self._watches[stage] = made
        return self._watches[stage]

    @contextmanager
    def looking(self, stages: Sequence[Stage]) -> Iterator[dict[Stage, Heard]]:
        """What is heard for each stage, filled when the block ends."""
        heard: dict[Stage, Heard] = {}
        self._now = [self.watch(stage) for stage in dict.fromkeys(stages)]
        for watch in self._now:
            watch.seen = {}
        try:
            yield heard
            for stage in dict.fromkeys(stages):
                heard[stage] = _apart(self.watch(stage).seen or {})
        finally:
            for watch in self._now:
                watch.seen = None
            self._now = []

    def _see(self, block: int, module: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        if not self._now:
            return
        try:
            for call in calls(module, *arguments(args, given), self.group):
                for watch in self._now:
                    watch.note(block, call)
        except Exception as error:  # it would end the engine; methods that miss the signal say so
            said(f"block {block} of the encoder cannot be read: {error}")


def arguments(args: tuple[Any, ...], given: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
    """Query, key, value and borders among the arguments of vLLM's attention."""
    names = ("query", "key", "value", "cu_seqlens")
    every = {**dict(zip(names, args, strict=False)), **given}
    return every["query"], every["key"], every["value"], every.get("cu_seqlens")


def calls(
    module: Any, query: Tensor, key: Tensor, value: Tensor, borders: Tensor | None, group: Any
) -> list[taps.Call]:
    """An attention of vLLM as a sieve sees one: ``(B, H, n, d)`` each, one call for each of several sequences in a row."""
    heads = (module.num_heads, module.num_kv_heads, module.num_kv_heads)
    q, k, v = (
        all_heads(x.reshape(*x.shape[:2], number, module.head_size).transpose(1, 2), 1, group)
        for x, number in zip((query, key, value), heads, strict=True)
    )
    return taps.segments(taps.Call(q, k, v, None, float(module.scale), False), borders)


def _apart(seen: Mapping[str, Mapping[int, Sequence[Tensor]]]) -> Heard:
    """Row by row, ``(1, rows, ...)`` each."""
    return {
        name: {
            layer: [one for call in heard for one in rowwise(name, call).split(1)] for layer, heard in layers.items()
        }
        for name, layers in seen.items()
    }


def shares(parts: Sequence[Tensor], rows: Sequence[int]) -> list[list[Tensor]] | None:
    """The parts of each picture, of which the encoder has so many rows; None where parts lie across pictures."""
    out: list[list[Tensor]] = []
    at = iter(parts)
    for wanted in rows:
        mine: list[Tensor] = []
        while sum(p.shape[1] for p in mine) < wanted:
            one = next(at, None)
            if one is None:
                return None
            mine.append(one)
        if sum(p.shape[1] for p in mine) != wanted:
            return None
        out.append(mine)
    return out if next(at, None) is None else None
