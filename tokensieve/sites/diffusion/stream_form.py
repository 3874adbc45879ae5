"""Form "stream": tokens leave in front of a block and come back behind the last one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.core.reduction import Reduction
from tokensieve.sites.diffusion import modules, reduced
from tokensieve.sites.diffusion.choice import Choice
from tokensieve.sites.diffusion.reduced import Row
from tokensieve.sites.diffusion.running import DenoiserPass, fewer, instead
from tokensieve.sites.model.calls import Detach

STREAMLESS: dict[str, str] = {"WanVACETransformer3DModel": "its control blocks see all tokens"}
"""Denoisers whose blocks need all tokens, and why."""


@dataclass(frozen=True)
class Held:
    """What tokens had behind the last block when they last went through it.

    Attributes:
        state: ``(B, N, D)``.
        start: the same before the last pass of all tokens, or of that pass where none came before.
        stale: ``(B, N)``, the passes since each token's last one.
    """

    state: Tensor
    start: Tensor
    stale: Tensor

    @classmethod
    def whole(cls, state: Tensor, before: Held | None) -> Held:
        """Behind a pass of all tokens."""
        return cls(state, state if before is None else before.state, torch.zeros(state.shape[:2], device=state.device))

    def then(self, state: Tensor, kept: Tensor) -> Held:
        """Behind a pass of those that were kept ``(B, M)``."""
        return Held(state, self.start, (self.stale + 1).scatter(1, kept, 0.0))

    @property
    def signals(self) -> dict[str, Tensor]:
        return {"change": (self.state - self.start).float().norm(dim=2), "staleness": self.stale}


class StreamForm:
    """A stage between the blocks of one denoiser.

    Args:
        running: what is known of the pass that runs; None outside of one.

    Raises:
        ValueError: no run of blocks, or no block of the number that is asked for in it.
    """

    def __init__(self, denoiser: nn.Module, choice: Choice, running: Callable[[], DenoiserPass | None]):
        kind = type(denoiser).__name__
        found = modules.blocks(denoiser)
        why = STREAMLESS.get(kind) or ("" if len(found) > 1 else "it has no run of blocks that hand tokens on")
        if why:
            raise ValueError(f"form='stream' does not run in {kind}: {why}; use form='attention'")
        layers = choice.stage.layers or (1,)
        if len(layers) != 1:
            raise ValueError(f"layers={layers}; in form='stream' tokens leave in front of one block")
        self._kind, self.names = kind, list(found)
        self.modules = found
        self._leave = self.names.index(modules.chosen(self.names, layers, "blocks")[0])
        self._choice, self._running = choice, running
        self._extra_first = modules.text_first(denoiser)
        self._row: Row | None = None
        self._left: tuple[Tensor, Reduction] | None = None
        self._image_at: int | None = None
        self._step, self._call = (-1, -1), 0
        self._held: dict[int, Held] = {}  # by the pass of a step
        self._cached = choice.stage.denoising is not None and choice.stage.denoising.cached

    def attach(self) -> list[Detach]:
        every = enumerate(self.modules.values())
        out: list[Detach] = [instead(m, self._acts, partial(self._block, i, m)) for i, m in every]
        return [*out, self.clear]

    def _acts(self) -> DenoiserPass | None:
        now = self._running()
        return None if now is None or (now.keep is None and not self._cached) else now

    def clear(self) -> None:
        """Forget what a pass or a run has left."""
        self._row = self._left = self._image_at = None
        self._held = {}

    def begin(self, now: DenoiserPass) -> None:
        """A pass begins."""
        self._row = self._left = self._image_at = None
        if now.step[0] != self._step[0]:
            self._held = {}
        # Some pipelines ask for the two halves of guidance one after the other, in one step.
        self._call = self._call + 1 if now.step == self._step else 0
        self._step = now.step

    def _block(
        self, index: int, module: nn.Module, now: DenoiserPass, plain: Callable[..., Any], given: dict[str, Any]
    ) -> Any:
        if self._left is None:
            given = self._entered(now, index, module, given)
        if self._left is None or self._row is None:
            out = plain(**given)
            if self._row is not None:
                self._image_at = _image_of(out, self._row.n + (self._row.extra if self._row.inside else 0))
                if self._cached and index == len(self.names) - 1:
                    state = self._row.image(_part(out, self._image_at)).detach()
                    self._held[self._call] = Held.whole(state, self._of(state))
            return out
        x, r = self._left
        row = self._row
        first = next(iter(given))
        with fewer(self._kind, "stream"):
            out = reduced.call(plain, given, (first, *modules.TEXT), r, row)
        if index < len(self.names) - 1:
            return out
        at = self._image_at
        if at is None:
            at = _image_of(out, r.m + (row.extra if row.inside else 0))
        got = _part(out, at)
        held = self._of(row.image(x))
        fill = row.image(x) if held is None else held.state
        # A text that was a stream of its own may have joined the tokens on the way.
        row = replace(row, inside=got.shape[1] == r.m + row.extra)
        # Tokens that were merged come back in their own last state too: a shared one would blur what sets them apart.
        back = fill.to(got.dtype).scatter(1, r.kept[..., None].expand(-1, -1, got.shape[2]), row.image(got, r.m))
        if held is not None:
            self._held[self._call] = held.then(back.detach(), r.kept)
        back = row.join(got, back)
        return back if isinstance(out, Tensor) else tuple(back if i == at else part for i, part in enumerate(out))

    def _of(self, image: Tensor) -> Held | None:
        """What was held from the same pass of earlier steps, unless there were others, or pictures of another size."""
        held = self._held.get(self._call)
        return None if held is None or held.state.shape[:2] != image.shape[:2] else held

    def _entered(self, now: DenoiserPass, index: int, module: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
        """In front of the block at which tokens leave, its arguments without them."""
        first = next(iter(given))
        row = modules.row_of(module, first, given, now.latents, self._extra_first)
        if row is None:
            return given
        self._row = row
        if index < self._leave or now.keep is None:
            return given
        x = given[first]
        image = row.image(x)
        held = self._of(image)
        if self._cached and held is None:
            now.met(self.names[index], row, None, len(x))  # nothing to come back with yet: all stay
            return given
        r = self._choice.of(
            image, row.grid, now.keep, now.halves, answered=False, **({} if held is None else held.signals)
        )
        now.met(self.names[index], row, r, len(x))
        if r is None:
            return given
        self._left = (x, r)
        return {**given, first: row.join(x, reduced.apply(r, image))}


def _part(out: Any, at: int) -> Tensor:
    part: Tensor = out if isinstance(out, Tensor) else out[at]
    return part


def _image_of(out: Any, n: int) -> int:
    """Which of a block's outputs holds n tokens.

    Raises:
        ValueError: none, or several.
    """
    if isinstance(out, Tensor):
        return 0
    found = [i for i, x in enumerate(out) if isinstance(x, Tensor) and x.dim() == 3 and x.shape[1] == n]
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} of what a block puts out hold {n} tokens, as many as stay; keep another number of them, or use "
            "form='attention'"
        )
    return found[0]
