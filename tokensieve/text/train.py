"""Training a tokenizer by its recipe, with Hugging Face's trainers."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers, trainers

from tokensieve.core.files import write_json, write_text
from tokensieve.text.config import BYTES, TokenizerConfig
from tokensieve.text.corpus import PIECE, Corpus, Document, batches, pieces
from tokensieve.text.cutting import untrained
from tokensieve.text.merges import grown, merges_of, parts_of, with_model
from tokensieve.text.superwords import learn

LONGEST = 512
"""Characters, or bytes, of a word that a trainer is given at most: a merge goes through all of each word that it occurs in, so
that a text without spaces would take time without end."""
LINE = 2048
"""Likewise where words are no barrier, and lines or nothing ends what it is given."""
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Trained:
    """A trained tokenizer.

    Attributes:
        tokenizer: it.
        config: its recipe.
        facts: what it was trained on: files, bytes and digests of corpus and parallel texts, versions, and what was found.
    """

    tokenizer: Tokenizer
    config: TokenizerConfig
    facts: dict[str, Any]

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json``, ``tokenizer_config.json`` (for ``AutoTokenizer.from_pretrained``) and ``recipe.json``."""
        check_writable(folder)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.tokenizer.to_str(pretty=True)
        special = self.config.special
        known: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if self.config.algorithm == "wordpiece":
            known |= {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
        elif special:
            known |= {"eos_token": special[0], "bos_token": special[0]}
        recipe = {
            "format": "tokensieve.tokenizer.1",
            "config": self.config.json(),
            **self.facts,
            "tokenizer": hashlib.sha256(state.encode()).hexdigest(),
        }
        write_text(folder / "tokenizer.json", state)
        write_json(folder / "tokenizer_config.json", known)
        write_json(folder / "recipe.json", recipe)


def check_writable(folder: str | Path) -> None:
    """Check that a folder can be written to, or made.

    Raises:
        OSError: it cannot, which is said before any work is done.
    """
    folder = Path(folder).absolute()
    there = next(f for f in (folder, *folder.parents) if f.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise OSError(f"{folder} cannot be written to ({there} is no folder, or read-only); give another folder")


def train(
    corpus: Corpus,
    config: TokenizerConfig = TokenizerConfig(),  # noqa: B008 - frozen
    parity: Mapping[str, Sequence[str]] | None = None,
    show: bool = False,
) -> Trained:
    """Train a tokenizer.

    Args:
        corpus: what it learns from.
        parity: parallel texts by language: each merge is learned from the language that is worst off on them (arXiv
            2508.04796). The language of a document is then the part of its path that is named so (``en/a.txt``, ``en.txt``).
        show: bars on stderr.

    Raises:
        ValueError: the recipe asks for more tokens than the texts have pairs; it says how many were found. Parity is asked
            for with fewer than two languages, or of another algorithm than BPE; a language has no document, or a document
            no language.
    """
    documents = sampled(corpus.documents, config)
    facts: dict[str, Any] = {
        "files": len(corpus.documents),
        "bytes": corpus.size,
        "digest": corpus.digest,
        "learned from": {"files": len(documents), "bytes": sum(d.size for d in documents)},
        "versions": {name: version(name) for name in ("tokenizers", "tokensieve")},
    }
    if config.algorithm == "bpe":
        tokenizer = _byte_pairs(documents, config, parity, show, facts)
    else:
        if parity is not None:
            raise ValueError(f"algorithm={config.algorithm!r}: parity is BPE's; take algorithm='bpe'")
        tokenizer = _other(documents, config, show)
    facts["vocabulary"] = tokenizer.get_vocab_size(with_added_tokens=True)
    if facts["vocabulary"] < config.vocab:
        raise ValueError(
            f"vocab={config.vocab:,}, but these texts ({facts['learned from']['bytes']:,} bytes) hold no more than "
            f"{facts['vocabulary']:,} tokens' worth of pairs that occur twice; give vocab={facts['vocabulary']} or less, "
            "or more text"
        )
    return Trained(tokenizer, config, facts)


def sampled(documents: Sequence[Document], config: TokenizerConfig) -> list[Document]:
    """Documents drawn at random up to the recipe's bytes, at least one; all where it names none."""
    drawn = list(documents)
    if not config.sample:
        return drawn
    random.Random(config.seed).shuffle(drawn)
    out, size = [], 0
    for document in drawn:
        if size >= config.sample:
            break
        out.append(document)
        size += document.size
    return out


def texts_of(documents: Sequence[Document], barriers: Sequence[str]) -> Iterator[list[str]]:
    """What a trainer reads: groups of pieces of texts, short ones where nothing in a text ends what it takes for a word."""
    return batches(short for d in documents for part in pieces(d.text) for short in _short(part, d.raw, barriers))


def _short(part: str, raw: bool, barriers: Sequence[str]) -> Iterator[str]:
    if raw:
        return pieces(part, LONGEST)
    if "words" in barriers:
        return pieces(part, LONGEST if max(map(len, part.split()), default=0) > LONGEST else PIECE)
    return pieces(part, LINE if "newline" not in barriers or max(map(len, part.split("\n"))) > LINE else PIECE)


def _byte_pairs(
    documents: Sequence[Document],
    config: TokenizerConfig,
    parity: Mapping[str, Sequence[str]] | None,
    show: bool,
    facts: dict[str, Any],
) -> Tokenizer:
    own = config.vocab - BYTES - len(config.special)  # what is learned
    later = round(own * config.superwords)
    tokenizer = untrained(config)
    alphabet = [chr(b) for b in range(BYTES)] if config.raw else sorted(pre_tokenizers.ByteLevel.alphabet())
    size = config.vocab - later
    if parity is None:
        tokenizer.train_from_iterator(
            texts_of(documents, config.barriers),
            trainers.BpeTrainer(
                vocab_size=size,
                min_frequency=2,
                initial_alphabet=alphabet,
                special_tokens=list(config.special),
                show_progress=show,
            ),
        )
    else:
        tokenizer = _parity(tokenizer, documents, config, parity, alphabet, size, show)
        facts["parity"] = {
            name: {"lines": len(rows), "digest": hashlib.sha256("\n".join(rows).encode()).hexdigest()}
            for name, rows in parity.items()
        }
    facts["merges"] = {"within words": len(merges_of(tokenizer))}
    if later:
        across = with_model(
            tokenizer, parts_of(tokenizer), merges_of(tokenizer), untrained(config, final=True).pre_tokenizer
        )
        special = frozenset(range(len(config.special)))
        found = learn(across, (d.text for d in documents), later, special, show)
        vocabulary, taken = grown(parts_of(tokenizer), found, config.vocab)
        facts["merges"]["across words"] = len(taken)
        tokenizer = with_model(across, vocabulary, [*merges_of(tokenizer), *taken])
    return tokenizer


def _parity(
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    config: TokenizerConfig,
    parity: Mapping[str, Sequence[str]],
    alphabet: list[str],
    size: int,
    show: bool,
) -> Tokenizer:
    """A BPE by :class:`tokenizers.trainers.ParityBpeTrainer`, with a vocabulary of the size asked for."""
    if len(parity) < 2:
        raise ValueError(f"parity between {len(parity)} languages; it must be two or more")
    if len({len(rows) for rows in parity.values()}) > 1:
        counts = ", ".join(f"{name} {len(rows):,}" for name, rows in parity.items())
        raise ValueError(
            f"parity: the languages have unequal numbers of texts ({counts}); text i of each must say the same"
        )
    by_language = _languages(documents, list(parity))
    merges = int((size - BYTES - len(config.special)) * 1.05) + 64  # some make a token that is there already
    trainer = trainers.ParityBpeTrainer(
        num_merges=merges,
        min_frequency=2,
        initial_alphabet=alphabet,
        special_tokens=list(config.special),
        show_progress=show,
    )
    trainer.train_from_iterator(
        tokenizer,
        train_iterators=[texts_of(by_language[name], config.barriers) for name in parity],
        dev_iterators=[iter(list(rows)) for rows in parity.values()],
    )
    learned = merges_of(tokenizer)
    made = {left + right for left, right in learned}
    base = {s: i for s, i in parts_of(tokenizer).items() if s not in made}
    ordered = {s: i for i, s in enumerate(sorted(base, key=base.__getitem__))}
    vocabulary, taken = grown(ordered, learned, size)
    return with_model(_without_added(tokenizer, config), vocabulary, taken)


def _without_added(tokenizer: Tokenizer, config: TokenizerConfig) -> Tokenizer:
    """The tokenizer with its special tokens under the first ids."""
    state = json.loads(tokenizer.to_str())
    for i, token in enumerate(state["added_tokens"]):
        token["id"] = config.special.index(token["content"]) if token["content"] in config.special else i
    state["model"]["vocab"] = {s: i for i, s in enumerate(config.special)}
    state["model"]["merges"] = []
    return Tokenizer.from_str(json.dumps(state))


def _languages(documents: Sequence[Document], names: Sequence[str]) -> dict[str, list[Document]]:
    out: dict[str, list[Document]] = {name: [] for name in names}
    for document in documents:
        parts = PurePath(document.name).parts
        found = [n for n in (*parts[:-1], PurePath(document.name).stem) if n in out]
        if not found:
            raise ValueError(
                f"{document.name}: no part of its path is one of the languages {', '.join(names)}; keep each language's texts "
                "in a folder, or a file, of its name"
            )
        out[found[-1]].append(document)
    missing = [name for name, own in out.items() if not own]
    if missing:
        raise ValueError(
            f"no text of {', '.join(missing)}; every language of the parallel texts needs some to learn from"
        )
    return out


def _other(documents: Sequence[Document], config: TokenizerConfig, show: bool) -> Tokenizer:
    tokenizer = untrained(config)
    if config.algorithm == "unigram":
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=config.vocab,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=list(config.special),
            show_progress=show,
        )
    else:
        special = [*BERT, *(s for s in config.special if s not in BERT)]
        trainer = trainers.WordPieceTrainer(vocab_size=config.vocab, special_tokens=special, show_progress=show)
    tokenizer.train_from_iterator(texts_of(documents, config.barriers), trainer)
    return tokenizer
