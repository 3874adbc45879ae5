"""The pipeline: class labels to pictures, without an autoencoder, which the stock pipeline always calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DiTTransformer2DModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from safetensors.torch import load_file
from torch import Tensor, nn

from tokensieve.testbed.diffusion.shapes import CLASSES, SIZE

HOME = Path(__file__).parent.parent / "dit"


class ScenePipeline(DiffusionPipeline):
    """A ``DiTTransformer2DModel`` on pixels, with any scheduler, and guidance where it is asked for."""

    model_cpu_offload_seq = "transformer"
    _callback_tensor_inputs = ("latents",)

    def __init__(self, transformer: DiTTransformer2DModel, scheduler: Any):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int] | Tensor,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 20,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable[..., dict[str, Tensor] | None] | None = None,
    ) -> ImagePipelineOutput:
        """Pictures of classes.

        Args:
            class_labels: of each picture, places in ``shapes.CLASSES``.
            guidance_scale: above 1, the batch holds every picture twice, with its class and without one.
            latents: noise ``(B, 3, 32, 32)`` to begin with.
            output_type: "pil", or "pt" for a tensor ``(B, 3, 32, 32)`` in [0, 1].
            callback_on_step_end: called with the pipeline, the step, the time and ``{"latents": ...}``.
        """
        device = self._execution_device
        labels = torch.as_tensor(class_labels, device=device)
        if latents is None:
            latents = torch.randn(len(labels), 3, SIZE, SIZE, generator=generator)
        guided = guidance_scale > 1
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        x = latents.to(device, self.transformer.dtype) * self.scheduler.init_noise_sigma
        draws = "generator" in inspect.signature(self.scheduler.step).parameters
        more = {"generator": generator} if draws else {}
        asked = torch.cat([labels, torch.full_like(labels, len(CLASSES))]) if guided else labels
        with self.progress_bar(total=len(self.scheduler.timesteps)) as bar:
            for i, time in enumerate(self.scheduler.timesteps):
                given = self.scheduler.scale_model_input(torch.cat([x, x]) if guided else x, time)
                found = self.transformer(given, timestep=time.expand(len(given)), class_labels=asked).sample
                if guided:
                    with_class, without = found.chunk(2)
                    found = without + guidance_scale * (with_class - without)
                x = self.scheduler.step(found, time, x, **more).prev_sample
                if callback_on_step_end is not None:
                    x = (callback_on_step_end(self, i, time, {"latents": x}) or {}).get("latents", x)
                bar.update()
        pixels = (x / 2 + 0.5).clamp(0, 1)
        self.maybe_free_model_hooks()
        if output_type == "pt":
            return ImagePipelineOutput(images=pixels)
        return ImagePipelineOutput(images=self.numpy_to_pil(pixels.cpu().float().permute(0, 2, 3, 1).numpy()))


def transformer(seed: int = 0) -> DiTTransformer2DModel:
    """The denoiser, untrained."""
    torch.manual_seed(seed)
    return DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=24, in_channels=3, num_layers=6, sample_size=SIZE, patch_size=4,
        num_embeds_ada_norm=len(CLASSES),
    )  # fmt: skip


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )


class Classifier(nn.Sequential):
    """The frozen judge of what a picture of 32 pixels shows: four convolutions, and their last features' mean."""

    def __init__(self) -> None:
        widths = (3, 24, 48, 48, 64)
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(a, b, 3, stride=2 if i else 1, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], len(CLASSES)))

    def features(self, pixels: Tensor) -> Tensor:
        """``(B, 64)`` of pictures ``(B, 3, 32, 32)`` in [-1, 1]: what a kernel distance compares."""
        out: Tensor = nn.Sequential(*list(self)[:-1])(pixels)
        return out


def load(directory: str | Path = HOME) -> ScenePipeline:
    """The trained pipeline of a folder, by default the one that is shipped; computed in float32."""
    home = Path(directory)
    model = DiTTransformer2DModel.from_pretrained(home / "transformer", torch_dtype=torch.float32).eval()
    made = ScenePipeline(model, DDIMScheduler.from_pretrained(home / "scheduler"))
    made.set_progress_bar_config(disable=True)
    return made


def judge(directory: str | Path = HOME) -> Classifier:
    """The frozen classifier of the same folder."""
    made = Classifier()
    made.load_state_dict({k: v.float() for k, v in load_file(Path(directory) / "classifier.safetensors").items()})
    return made.eval()
