"""A denoiser under test: built tiny, called, and held against the plain model with the same tokens hidden."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from tokensieve.bench.compat import denoiser_inputs, denoisers
from tokensieve.bench.compat.check import Differs
from tokensieve.sites.diffusion import latents, modules
from tokensieve.sites.diffusion.reduced import Row
from tokensieve.sites.model.calls import around, names_of
from tokensieve.sites.model.trace import Trace
from tokensieve.sites.sieve import sieve

METHOD, KEEP = "divprune", 0.5
"""One that drops, by what the tokens hold: rows keep different ones."""
CLOSE = 1e-4
WORDS = ("encoder_hidden_states", "text_bth", "cap_feats")
"""What the text is called among a model's arguments."""


class DenoiserCase:
    """A class of diffusers under test."""

    def __init__(self, name: str):
        self.name, self.tiny = name, denoisers.TINY[name]
        self.model = denoisers.build(name)
        self.plain = self.run()

    @torch.no_grad()
    def run(self, row: int | None = None) -> Tensor:
        given = self.tiny.call()
        given = given if row is None else self.tiny.alone(given, row)
        out = self.model(**given, return_dict=False)[0]
        return torch.stack(list(out)) if isinstance(out, (list, tuple)) else out

    def keeping_all(self, form: str) -> None:
        """keep=1.0 is the plain model bit for bit, and after a sieve the model is what it was."""
        before = self._state()
        with sieve(self.model, METHOD, keep=1.0, form=form):
            _equal("keep=1.0", self.run(), self.plain)
        with sieve(self.model, METHOD, keep=KEEP, form=form):
            self.run()
        if self._state() != before:
            raise Differs("something is left behind")
        _equal("the model after the sieve", self.run(), self.plain)

    def rows_alone(self, form: str) -> None:
        """Two calls are equal, and a row of the batch is what it is alone."""
        with sieve(self.model, METHOD, keep=KEEP, form=form):
            both = self.run()
            _equal("a second call", self.run(), both)
            alone = torch.cat([self.run(i) for i in range(denoiser_inputs.ROWS)])
        _close("a row alone", alone, both)

    def hidden(self, form: str) -> bool:
        """What a sieve answers is what the plain model does when the tokens that left are hidden from attention, and get what
        the form says they get; False where attention is no softmax that a mask could be given to."""
        with sieve(self.model, METHOD, keep=KEEP, form=form) as s:
            got = self.run()
        if s.last is None or all(stage.reduction.is_identity for stage in s.last.stages):
            raise Differs("no token left")
        if torch.equal(got, self.plain):
            raise Differs("tokens left, and nothing changed")
        answers = []
        for text_first in (True, False):  # whichever the attention of this class puts in front
            with _oracle(self.model, form, s.last, text_first) as masked:
                answers.append(self.run())
            if not masked:
                return False
        if not any(torch.allclose(a, got, atol=CLOSE, rtol=1e-3) for a in answers):
            off = min(float((a - got).abs().max()) for a in answers)
            raise Differs(f"differs by {off:.2g} from the plain model with the same tokens hidden")
        return True

    def text_stays(self) -> None:
        """Where a text stands in one row with the tokens, these are not taken for it: another text changes its places alone in
        the first such row that a model makes."""
        rows: list[tuple[Row, Tensor]] = []
        given = self.tiny.call()

        def look(module: nn.Module, args: Any, kwargs: Any) -> None:
            own, seen = (
                {**dict(zip(names_of(module), args, strict=False)), **kwargs},
                latents.read(self.model.config, given),
            )
            row = None if seen is None else modules.row_of(module, next(iter(own)), own, seen, first)
            if row is not None and row.inside:
                rows.append((row, next(iter(own.values()))))

        first = modules.text_first(self.model)
        hooks = [m.register_forward_pre_hook(look, with_kwargs=True) for m in modules.attending(self.model).values()]
        try:
            with torch.no_grad():
                self.model(**given)
                once = rows[0] if rows else None
                rows.clear()
                self.model(**{k: _other(v) if k in WORDS else v for k, v in given.items()})
        finally:
            for hook in hooks:
                hook.remove()
        if once is None:
            return
        row, x = once
        same = (x == rows[0][1]).all(2)
        if bool(same.any()) and not bool(row.image(same[..., None]).all()):
            raise Differs("tokens of the latents are taken for those of the text")

    def _state(self) -> dict[str, Any]:
        return {n: sorted(vars(m)) for n, m in self.model.named_modules()} | {
            f"{n} hooks": (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in self.model.named_modules()
        }


@contextmanager
def _oracle(model: nn.Module, form: str, trace: Trace, text_first: bool) -> Iterator[list[bool]]:
    """The plain model under masks; the list says whether one was applied."""
    masked: list[bool] = []
    mode = _Hiding(text_first, masked)
    undo: list[Callable[[], None]] = []
    if form == "attention":
        for name, stage in zip(trace.modules, trace.stages, strict=True):
            wrap = _attending(mode, stage.reduction, modules.text_first(model))
            undo.append(around(model.get_submodule(name), "forward", wrap))
    else:
        undo += _streaming(mode, model, trace)
    try:
        with mode:
            yield masked
    finally:
        for back in undo:
            back()


class _Hiding(TorchFunctionMode):
    """Hides tokens from every softmax attention over as many, while ``kept`` is set: ``(B, M)`` of ``n``."""

    def __init__(self, text_first: bool, masked: list[bool]):
        super().__init__()
        self.text_first, self.masked = text_first, masked
        self.kept: Tensor | None = None
        self.n = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is scaled_dot_product_attention and self.kept is not None:
            key = args[1] if len(args) > 1 else kwargs["key"]
            query = args[0] if args else kwargs["query"]
            extra = key.shape[2] - self.n
            if extra >= 0 and query.shape[2] in (key.shape[2], self.n) and key.shape[0] == len(self.kept):
                seen = torch.zeros(len(self.kept), self.n, dtype=torch.bool).scatter(1, self.kept, True)
                ones = torch.ones(len(seen), extra, dtype=torch.bool)
                seen = torch.cat([ones, seen] if self.text_first else [seen, ones], 1)[:, None, None]
                given = args[3] if len(args) > 3 else kwargs.pop("attn_mask", None)
                if given is not None:
                    seen = seen & given if given.dtype == torch.bool else given.masked_fill(~seen, -torch.inf)
                args, kwargs["attn_mask"] = args[:3], seen
                self.masked.append(True)
        return func(*args, **kwargs)


def _attending(mode: _Hiding, r: Any, text_first: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def wrap(plain: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            mode.kept, mode.n = r.kept, r.n
            try:
                out = plain(*args, **kwargs)
            finally:
                mode.kept = None
            got = out if isinstance(out, Tensor) else out[0]
            extra = got.shape[1] - r.n
            start = extra if text_first else 0
            place = r.kept.gather(1, r.owner)[..., None].expand(-1, -1, got.shape[2])
            image = got[:, start : start + r.n].gather(1, place)
            back = torch.cat([got[:, :start], image, got[:, start + r.n :]], 1)
            return back if isinstance(out, Tensor) else (back, *out[1:])

        return forward

    return wrap


def _streaming(mode: _Hiding, model: nn.Module, trace: Trace) -> list[Callable[[], None]]:
    blocks = list(modules.blocks(model).items())
    at = [name for name, _ in blocks].index(trace.modules[0])
    r, first = trace.stages[0].reduction, modules.text_first(model)
    left: list[Tensor] = []

    def wrap(index: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrapped(plain: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                if index == at:
                    left.append(args[0] if args else next(iter(kwargs.values())))
                mode.kept, mode.n = r.kept, r.n
                try:
                    out = plain(*args, **kwargs)
                finally:
                    mode.kept = None
                return out if index < len(blocks) - 1 else _back(out, left[-1], r, first)

            return forward

        return wrapped

    return [around(m, "forward", wrap(i)) for i, (_, m) in enumerate(blocks) if i >= at]


def _back(out: Any, x: Tensor, r: Any, text_first: bool) -> Any:
    """The last block's output with what the tokens that left had in front of the first."""
    parts = [] if isinstance(out, Tensor) else list(out)
    many = [i for i, part in enumerate(parts) if isinstance(part, Tensor) and part.shape[1] in (x.shape[1], r.n)]
    got = out if isinstance(out, Tensor) else out[many[-1]]
    extra = max(x.shape[1], got.shape[1]) - r.n
    start = extra if text_first and got.shape[1] > r.n else 0
    gone = torch.ones(len(x), r.n, 1, dtype=torch.bool).scatter(1, r.kept[..., None], False)
    own = x[:, (extra if text_first and x.shape[1] > r.n else 0) :][:, : r.n]
    image = torch.where(gone, own, got[:, start : start + r.n])
    back = torch.cat([got[:, :start], image, got[:, start + r.n :]], 1)
    return back if isinstance(out, Tensor) else tuple(back if i == many[-1] else p for i, p in enumerate(out))


def _other(text: Any) -> Any:
    return text + 1 if isinstance(text, Tensor) else [t + 1 for t in text]


def _equal(what: str, got: Tensor, expected: Tensor) -> None:
    if not torch.equal(got, expected):
        raise Differs(f"{what} differs by {float((got - expected).abs().max()):.2g}")


def _close(what: str, got: Tensor, expected: Tensor) -> None:
    if not torch.allclose(got, expected, atol=CLOSE, rtol=1e-3):
        raise Differs(f"{what} differs by {float((got - expected).abs().max()):.2g}")
