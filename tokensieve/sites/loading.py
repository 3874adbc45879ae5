"""Models from a folder or the hub, with their processors; one with the plan that lies beside its weights, attached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokensieve.core.plan import FILE, Plan
from tokensieve.sites.model.compatibility import release
from tokensieve.sites.sieve import sieve


def load_model(
    folder: str | Path, plan: Plan | None = None, *, device: Any = "cpu", dtype: Any = "auto", seed: int = 0
) -> tuple[Any, Any]:
    """Load a model with a plan attached, and its processor.

    Args:
        folder: of the model; safetensors only. ``Plan.save(folder)`` puts a plan beside the weights. With ``plan``, also a
            hub name.
        plan: what is attached, by default ``tokensieve.json`` of the folder; the two are never mixed.
        dtype: as for `from_pretrained`; "auto" is that of the weights.
        seed: for methods that draw.

    Returns:
        the model, which any code of transformers (its pipelines too) can run, and its processor: a tokenizer where it takes text
        alone, an image processor where it takes pictures alone. ``tokensieve.attached(model)`` are the sieves on it.

    Raises:
        FileNotFoundError: no plan is given, and none lies in the folder.
        ValueError: the model cannot be loaded, or the plan does not fit it.

    Example:
        >>> plan.save("qwen")  # doctest: +SKIP
        >>> model, processor = ts.load_model("qwen")  # doctest: +SKIP
    """
    folder = str(folder)
    if plan is None:
        if not (Path(folder) / FILE).is_file():
            raise FileNotFoundError(
                f"{Path(folder) / FILE}: no such file; put a plan there (plan.save({folder!r}) for a folder that is there), or "
                "pass plan=; a model without a plan is loaded by transformers"
            )
        plan = Plan.load(folder)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
        model = maker_of(config).from_pretrained(folder, dtype=dtype, use_safetensors=True).to(device).eval()
        processor = _processor(folder, model, is_visual(config))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load {folder!r}: {str(error).splitlines()[0]}") from error
    fitting(model, plan, seed).attach()
    return model, processor


def fitting(model: Any, plan: Plan, seed: int = 0) -> Any:
    """The sieve of a plan that was made elsewhere, perhaps for another model.

    Raises:
        ValueError: it does not fit this one.
    """
    try:
        return sieve(model, plan, seed=seed)
    except ValueError as error:
        raise ValueError(f"the plan does not fit {type(model).__name__}: {error}") from error


def is_visual(config: Any) -> bool:
    """Whether a configuration is that of a vision-language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def encodes(model: Any) -> bool:
    """Whether a model, loaded or by name, is an encoder of images, sound or texts, with or without a head, and no language model
    stands behind it; False where it cannot be told."""
    import torch
    from transformers import AutoConfig

    from tokensieve.sites.model import towers
    from tokensieve.sites.model.compatibility import PreTrainedModel

    if isinstance(model, str):
        try:
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
            if is_visual(config):
                return False
            with torch.device("meta"):  # no weights are read
                model = maker_of(config)(config)
        except (OSError, ValueError, ImportError, KeyError, TypeError):
            return False
    return isinstance(model, PreTrainedModel) and bool(towers.towers(model))


def maker_of(config: Any) -> Any:
    """The class of transformers that makes the model of a configuration.

    Raises:
        ValueError: this release has none.
    """
    import transformers

    built = next(iter(config.architectures or ()), "AutoModel")
    maker = transformers.AutoModelForImageTextToText if is_visual(config) else getattr(transformers, built, None)
    if maker is None:
        raise ValueError(f"{release()} has no {built}")
    return maker


def _processor(name: str, model: Any, visual: bool) -> Any:
    from transformers import AutoImageProcessor, AutoTokenizer

    if visual:
        return processor_of(name)
    if model.main_input_name == "pixel_values":
        return AutoImageProcessor.from_pretrained(name)
    return AutoTokenizer.from_pretrained(name)


def processor_of(name: str) -> Any:
    """A vision-language model's processor; made of tokenizer and PIL image processor where its video processor asks for
    torchvision."""
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    try:
        return AutoProcessor.from_pretrained(name)
    except ImportError as error:
        kind = PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(name)), None)
        if kind is None or "orchvision" not in str(error):
            raise

    def checked(self: Any, part: str, given: Any) -> Any:
        return None if given is None else kind.check_argument_for_proper_class(self, part, given)

    still = type(kind.__name__, (kind,), {"check_argument_for_proper_class": checked})
    tokenizer = AutoTokenizer.from_pretrained(name)
    images = AutoImageProcessor.from_pretrained(name, backend="pil")
    return still(image_processor=images, tokenizer=tokenizer, chat_template=tokenizer.chat_template)


def encoder_of(name: str, kind: str, hears: bool = False, device: str = "cpu") -> tuple[Any, Any]:
    """An encoder with the head that it was saved with, in single precision, and what prepares "images", "sound", "texts" for it;
    safetensors only, no code of its own.

    Args:
        hears: whether what is heard is to be written down, which takes a tokenizer too.

    Raises:
        ValueError: it cannot be loaded, or takes something else.
    """
    import torch
    from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoProcessor, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        model = maker_of(config).from_pretrained(name, dtype=torch.float32, use_safetensors=True).to(device)
        if kind == "images":
            processor = AutoImageProcessor.from_pretrained(name, backend="pil")
        elif kind == "texts":
            processor = AutoTokenizer.from_pretrained(name)
        else:
            processor = (AutoProcessor if hears else AutoFeatureExtractor).from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot load {name!r} as an encoder of {kind}: {said}") from error
    return model, processor
