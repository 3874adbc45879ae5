"""Subjects of the doctor: tiny random models of each kind, and the model that a user names, each with what it is run on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from tokensieve.bench.compat import denoisers
from tokensieve.bench.compat import tiny_models as tiny
from tokensieve.bench.compat.prompts import Prompts
from tokensieve.bench.data import Sample
from tokensieve.bench.subject import Subject
from tokensieve.sites.loading import is_visual, maker_of, processor_of
from tokensieve.sites.model.compatibility import cache_in
from tokensieve.sites.model.structure import find

NEW = 4
"""Tokens that a generating model answers with."""
TEXTS = (96, 80)
"""Lengths of the random prompts of a causal language model, a batch padded on the left."""
KERNELS = ("sdpa", "eager")
DENOISER = "tiny denoiser of diffusers"


@dataclass(frozen=True)
class ModelOutput:
    """What a model put out.

    Attributes:
        tensors: compared bit for bit.
        tokens: of each layer, the entries that its cache held in the end; of an encoder, the tokens that entered each block.
    """

    tensors: tuple[Tensor, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Checked:
    """A model under check.

    Attributes:
        name: what the report calls it.
        kind: "visual", "text", "encoder" or "denoiser".
        inputs: what its forward pass is given.
        own: whether it is one of ours, which no sieve may refuse.
    """

    name: str
    kind: str
    model: Any
    inputs: dict[str, Tensor]
    own: bool = False

    @cached_property
    def plain(self) -> ModelOutput:
        """What it puts out without a sieve."""
        return self.run()

    @torch.no_grad()
    def run(self) -> ModelOutput:
        ways = {"encoder": self._encode, "denoiser": self._denoise}
        return ways.get(self.kind, self._generate)()

    def _generate(self) -> ModelOutput:
        """Greedy answers; never an end of sequence, never a placeholder of pictures."""
        config = self.model.config
        marks = (getattr(config, f"{kind}_token_id", None) for kind in ("image", "video"))
        out = self.model.generate(
            **self.inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, num_beams=1, output_logits=True,
            return_dict_in_generate=True, suppress_tokens=[t for t in marks if t is not None] or None,
        )  # fmt: skip
        held = (getattr(layer, "keys", None) for layer in cache_in(out).layers)
        return ModelOutput((out.sequences, *out.logits), tuple(0 if k is None else k.shape[-2] for k in held))

    def _denoise(self) -> ModelOutput:
        """One step; counted are the tokens of which each attention makes queries."""
        seen: list[int] = []
        makers = [m.to_q for m in self.model.modules() if callable(getattr(m, "processor", None))]
        hooks = [m.register_forward_hook(lambda m, args, out: seen.append(out.shape[1])) for m in makers]
        try:
            out = self.model(**self.inputs, return_dict=False)
        finally:
            for hook in hooks:
                hook.remove()
        return ModelOutput(tuple(out), tuple(seen))

    def _encode(self) -> ModelOutput:
        stack, seen = find(self.model).vision, []
        assert stack is not None

        def count(module: nn.Module, args: Any, kwargs: Any) -> None:
            seen.append(stack.given(args, kwargs).shape[-2] - stack.specials)

        handles = [block.register_forward_pre_hook(count, with_kwargs=True) for block in stack.layers]
        try:
            out = self.model(**self.inputs)
        finally:
            for handle in handles:
                handle.remove()
        return ModelOutput(tuple(x for x in out.values() if isinstance(x, Tensor)), tuple(seen))


def tiny_models(device: str) -> dict[str, Callable[[], Checked]]:
    """By name, what makes a tiny random model of each kind under each kernel."""
    makers = {"visual": _tiny_visual, "text": _tiny_text, "encoder": _tiny_encoder}

    def made(name: str, kind: str, kernel: str) -> Checked:
        model, inputs = makers[kind]()
        model.set_attn_implementation(kernel)
        given = {k: v.to(device) for k, v in inputs.items()}
        return Checked(name, kind, model.to(device), given, own=True)

    named = {f"tiny {kind} model, {kernel}": (kind, kernel) for kernel in KERNELS for kind in makers}
    out = {name: lambda name=name, how=how: made(name, *how) for name, how in named.items()}  # type: ignore[misc]
    return out | ({DENOISER: lambda: _tiny_denoiser(device)} if find_spec("diffusers") else {})


def _tiny_denoiser(device: str) -> Checked:
    name = "DiTTransformer2DModel"
    given = {k: v.to(device) for k, v in denoisers.TINY[name].call().items()}
    return Checked(DENOISER, "denoiser", denoisers.build(name).to(device), given, own=True)


def _tiny_visual() -> tuple[Any, dict[str, Tensor]]:
    model = tiny.model("llava")
    return model, Prompts(model).batch((1, 2))


def _tiny_text() -> tuple[Any, dict[str, Tensor]]:
    return tiny.causal("llama"), texts(tiny.VOCAB)


def _tiny_encoder() -> tuple[Any, dict[str, Tensor]]:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=4
    )
    model = transformers.ViTForImageClassification(config).eval()
    return model, {"pixel_values": pixels(config)}


def texts(vocabulary: int) -> dict[str, Tensor]:
    """Random prompts, padded on the left."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (len(TEXTS), max(TEXTS)), generator=g)
    mask = torch.arange(max(TEXTS)) >= max(TEXTS) - torch.tensor(TEXTS)[:, None]
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}


def pixels(config: Any) -> Tensor:
    """Two pictures of noise."""
    side = config.image_size
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    shape = (2, getattr(config, "num_channels", 3), height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def load(name: str, device: str) -> Checked:
    """The model of a folder or of the hub, in its own dtype; safetensors only, no code of its own.

    Raises:
        ValueError: it cannot be loaded, or what it takes is neither pictures nor text.
    """
    with _loading(name):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        model = maker_of(config).from_pretrained(name, dtype="auto", use_safetensors=True).to(device).eval()
        if is_visual(config):
            return Checked(name, "visual", model, _asked(name, model))
    takes, generates = model.main_input_name, model.can_generate()
    if takes == "pixel_values":
        given = {takes: pixels(config).to(model.dtype)}
    elif takes == "input_ids":
        given = texts(config.get_text_config().vocab_size)
        if not generates:  # encoders of text are read in batches of one length, without a mask
            given = {takes: given[takes][:1]}
    else:
        raise ValueError(
            f"{name}: {type(model).__name__} takes {takes}; the doctor checks models that take pictures or text"
        )
    return Checked(name, "text" if generates else "encoder", model, {k: v.to(device) for k, v in given.items()})


def _asked(name: str, model: Any) -> dict[str, Tensor]:
    """Two questions of different lengths about a picture of noise, as the model's own processor lays them out."""
    noise = torch.randint(0, 256, (336, 336, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(noise.numpy())
    questions = ("What is this?", "How many things are there in this picture, and of which colours are they?")
    subject = Subject(name, model, processor_of(name))
    return dict(subject.inputs([Sample(picture, q) for q in questions]))


@contextmanager
def _loading(name: str) -> Any:
    try:
        yield
    except Exception as error:  # whatever a foreign loader raises
        said = (str(error).strip() or "no reason given").splitlines()[0]
        raise ValueError(f"cannot load {name!r}: {type(error).__name__}: {said}") from error
