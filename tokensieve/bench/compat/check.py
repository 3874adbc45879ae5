"""An architecture under test: built tiny, asked, and held against the plain model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.bench.compat import tiny_models
from tokensieve.bench.compat.prompts import TEXT_FROM, Prompts
from tokensieve.sites.cache.sieved_layer import SievedLayer
from tokensieve.sites.model.compatibility import cache_in, cache_of
from tokensieve.sites.model.structure import find
from tokensieve.sites.sieve import Sieve, sieve

NEW = 4
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": list(range(TEXT_FROM))}
IMAGES = (1, 2)


class Differs(AssertionError):
    """A sieved model does not do what it has to."""


class Case:
    """An architecture under test."""

    def __init__(self, name: str, attn: str | None = None, video: bool = False):
        self.name, self.video = name, video
        self.model: Any = tiny_models.model(name, attn)
        self.prompts = Prompts(self.model)
        self.anatomy: Any = find(self.model)
        self.inputs = self.prompts.batch(IMAGES, video)
        self.keep = max(1, min(5, int(self.visual[0].sum()) // 4))

    @property
    def visual(self) -> Tensor:
        ids = self.inputs["input_ids"]
        return (ids == tiny_models.IMAGE) | (ids == tiny_models.VIDEO)

    def generate(self, inputs: dict[str, Tensor] | None = None, **options: Any) -> Any:
        return self.model.generate(**(self.inputs if inputs is None else inputs), **GREEDY, **options)

    def gone(self, s: Sieve) -> Tensor:
        """``(B, L)`` bool: the prompt positions that left."""
        if s.last is None or s.last.places is None:
            raise Differs("the sieve saw no visual tokens")
        reduction, out = s.last.stages[-1].reduction, self.visual
        place = s.last.places.gather(1, reduction.kept)
        real = reduction.mask & (place >= 0)
        row = torch.tensor(s.last.rows)[:, None].expand_as(place)
        out = out.clone()
        out[row[real], place[real]] = False
        return out

    # ---- checks -----------------------------------------------------------------------------------------------------

    def keeping_all(self) -> bool:
        """keep=all answers like the plain model, also after the sieve is gone."""
        plain, hooks, methods = self.generate(), _hooks(self.model), dict(self.anatomy.base.__dict__)
        with sieve(self.model, "divprune", keep=1.0):
            _same("tokens with keep=all", self.generate(), plain)
        with sieve(self.model, "divprune", keep=self.keep):
            self.generate()
        if _hooks(self.model) != hooks or set(self.anatomy.base.__dict__) != set(methods):
            raise Differs("hooks are left behind")
        _same("tokens after the sieve", self.generate(), plain)
        return True

    def dropping(self, layer: int = 0) -> bool:
        """keep=K: caches of the right length, and the logits of the plain model with the dropped tokens masked."""
        where: dict[str, Any] = {"site": "prefill", "layers": layer} if layer else {}
        with sieve(self.model, "divprune", keep=self.keep, **where) as s:
            out = self.generate(return_dict_in_generate=True, output_logits=True)
        gone = self.gone(s)
        self._cached(cache_in(out), gone, layer)
        if any(a is None for a in self.anatomy.language.attentions):  # a state remembers what a mask would hide
            return True
        expected = self.masked(gone, layer)
        for step, (got, plain) in enumerate(zip(out.logits, expected, strict=True)):
            _close(f"logits of step {step} with tokens gone from layer {layer} on", got, plain)
        return True

    def _cached(self, cache: Any, gone: Tensor, layer: int) -> None:
        real = self.inputs["attention_mask"].sum(1)
        text = (real - gone.sum(1)).max() + NEW - 1
        for i, held in enumerate(cache.layers):
            expected = text if i >= layer else gone.shape[1] + NEW - 1
            own = self.anatomy.language.attentions[i] is not None and self.anatomy.language.sources[i] == i
            if not own or (i < layer and held.is_sliding):
                continue
            if held.keys.shape[2] != expected or (i >= layer and not isinstance(held, SievedLayer)):
                raise Differs(f"layer {i} caches {held.keys.shape[2]} entries, expected {int(expected)}")

    def masked(self, gone: Tensor, layer: int) -> tuple[Tensor, ...]:
        """Logits of each step of the plain model's answer, with positions masked for every layer from ``layer`` on."""
        language = self.anatomy.language
        sizes: dict[int, tuple[int, int]] = {}
        handles = [
            block.register_forward_pre_hook(_hiding(gone, i, language.sources[i], sizes), with_kwargs=True)
            for i, block in enumerate(language.layers)
            if i >= layer and language.attentions[i] is not None
        ]
        try:
            return self.generate(return_dict_in_generate=True, output_logits=True).logits
        finally:
            for h in handles:
                h.remove()

    def rows_alone(self) -> bool:
        """A batch with left padding answers like its rows alone."""
        alone = [self.prompts.collate([self.prompts.row(i, n, self.video)]) for i, n in enumerate(IMAGES)]
        told: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
        plain = self.generate(**told).logits
        for i, inputs in enumerate(alone):
            pairs = zip(self.generate(inputs, **told).logits, plain, strict=True)
            if any(not torch.allclose(one[0], both[i], atol=1e-4, rtol=1e-3) for one, both in pairs):
                return False  # nor does the plain model
        with sieve(self.model, "divprune", keep=self.keep):
            batch = self.generate()[:, -NEW:]
            for i, inputs in enumerate(alone):
                _same(f"row {i} alone", self.generate(inputs)[0, -NEW:], batch[i])
        return True

    def encoder_rows(self) -> None:
        """What the encoder says of its rows reaches the tokens made of them: compared with gradients.

        Raises:
            Unmapped: the rows do not correspond to tokens.
        """
        encode = self.anatomy.base.get_image_features
        given = {k: v for k, v in self.inputs.items() if k in inspect.signature(encode).parameters}
        with sieve(self.model, "hiprune", keep=self.keep) as s, torch.no_grad():
            self.generate()
            made = self.anatomy.base.get_image_features(**given, return_dict=True)
            look = s._sites.sites[0].listener.remembered.find(made)[0][0]  # type: ignore[attr-defined]
        got = look.tokens_of(look.unwindowed(torch.eye(look.rows))).nan_to_num(0.0) > 0
        reached = self._reached(look)
        # Where convolutions overlap, a token also sees the rim around its block.
        if bool((got & ~reached).any()) or int(reached.sum()) > 4 * int(got.sum()):
            raise Differs("encoder rows reach other tokens than those made of them")

    def _reached(self, look: Any) -> Tensor:
        """``(N, R)`` bool: the encoder's rows (as its blocks hold them) that each visual token is made of."""
        stack = self.anatomy.vision
        block = stack.layers[self.anatomy.feature_layer]
        states: list[Tensor] = []

        def note(module: nn.Module, args: Any, output: Any) -> None:
            states.append(output[0] if isinstance(output, tuple) else output)

        handle = block.register_forward_hook(note)
        try:
            encode = getattr(self.anatomy.base, f"get_{look.kind}_features")
            out = encode(**{k: v for k, v in look.given.items() if k != "return_dict"}, return_dict=True).pooler_output
        finally:
            handle.remove()
        features = torch.cat([f.reshape(-1, f.shape[-1]) for f in out])
        rows, toward = [], torch.linspace(-1, 1, features.shape[1])
        for token in features:
            grads = torch.autograd.grad(token @ toward, states, retain_graph=True, allow_unused=True)
            given = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, states, strict=True)]
            rows.append(
                torch.cat([g.reshape(-1, *g.shape[-2:])[:, stack.specials :].flatten(0, 1) for g in given]).abs().sum(1)
                > 0
            )
        return torch.stack(rows)


