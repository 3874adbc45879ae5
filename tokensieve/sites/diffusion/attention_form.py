"""Form "attention": self-attention runs on fewer tokens, and all are there again behind it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from tokensieve.parts import select
from tokensieve.sites.diffusion import modules, reduced
from tokensieve.sites.diffusion.choice import Choice
from tokensieve.sites.diffusion.running import DenoiserPass, fewer, instead
from tokensieve.sites.model.calls import Detach


class AttentionForm:
    """A stage at the self-attention of one denoiser.

    Args:
        running: what is known of the pass that runs; None outside of one.

    Raises:
        ValueError: the denoiser has none, or not the one that is asked for.
    """

    def __init__(self, denoiser: nn.Module, choice: Choice, running: Callable[[], DenoiserPass | None]):
        found = modules.attending(denoiser)
        if not found:
            raise ValueError(
                f"{type(denoiser).__name__} has no self-attention that is known here; no site of a sieve fits it"
            )
        names = modules.chosen(list(found), choice.stage.layers, "modules of self-attention")
        self.modules = {name: found[name] for name in names}
        self._choice, self._running = choice, running
        self._kind = type(denoiser).__name__
        self._extra_first = modules.text_first(denoiser)

    def attach(self) -> list[Detach]:
        return [instead(m, self._acts, partial(self._attend, name, m)) for name, m in self.modules.items()]

    def _acts(self) -> DenoiserPass | None:
        now = self._running()
        return None if now is None or now.keep is None else now

    def _attend(
        self, name: str, module: nn.Module, now: DenoiserPass, plain: Callable[..., Any], given: dict[str, Any]
    ) -> Any:
        first = next(iter(given))
        row = modules.row_of(module, first, given, now.latents, self._extra_first)
        text = next((k for k in modules.TEXT if isinstance(given.get(k), Tensor)), None)
        same = text is not None and given[text] is given[first]
        if row is None or (text is not None and not same and not modules.joint(module)):
            return plain(**given)
        x = given[first]
        assert now.keep is not None
        image = row.image(x)
        r = self._choice.of(image, row.grid, now.keep, now.halves, answered=True)
        now.met(name, row, r, len(x))
        if r is None:
            return plain(**given)
        few = row.join(x, reduced.apply(r, image))
        own = {first: few} | ({text: few} if same and text is not None else {})
        with fewer(self._kind, "attention"):
            out = reduced.call(plain, {**given, **own}, (first, *modules.TEXT), r, row)
        got = out if isinstance(out, Tensor) else out[0]
        back = row.join(got, select.take(row.image(got, r.m).contiguous(), r.owner))
        return back if isinstance(out, Tensor) else (back, *out[1:])
