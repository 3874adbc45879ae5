"""Causal language models as this chapter needs them, by transformers' public classes; its one file that knows them."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers import LogitsProcessor as LogitsProcessor

WINDOW = 512
"""Tokens of context at most when bits are counted."""
SIDECARS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def open_config(source: str | Path) -> Any:
    """A model's config, of its text part where it has several.

    Args:
        source: a folder or a hub name.

    Raises:
        ValueError: it is none.
    """
    try:
        return AutoConfig.from_pretrained(str(source)).get_text_config()
    except OSError as problem:
        raise ValueError(f"{source} is no model's folder or hub name: {str(problem).splitlines()[0]}") from problem


def open_model(source: str | Path) -> Any:
    """A causal language model in float32, to be read or changed; never weights of other formats than safetensors.

    Raises:
        ValueError: it is none, or its weights are quantized.
    """
    config = open_config(source)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{source}: its weights are quantized, and cannot be read as rows; give the model in full precision"
        )
    try:
        return AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32, use_safetensors=True).eval()
    except OSError as problem:
        raise ValueError(
            f"{source} cannot be opened as a causal language model: {str(problem).splitlines()[0]}"
        ) from problem


# ---- rows ---------------------------------------------------------------------------------------------------------------


def embeddings(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The rows of input tokens ``(V, D)``, and those of output tokens where they are not the same."""
    rows = model.get_input_embeddings().weight  # type: ignore[operator]
    head = model.get_output_embeddings()  # type: ignore[operator]
    return rows.data, None if head is None or head.weight is rows else head.weight.data


def with_rows(model: Any, rows: Tensor, head: Tensor | None) -> Any:
    """The model with other rows of tokens, in place; its config says how many. Biases of new rows are 0.

    Args:
        rows: (W, D); head: (W, D) of the output, where the model has them apart.
    """
    old = model.get_input_embeddings().weight.shape[0]
    if len(rows) != old:
        model.resize_token_embeddings(len(rows), mean_resizing=False)
    model.get_input_embeddings().weight.data.copy_(rows)
    if head is not None:
        model.get_output_embeddings().weight.data.copy_(head)
    return model


# ---- bits per byte --------------------------------------------------------------------------------------------------------


def start_of(model: Any) -> int:
    """The token that a text begins behind.

    Raises:
        ValueError: the config names neither a first nor a last token.
    """
    config = model.config.get_text_config()
    for given in (config.bos_token_id, config.eos_token_id):
        if given is not None:
            return int(given[0] if isinstance(given, (list, tuple)) else given)
    raise ValueError(
        "the model's config names neither bos_token_id nor eos_token_id, so that no text can begin; set one"
    )


def bits_per_byte(
    model: Any, tokenizer: Tokenizer, texts: Sequence[str], step: Callable[[int], object] = lambda done: None
) -> float:
    """Bits that a model needs for each byte of texts, each begun anew every 512 tokens behind its first or last token.

    The number of tokens does not count, so that tokenizers compare. Raises ValueError for texts without a byte.
    """
    start, total, size = start_of(model), 0.0, 0
    for i, text in enumerate(texts):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        for at in range(0, len(ids), WINDOW):
            total += _bits(model, [start, *ids[at : at + WINDOW]])
        size += len(text.encode())
        step(i + 1)
    if not size:
        raise ValueError("no text to count bits on")
    return total / size


@torch.inference_mode()
def _bits(model: Any, ids: list[int]) -> float:
    given = torch.tensor([ids], device=model.device)
    logits = model(input_ids=given[:, :-1]).logits[0].float()
    return float(nn.functional.cross_entropy(logits, given[0, 1:], reduction="sum")) / math.log(2)


# ---- saving ---------------------------------------------------------------------------------------------------------------


def save(
    model: Any, tokenizer: Tokenizer, source: str | Path, target: str | Path, own: dict[str, Any] | None = None
) -> None:
    """Write model and tokenizer as a folder that ``from_pretrained`` opens, whole or not at all.

    Args:
        source: the folder that the model came from, whose settings of the tokenizer are kept; target: a new folder.
        own: settings of the tokenizer instead of the source's.

    Raises:
        ValueError: the target exists; or what transformers makes of it encodes otherwise than the tokenizer.
    """
    target = Path(target)
    if target.exists():
        raise ValueError(f"{target} exists; give a folder that does not, so that nothing is written over")
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        model.save_pretrained(part)
        for name in SIDECARS:
            if own is None and (Path(source) / name).is_file():
                shutil.copyfile(Path(source) / name, part / name)
        settings = own if own is not None else _json(part / "tokenizer_config.json")
        settings["tokenizer_class"] = (
            "PreTrainedTokenizerFast"  # others build their own rules instead of reading the file
        )
        for name in ("auto_map", "added_tokens_decoder", "backend"):
            settings.pop(name, None)
        (part / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (part / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        check_same(part, tokenizer)
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_same(folder: Path, tokenizer: Tokenizer) -> None:
    """Check that what transformers opens encodes as the tokenizer does.

    Raises:
        ValueError: it does not.
    """
    text = "A line, and 12345 more of them:\n    return of the naïve 東京 🎉\n"
    opened = AutoTokenizer.from_pretrained(str(folder))
    got = opened(text, add_special_tokens=False)["input_ids"]
    if got != tokenizer.encode(text, add_special_tokens=False).ids:
        raise ValueError(
            f"{type(opened).__name__} of transformers encodes otherwise than the tokenizer written to {folder}"
        )


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def settings_of(source: str | Path) -> dict[str, Any]:
    """The ``tokenizer_config.json`` beside a tokenizer; nothing where there is none."""
    path = Path(source)
    return _json((path if path.is_dir() else path.parent) / "tokenizer_config.json") if path.exists() else {}


# ---- repetition -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def repeats(model: Any, tokenizer: Tokenizer, ids: Sequence[int], batch: int = 16) -> list[float]:
    """The probability with which a model repeats each token that it was shown twice, in lines that ask for it."""
    first, again = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("Repeat:", "\nRepeat:"))
    start, out = start_of(model), []
    for at in range(0, len(ids), batch):
        some = list(ids[at : at + batch])
        prompts = torch.tensor([[start, *first, i, *again, i, *again] for i in some], device=model.device)
        chances = model(input_ids=prompts).logits[:, -1].float().softmax(-1).cpu()
        out += chances[torch.arange(len(some)), some].tolist()
    return out


def is_model(source: str | Path) -> bool:
    """Whether a folder holds weights, or a hub name is a model's."""
    path = Path(source)
    if path.exists():
        return path.is_dir() and any(path.glob("*.safetensors"))
    try:
        open_config(source)
    except ValueError:
        return False
    return True
