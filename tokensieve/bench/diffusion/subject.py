"""Subject: a pipeline of diffusers, what it is asked, and one step of its denoiser."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.extras import Lazy
from tokensieve.sites.diffusion.subject import subject

diffusers: Any = Lazy("diffusers", "diffusion")

PROMPTS = (
    "a red lighthouse on a cliff at sunset", "two green apples on a wooden table", "a cat asleep on a blue sofa",
    "a street sign that says OPEN", "an old map of an island", "a bowl of ramen from above", "a snowy mountain at dawn",
    "a yellow bicycle against a brick wall",
)  # fmt: skip


@dataclass(frozen=True)
class Generator:
    """A pipeline under measurement.

    Attributes:
        asked: one prompt, or class, for each image.
        judge: from images ``(B, 3, H, W)`` in [0, 1] to classes, and to the features that are compared; None where no frozen
            classifier is at hand.
        goal: the class of each image, where it is known.
    """

    name: str
    pipeline: Any
    asked: tuple[Any, ...]
    steps: int
    seed: int
    judge: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None
    goal: tuple[int, ...] | None = None

    @torch.no_grad()
    def image(self, i: int) -> Tensor:
        """Image ``i``, ``(3, H, W)`` in [0, 1]; the same noise whatever sieve stands around it."""
        known = inspect.signature(self.pipeline.__call__).parameters
        by_class = "class_labels" in known
        given = {"class_labels" if by_class else "prompt": [self.asked[i]] if by_class else self.asked[i]}
        generator = torch.Generator().manual_seed(self.seed * 7919 + i)
        out = self.pipeline(**given, num_inference_steps=self.steps, generator=generator, output_type="pt").images
        made: Tensor = torch.as_tensor(out)[0].float().cpu()
        return made

    def step(self) -> tuple[nn.Module, dict[str, Any]]:
        """The first denoiser, and what it is called with in the middle of a run."""
        denoiser = subject(self.pipeline).denoisers[0]
        seen: list[dict[str, Any]] = []

        def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            names = inspect.signature(module.forward).parameters
            seen.append({**dict(zip(names, args, strict=False)), **kwargs})

        hook = denoiser.register_forward_pre_hook(note, with_kwargs=True)
        try:
            self.image(0)
        finally:
            hook.remove()
        return denoiser, seen[len(seen) // 2]


def load(name: str, images: int, steps: int, seed: int, prompts: Sequence[str] = (), device: str = "cpu") -> Generator:
    """The pipeline of a folder or of the hub, or the packaged one ("testbed").

    Raises:
        ValueError: it cannot be loaded, or takes neither prompts nor classes.
    """
    if name == "testbed":
        from tokensieve.testbed.diffusion import pipeline, shapes

        classes = tuple(i % len(shapes.CLASSES) for i in range(images))
        judge = pipeline.judge()
        return Generator(
            name, pipeline.load().to(device), classes, steps, seed,
            (lambda x: judge(2 * x - 1).argmax(1), lambda x: judge.features(2 * x - 1)), classes,
        )  # fmt: skip
    try:
        made = diffusers.DiffusionPipeline.from_pretrained(Path(name) if Path(name).is_dir() else name).to(device)
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"cannot load {name!r}: {str(error).splitlines()[0] if str(error) else error!r}") from error
    made.set_progress_bar_config(disable=True)
    known = inspect.signature(made.__call__).parameters
    if "class_labels" in known:
        asked: tuple[Any, ...] = tuple(range(images))
    elif "prompt" in known:
        given = tuple(prompts) or PROMPTS
        asked = tuple(given[i % len(given)] for i in range(images))
    else:
        raise ValueError(
            f"{type(made).__name__} takes neither prompts nor class labels; it cannot be asked for images here"
        )
    return Generator(name, made, asked, steps, seed)
