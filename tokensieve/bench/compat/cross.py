"""The same verdict for models that attend to images by cross-attention: image keys leave behind the first such layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokensieve.bench.compat import tiny_models
from tokensieve.bench.compat.prompts import TEXT_FROM
from tokensieve.sites.cache.sieved_layer import SievedLayer
from tokensieve.sites.model.compatibility import cache_in
from tokensieve.sites.model.structure import crossing
from tokensieve.sites.sieve import Sieve, sieve

METHOD, NEW, KEEP = "trimmed-llama", 4, 5
GREEDY: dict[str, Any] = {
    "max_new_tokens": NEW, "do_sample": False, "suppress_tokens": list(range(TEXT_FROM)), "return_dict_in_generate": True,
    "output_logits": True,
}  # fmt: skip
IMAGES = (1, 2)


class CrossCase:
    """An architecture of this kind under test, with random images of one or two tiles."""

    def __init__(self, name: str, attn: str | None = None):
        self.model: Any = tiny_models.model(name, attn)
        with torch.no_grad():
            for parameter, value in self.model.named_parameters():
                if "gate" in parameter and value.dim() < 2:
                    value.fill_(1.0)  # they start closed, and no image would be seen
        _, self.language, self.layers = crossing(self.model)
        self.inputs = self.batch(IMAGES)

    def batch(self, images: Sequence[int]) -> dict[str, Tensor]:
        """Model inputs, padded on the left; row i holds images[i] images, and is the same in any batch."""
        vision, most, length = self.model.config.vision_config, max(images), 8 + 3 * max(images)
        size, tiles = vision.image_size, vision.max_num_tiles
        out = {
            "input_ids": torch.zeros(len(images), length, dtype=torch.long),
            "attention_mask": torch.zeros(len(images), length, dtype=torch.long),
            "pixel_values": torch.zeros(len(images), most, tiles, 3, size, size),
            "aspect_ratio_ids": torch.zeros(len(images), most, dtype=torch.long),
            "aspect_ratio_mask": torch.zeros(len(images), most, tiles, dtype=torch.long),
            "cross_attention_mask": torch.zeros(len(images), length, most, tiles, dtype=torch.long),
        }
        for row, held in enumerate(images):
            draw = torch.Generator().manual_seed(held)
            start = length - 6 - 3 * held
            out["input_ids"][row, start:] = torch.randint(
                TEXT_FROM, tiny_models.VOCAB, (length - start,), generator=draw
            )
            out["attention_mask"][row, start:] = 1
            out["aspect_ratio_mask"][row, :, 0] = 1
            for i in range(held):
                at, own = start + 1 + 3 * i, 1 + i % 2
                out["input_ids"][row, at] = tiny_models.IMAGE
                out["pixel_values"][row, i, :own] = torch.randn(own, 3, size, size, generator=draw)
                out["aspect_ratio_ids"][row, i] = own
                out["aspect_ratio_mask"][row, i, :own] = 1
                out["cross_attention_mask"][row, at:, i, :own] = 1
        return out

    def generate(self, inputs: dict[str, Tensor] | None = None) -> Any:
        return self.model.generate(**(self.inputs if inputs is None else inputs), **GREEDY)

    def seen(self, s: Sieve) -> Tensor:
        """``(B, images * keys)`` bool: the image keys that later layers see."""
        assert s.last is not None
        step = s.last.stages[0].reduction
        out = torch.zeros(*self.inputs["aspect_ratio_ids"].shape, step.n, dtype=torch.bool)
        real = self.inputs["aspect_ratio_ids"] > 0
        out[real] = torch.zeros(len(step.kept), step.n, dtype=torch.bool).scatter_(1, step.kept, True)
        return out.flatten(1)

    # ---- checks; each says what differs, or nothing ------------------------------------------------------------------

    def keeping_all(self) -> str:
        plain = self.generate()
        with sieve(self.model, METHOD, keep=1.0):
            out = self.generate()
        same = torch.equal(out.sequences, plain.sequences) and torch.equal(self.generate().sequences, plain.sequences)
        return "" if same else "tokens with keep=all, or after the sieve, differ"

    def dropping(self) -> str:
        with sieve(self.model, METHOD, keep=KEEP) as s:
            out = self.generate()
        seen = self.seen(s)
        for i, held in enumerate(cache_in(out).layers):
            sieved = isinstance(held, SievedLayer)
            if sieved != (i in self.layers[1:]) or (sieved and held.keys.shape[2] != int(seen.sum(1).max())):
                return f"layer {i} caches {held.keys.shape[2]} entries"

        def hide(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            mask = kwargs["cross_attention_mask"].masked_fill(~seen[:, None, None], torch.finfo(torch.float32).min)
            return args, {**kwargs, "cross_attention_mask": mask}

        later = [self.language.layers[i] for i in self.layers[1:]]
        handles = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in later]
        try:
            expected = self.generate().logits
        finally:
            for handle in handles:
                handle.remove()
        close = all(torch.allclose(a, b, atol=1e-4, rtol=1e-3) for a, b in zip(out.logits, expected, strict=True))
        return "" if close else "logits with image keys gone differ from those with them masked"

    def rows_alone(self) -> str:
        with sieve(self.model, METHOD, keep=KEEP):
            both = self.generate().sequences[:, -NEW:]
            alone = [self.generate(self.batch((n,))).sequences[0, -NEW:] for n in IMAGES]
        return (
            ""
            if all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))
            else "a row alone answers differently"
        )


CHECKS: dict[str, Callable[[CrossCase], str]] = {
    "keep=all": CrossCase.keeping_all,
    "cross": CrossCase.dropping,
    "rows alone": CrossCase.rows_alone,
}


def crosses(model: Any) -> bool:
    """Whether the text attends to images by cross-attention in at least two layers."""
    try:
        crossing(model)
    except ValueError:
        return False
    return True


def run(name: str) -> tuple[str, list[str], str]:
    """The status of an architecture, what was checked, and why."""
    checked: list[str] = []
    for attn in ("sdpa", "eager"):
        case = CrossCase(name, attn)
        for what, check in CHECKS.items():
            if what in checked and what != "cross":
                continue
            wrong = check(case)
            if wrong:
                return "wrong", checked, f"{wrong} ({attn})"
            checked += [] if what in checked else [what]
        checked.append(attn)
    return "works", checked, "at site='cross' only: its text attends to images by cross-attention"
