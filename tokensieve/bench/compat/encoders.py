"""Which encoders a sieve runs on: every one of transformers' mappings, built tiny and checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.bench.compat import tiny_encoders
from tokensieve.bench.compat.check import Differs
from tokensieve.bench.compat.matrix import Verdict
from tokensieve.bench.compat.tiny_encoders import Architecture
from tokensieve.sites.model import taps, towers
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.sieve import sieve


class EncoderCase:
    """An encoder under test.

    Args:
        tower: of a model with two, which.
    """

    def __init__(self, what: Architecture, tower: str = "", attn: str = "sdpa"):
        self.model: Any = tiny_encoders.model(what, attn)
        self.where: dict[str, Any] = {"tower": tower} if tower else {}
        found = towers.tower(self.model, tower)
        if found is None:
            raise ValueError(f"{what.kind} has a language model behind its encoder")
        self.stack: Stack = found
        self.inputs = tiny_encoders.inputs(self.model)
        self.inner: list[Tensor] = []

    def run(self, inputs: dict[str, Tensor] | None = None) -> list[Tensor]:
        """All tensors that it puts out; what its last block does is in ``inner``."""
        self.inner.clear()
        handle = self.stack.layers[-1].register_forward_hook(self._note)
        try:
            with torch.no_grad():
                out = self.model(**(self.inputs if inputs is None else inputs))
        finally:
            handle.remove()
        return list(_tensors(out))

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        self.inner.append(output[0] if isinstance(output, (tuple, list)) else output)

    # ---- checks -----------------------------------------------------------------------------------------------------

    def exact(self) -> bool:
        """keep=1.0 is the plain model, bit for bit, also after the sieve is gone."""
        plain = self.run()
        with sieve(self.model, "tome", keep=1.0, **self.where):
            _equal("with keep=1.0", self.run(), plain)
        with sieve(self.model, "tome", keep=0.5, **self.where):
            self.run()
        _equal("after the sieve", self.run(), plain)
        return True

    def shapes(self) -> bool:
        """At a half the outputs have their shapes, are finite, and fewer tokens meet each block."""
        plain = [x.shape for x in self.run()]
        for name in ("tome", "random"):
            with sieve(self.model, name, keep=0.5, **self.where) as s:
                out = self.run()
            if [x.shape for x in out] != plain:
                raise Differs(f"{name}: shapes {[tuple(x.shape) for x in out]} for {[tuple(x) for x in plain]}")
            if not all(bool(torch.isfinite(x).all()) for x in out if x.is_floating_point()):
                raise Differs(f"{name}: outputs are not finite")
            if s.last is None or not s.last.layer_tokens[-1] < s.last.layer_tokens[0]:
                raise Differs(f"{name}: no fewer tokens: {None if s.last is None else s.last.layer_tokens}")
        return True

    def masked(self) -> bool:
        """Tokens that are dropped are as if the later blocks did not see them, wherever the others stand."""
        repeated = len(set(self.stack.layers)) < len(self.stack.layers)
        if (
            repeated
            or any(a is None for a in self.stack.attentions)
            or _convolves(self.stack)
            or _sees_later(self.stack)
        ):
            return False
        for between in (False, True):
            try:
                made = sieve(self.model, "random", keep=0.5, layers=(1,), between=between, **self.where)
            except ValueError:  # no place for it
                continue
            with made as s:
                self.run()
            assert s.last is not None
            stays, got = s.last.stays, self.inner[0]
            assert stays is not None
            hide = [taps.attach(a, limit=_hiding(stays)) for a in self.stack.attentions[2:] if a is not None]
            try:
                self.run()
            finally:
                for undo in hide:
                    undo()
            here = stays.expand(len(got), -1)
            if not torch.allclose(got[here], self.inner[0][here], atol=2e-4, rtol=1e-3):
                off = float((got[here] - self.inner[0][here]).abs().max())
                raise Differs(
                    f"between={between}: kept tokens differ by {off:.2g} from those of a model that hides the others"
                )
        return True

    def padding(self) -> bool:
        """What a row is padded with changes nothing of it."""
        mask = self.inputs.get("attention_mask")
        if mask is None or self.model.main_input_name != "input_ids" or "pixel_values" in self.inputs:
            return False
        length = int(mask[1].sum())
        alone = {k: v[1:, :length] if v.shape == mask.shape else v[1:] for k, v in self.inputs.items()}

        def row(inputs: dict[str, Tensor], index: int) -> Tensor:
            self.run(inputs)
            return self.inner[-1][index, :length]

        if not torch.allclose(row(self.inputs, 1), row(alone, 0), atol=1e-4, rtol=1e-3):
            return False  # nor is the plain model's
        for name in ("tome", "divprune"):
            with sieve(self.model, name, keep=0.5, **self.where):
                _close(f"{name}: a row with padding", row(self.inputs, 1), row(alone, 0))
        return True

    def gradients(self) -> bool:
        """A loss on the outputs reaches the first block."""
        layer = self.stack.layers[0]
        found: list[Tensor] = []
        handle = layer.register_forward_hook(
            lambda m, a, out: found.append(out[0] if isinstance(out, (tuple, list)) else out)
        )
        try:
            with torch.enable_grad(), sieve(self.model, "tome", keep=0.5, **self.where):
                out = [x for x in _tensors(self.model(**self.inputs)) if x.requires_grad]
        finally:
            handle.remove()
        loss = sum((x.float() * torch.linspace(0, 1, x.numel()).view(x.shape)).sum() for x in out)
        parameter = next(p for p in layer.parameters() if p.requires_grad and p.dim() == 2)
        (grad,) = torch.autograd.grad(loss, parameter, allow_unused=True)  # type: ignore[arg-type]
        if grad is None or not bool(torch.isfinite(grad).all()) or not bool(grad.any()):
            raise Differs("no gradient reaches the first block")
        return True


CHECKS: dict[str, Callable[[EncoderCase], bool]] = {
    "keep=1.0": EncoderCase.exact,
    "shapes": EncoderCase.shapes,
    "places": EncoderCase.masked,
    "padding": EncoderCase.padding,
    "gradients": EncoderCase.gradients,
}


def check(what: Architecture, checks: Sequence[str] = tuple(CHECKS)) -> Verdict:
    """Build one architecture and check it."""
    made = Verdict(what.kind)
    try:
        model = tiny_encoders.model(what)
        tower = next((name for name in towers.towers(model) if name not in ("", "encoder")), "")
        tiny_encoders.inputs(model)
    except Exception as error:  # whatever a foreign constructor raises
        said = _line(error) if "cannot be sieved" in str(error) else tiny_encoders.refusal(what)
        made.status, made.why = ("refused", said) if said else ("unchecked", f"not built here: {_line(error)}")
        return made
    try:
        case = EncoderCase(what, tower)
    except ValueError as error:
        made.status, made.why = "refused", _line(error)
        return made
    try:
        case.run()
    except Exception as error:  # likewise
        made.why = f"no input here: {type(error).__name__}: {_line(error)}"
        return made
    if not case.inner:
        made.why = "no input here that its encoder reads"
        return made
    try:
        made.checked = [name for name in checks if CHECKS[name](case)]
        made.status = "runs"
    except Differs as error:
        made.status, made.why = "wrong", _line(error)
    except Exception as error:  # it was built and answers: a sieve has to answer too, or refuse
        made.status, made.why = "wrong", f"{type(error).__name__}: {_line(error)}"
    return made


def matrix(names: Sequence[str] = ()) -> list[Verdict]:
    """The verdict on each architecture; ``names``, of model types or classes, picks some."""
    return [check(a) for a in tiny_encoders.architectures() if not names or a.name in names or a.kind in names]


def recorded() -> list[Verdict]:
    """What `python -m benchmarks.encoders` last found."""
    file = resources.files("tokensieve").joinpath("bench/compat/encoders.json")
    return [Verdict(**row) for row in json.loads(file.read_text(encoding="utf-8"))["encoders"]]


def _tensors(out: Any) -> Any:
    for value in out.values() if hasattr(out, "values") else out if isinstance(out, (tuple, list)) else (out,):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)) or hasattr(value, "keys"):
            yield from _tensors(value)


def _hiding(stays: Tensor) -> taps.Limit:
    def limit(call: taps.Call) -> tuple[Tensor | None, None]:
        bias = torch.zeros(stays.shape).masked_fill(~stays, torch.finfo(torch.float32).min)[:, None, None]
        mask = call.mask
        if mask is None:
            return bias, None
        return (
            torch.where(mask, bias, torch.finfo(torch.float32).min) if mask.dtype == torch.bool else mask + bias
        ), None

    return limit


def _convolves(stack: Stack) -> bool:
    return any(isinstance(m, (nn.Conv1d, nn.Conv2d)) for layer in stack.layers for m in layer.modules())


def _sees_later(stack: Stack) -> bool:
    """Whether the kernel is told that tokens see only those before them, which the mask of a check would undo."""
    return "clip_text" in str(getattr(stack.config, "model_type", ""))


def _equal(what: str, got: list[Tensor], expected: list[Tensor]) -> None:
    if len(got) != len(expected) or not all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)):
        raise Differs(f"outputs {what} are not the plain model's")


def _close(what: str, got: Tensor, expected: Tensor) -> None:
    if not torch.allclose(got, expected, atol=1e-4, rtol=1e-3):
        raise Differs(f"{what} differs by {float((got - expected).abs().max()):.2g}")


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