def _hiding(gone: Tensor, layer: int, source: int, sizes: dict[int, tuple[int, int]]) -> Callable[..., Any]:
    """A hook on a language-model layer that masks prompt positions, ``(B, L)`` bool, in every pass.

    Args:
        source: the layer whose keys it attends to; sizes: the keys of every layer, and the first one's position.
    """

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden, mask, cache = args[0], kwargs.get("attention_mask"), cache_of(kwargs)
        query = hidden.shape[1]
        if source == layer:
            sizes[layer] = cache.get_mask_sizes(query, layer)
        width, start = sizes[source]
        if mask is None:
            mask = torch.ones(query, width, dtype=torch.bool).tril(width - query)[None, None]
        allowed = mask if mask.dtype == torch.bool else mask >= 0
        hide = nn.functional.pad(gone, (0, start + width - gone.shape[1]))[:, None, None, start:]
        allowed = (allowed & ~hide) | torch.eye(width, dtype=torch.bool)[-query:]  # rows without any key would be NaN
        bias = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        return args, {**kwargs, "attention_mask": bias}

    return hook


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def _same(what: str, got: Tensor, expected: Tensor) -> None:
    if got.shape != expected.shape or not torch.equal(got, expected):
        raise Differs(f"{what} differ: {got.tolist()} for {expected.tolist()}"[:200])


def _close(what: str, got: Tensor, expected: Tensor) -> None:
    if not torch.allclose(got, expected, atol=1e-4, rtol=1e-3):
        raise Differs(f"{what} differ by {float((got - expected).abs().max()):.2g}")
