"""Opening a tokenizer from wherever it lies, as one of Hugging Face's ``tokenizers``."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from tokensieve.extras import install

FILE = "tokenizer.json"


def open_tokenizer(source: Any) -> Tokenizer:
    """A tokenizer that neither truncates nor pads.

    Args:
        source: a ``tokenizers.Tokenizer``, a fast tokenizer of transformers, a folder that holds ``tokenizer.json``, such a
            file, a hub name (``org/name``, or one that only the hub knows), or the name of a tiktoken encoding
            (``cl100k_base``). What is given as an object is copied.

    Raises:
        ValueError: it is none of these, or the file is damaged; it says what was tried.
    """
    if isinstance(source, Tokenizer):
        return _bare(Tokenizer.from_str(source.to_str()))
    backend = getattr(source, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        return _bare(Tokenizer.from_str(backend.to_str()))
    if not isinstance(source, (str, Path)):
        raise ValueError(
            f"{type(source).__name__} is no tokenizer; it must be a folder, a {FILE}, a hub name, a tiktoken name, or a fast "
            "tokenizer (one of transformers whose is_fast is True)"
        )
    path = Path(source)
    if path.is_dir():
        if not (path / FILE).is_file():
            raise ValueError(
                f"{path} holds no {FILE}; AutoTokenizer.from_pretrained({str(path)!r}).save_pretrained(...) writes one where "
                "transformers can convert what is there"
            )
        path = path / FILE
    if path.is_file():
        return _bare(_read(path))
    name = str(source)
    if name.endswith(".json") or name.startswith((".", "/", "~")):
        raise ValueError(f"{name} does not exist; it must be a folder that holds {FILE}, or such a file")
    tiktoken = _tiktoken(name)
    return tiktoken if tiktoken is not None else _bare(_hub(name))


def _bare(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as problem:  # the Rust side raises Exception itself
        raise ValueError(f"{path} is no tokenizer.json that tokenizers can read: {problem}") from problem


def _hub(name: str) -> Tokenizer:
    try:
        return Tokenizer.from_pretrained(name)
    except Exception as problem:
        raise ValueError(
            f"{name!r} is no folder and no file here, tiktoken has no encoding of this name, and the hub did not give "
            f"it: {problem}"
        ) from problem


def _tiktoken(name: str) -> Tokenizer | None:
    """tiktoken's encoding of this name, or None where it has none.

    Raises:
        ValueError: the name is one of OpenAI's, and tiktoken is not installed.
    """
    try:
        import tiktoken
    except ImportError:
        if name in ("gpt2", "r50k_base", "p50k_base", "p50k_edit", "cl100k_base", "o200k_base", "o200k_harmony"):
            raise ValueError(
                f"{name!r} is an encoding of tiktoken, which is not installed; {install('text')}"
            ) from None
        return None
    if name not in tiktoken.list_encoding_names():
        return None
    try:
        return from_tiktoken(tiktoken.get_encoding(name))
    except OSError as problem:  # what requests raises is an OSError
        raise ValueError(f"tiktoken could not fetch {name!r}: {problem}") from problem


def from_tiktoken(encoding: Any) -> Tokenizer:
    """A tiktoken encoding as a byte-level BPE of the same ids: each token's merge is that of the two parts into which the
    merges of lower rank make it."""
    ranks: dict[bytes, int] = encoding._mergeable_ranks
    alphabet = byte_alphabet()
    spelled = {token: "".join(alphabet[b] for b in token) for token in ranks}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _parts(token, ranks, rank)
            if len(parts) == 2:
                merges.append((spelled[parts[0]], spelled[parts[1]]))
    model = models.BPE(vocab={spelled[t]: r for t, r in ranks.items()}, merges=merges, ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(encoding._pat_str), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = sorted(encoding._special_tokens.items(), key=lambda item: item[1])
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [
        {
            "id": i,
            "content": s,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for s, i in specials
    ]
    state["model"]["vocab"] |= dict(
        specials
    )  # under their own ids, or tokenizers numbers them anew behind the vocabulary
    return Tokenizer.from_str(json.dumps(state))


def _parts(token: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """The parts that merges of rank under ``below`` leave of a token."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        pairs = [(ranks.get(a + b, below), i) for i, (a, b) in enumerate(pairwise(parts))]
        rank, i = min(pairs)
        if rank >= below:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def byte_alphabet() -> list[str]:
    """The character by which byte-level vocabularies write each of the 256 bytes: printable ones of Latin-1 stand for
    themselves, the others for those from U+0100 on, in order."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in shown else chr(next(others)) for b in range(256)]
