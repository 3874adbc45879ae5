"""Processors that load where torchvision is not installed."""

from __future__ import annotations

from typing import Any


def load(name: str) -> Any:
    """The processor of a model. One that insists on a video processor, which transformers has for torchvision only, is loaded
    without it: images and text are all that is asked here.

    Raises:
        OSError: nothing to load under this name. ValueError: no processor for images and text.
    """
    from transformers import AutoProcessor

    try:
        made = AutoProcessor.from_pretrained(name)
    except (ImportError, AttributeError, ValueError):
        made = _still(name)
    if not hasattr(made, "tokenizer") or not hasattr(made, "image_processor"):
        raise ValueError(f"{name} has no processor for images and text ({type(made).__name__} is what it has)")
    return made


def _still(name: str) -> Any:
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    config = AutoConfig.from_pretrained(name)
    if type(config) not in PROCESSOR_MAPPING:
        raise ValueError(f"{name} is a {config.model_type}, for which transformers has no processor of images and text")
    base = PROCESSOR_MAPPING[type(config)]
    parts = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}

    class Still(base):  # type: ignore[misc, valid-type]
        """The processor without what it cannot load."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

        @classmethod
        def _get_arguments_from_pretrained(cls, path: str, *args: Any, **kwargs: Any) -> list[Any]:
            return [parts[a].from_pretrained(path) if a in parts else None for a in base.get_attributes()]

        @classmethod
        def get_attributes(cls) -> list[str]:
            return base.get_attributes()

    return Still.from_pretrained(name)
